"""One tree of all VMs of a run or a restore point: images, files, volumes (docs/operations/serving.md)."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from atoll.fuse.interface import Node
from atoll.guestfiles.mounts import GuestVolume
from atoll.island.descriptor import flat_descriptor, flat_name, safe_name
from atoll.island.guest_tree import MountPoint, Views, guest_lane, mount_points
from atoll.island.guests import Guests
from atoll.island.nodes import Directory, DiskFile, SmallFile
from atoll.island.pool import Pool
from atoll.island.served import ServedVm
from atoll.model.errors import UnsupportedFormatError

_KEPT_FOLDERS = 64  # of image files, whose configuration is held in memory
NOT_READ = b"not-read.txt"
STALE = b"not-replayed.txt"


class ServedTree:
    """The tree and what is open for it; `root` is its node, `views` finds those with own numbers.

    Close it when no reader is left.
    """

    def __init__(self, vms: Sequence[ServedVm]) -> None:
        self.guests = Guests(vms)
        self.views = Views(self.guests)
        self._vms = vms
        self._folders: Pool[int, Mapping[bytes, Node | None]] = Pool(
            _KEPT_FOLDERS, self._image_files, lambda folder: None
        )
        self.names = tuple(vm_names(vms))
        tops: dict[bytes, Node | None] = {
            name: self._vm(number) for number, name in enumerate(self.names)
        }
        newest = max((vm.taken_at for vm in vms), default=0.0)
        self.root: Node = Directory("root", newest, lambda: tops)

    def close(self) -> None:
        """Close all disks and end all parsers."""
        self.guests.close()

    def _vm(self, number: int) -> Node:
        vm = self._vms[number]
        identity = vm.instance_uuid
        image: Node = Directory(
            f"{identity}/image", vm.taken_at, lambda: self._image(number), lane=("image", number)
        )
        volumes: Node = Directory(
            f"{identity}/volumes",
            vm.taken_at,
            lambda: self._volumes(number),
            lambda name: self._volume(number, name),
            guest_lane(number),
        )
        inside: dict[bytes, Node | None] = {b"image": image, b"files": None, b"volumes": volumes}
        return Directory(
            identity,
            vm.taken_at,
            lambda: inside,
            lambda _: self._files(number),
            ("vm", number),
        )

    def _image(self, number: int) -> Mapping[bytes, Node | None]:
        with self._folders.use(number) as files:
            return files

    def _image_files(self, number: int) -> Mapping[bytes, Node | None]:
        vm = self._vms[number]
        source = f"{vm.instance_uuid}/image"
        files: dict[str, Node | None] = {}
        raw: dict[bytes, Node | None] = {}
        for place, disk in enumerate(vm.disks):
            name = safe_name(disk.file)
            if name in files or flat_name(name) in files or not name.endswith(".vmdk"):
                name = f"disk{place + 1}-{name.removesuffix('.vmdk')}.vmdk"
            flat = flat_name(name)
            text = flat_descriptor(flat, disk.size_bytes)
            files[name] = SmallFile(f"{source}/{name}", vm.taken_at, text)
            for key, target in ((flat, files), (f"disk{place + 1}.img", None)):
                node = DiskFile(
                    f"{source}/{disk.key}/{key}",
                    vm.taken_at,
                    self.guests,
                    number,
                    place,
                    disk.size_bytes,
                )
                if target is None:
                    raw[key.encode()] = node
                else:
                    target[key] = node
        files["raw"] = Directory(f"{source}/raw", vm.taken_at, lambda: raw)
        for name, content in vm.configuration().items():
            files.setdefault(
                safe_name(name), SmallFile(f"{source}/{safe_name(name)}", vm.taken_at, content)
            )
        return {name.encode("utf-8", "surrogateescape"): node for name, node in files.items()}

    def _files(self, number: int) -> Node:
        with self.guests.guest(number) as guest:
            mounts = {point: volume.address for point, volume in guest.mounts.volumes.items()}
            tops = {point: volume.top for point, volume in guest.mounts.volumes.items()}
            if "/" not in mounts:
                held = ", ".join(
                    f"{volume.address}: {volume.content.kind}" for volume in guest.volumes.values()
                )
                raise UnsupportedFormatError(
                    f"No root file system that Atoll reads was found on the disks of"
                    f" {self._vms[number].name} ({held or 'no volumes'}); its image can be read."
                )
        return self.views.root(
            mount_points(f"{self._vms[number].instance_uuid}/files", number, mounts, tops)
        )

    def _volumes(self, number: int) -> Mapping[bytes, Node | None]:
        with self.guests.guest(number) as guest:
            volumes, stale = list(guest.volumes.values()), guest.stale
        vm = self._vms[number]
        nodes: dict[bytes, Node | None] = {
            _volume_name(volume): None for volume in volumes if volume.content.supported
        }
        unread = [
            f"{_volume_name(volume).decode()}: {volume.refusal()}\n"
            for volume in volumes
            if not volume.content.supported
        ]
        if unread:
            text = "".join(unread).encode("utf-8", "replace")
            nodes[NOT_READ] = SmallFile(f"{vm.instance_uuid}/volumes/not-read", vm.taken_at, text)
        if stale:
            text = "".join(f"{sentence}.\n" for sentence in stale).encode("utf-8", "replace")
            nodes[STALE] = SmallFile(f"{vm.instance_uuid}/volumes/stale", vm.taken_at, text)
        return nodes

    def _volume(self, number: int, name: bytes) -> Node:
        address = name.decode().replace("-", ":", 1)
        view = f"{self._vms[number].instance_uuid}/volumes/{address}"
        return self.views.root(MountPoint(view, (number, address)))


def _volume_name(volume: GuestVolume) -> bytes:
    return volume.address.replace(":", "-", 1).encode()


def vm_names(vms: Sequence[ServedVm]) -> list[bytes]:
    """A directory name for each VM: its own, with its instance UUID where two have the same."""
    wanted = [safe_name(vm.name) for vm in vms]
    several = Counter(wanted)
    return [
        os.fsencode(name if several[name] == 1 else f"{name}.{safe_name(vm.instance_uuid)}")[-255:]
        for name, vm in zip(wanted, vms, strict=True)
    ]
