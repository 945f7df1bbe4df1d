"""The disks of a lab's VMs on LUNs that are no run, served to the same backup software.

While a VMware snapshot is held, the ranges of the production LUNs below it stand still. This serves
them as Atoll serves a run: as a mounted tree and over NBD. The lab's deltas lie beside QEMU, so
the maps of the volumes do not change meanwhile. Copies of the LUNs in a directory are served as well.
"""

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import MappedReader
from atoll.blocks.vmfs import open_volumes
from atoll.fuse.server import FuseServer
from atoll.island.served import ServedDisk, ServedVm
from atoll.island.tree import ServedTree
from atoll.model.consistency import Consistency
from atoll.model.readers import BlockReader
from atoll.nbd.listening import UnixAddress
from atoll.nbd.server import NbdServer
from atoll.recovery.hosted_vmdk import VmdkForm, write_vmdk
from atoll.service.exporting import vm_exports
from atoll.storage.image_reader import ImageReader
from atoll_lab.blueprint import LUNS, VMS
from atoll_lab.pool import image
from atoll_lab.running import open_lab
from atoll_lab.up import instance_uuid, vmdk_path

EXPORT = f"{sys.executable} -m bench.frozen_base vm {{lab}} {{luns}} $VM $OUT/export"
"""What `vcbMounter -t fullvm` is for a run: the same files, written by the same code."""


def link_production(lab: str, directory: Path) -> None:
    """Give the production LUNs of a lab the names by which this module looks for LUNs."""
    with open_lab(lab) as running:
        pool, groups = running.places.pool, running.record.lun_groups
    directory.mkdir()
    for plan in LUNS:
        (directory / plan.name).symlink_to(image(pool, groups[plan.name], plan.name))


def base_vms(lab: str, directory: Path) -> tuple[ServedVm, ...]:
    """The lab's VMs, their disks read from LUNs in a directory, each a file of the LUN's name."""
    luns = {plan.name: ImageReader(directory / plan.name) for plan in LUNS}
    volumes = {volume.luns[0]: volume for volume in open_volumes(luns)}
    lun_of = {plan.datastore: plan.name for plan in LUNS}
    vms = []
    for vm in VMS:
        disks = []
        for number, disk in enumerate(vm.disks):
            path = vmdk_path(vm, number)
            disk_map = volumes[lun_of[disk.datastore]].disk_map(f"/{path}")
            where = f"[{disk.datastore}] {path}"
            opener = _opener(disk_map, luns)
            disks.append(ServedDisk(disk.key, disk.label, where, disk_map.size_bytes, opener))
        identity = instance_uuid(lab, vm.name)
        crash = Consistency.CRASH
        vms.append(ServedVm(vm.name, identity, "base", 0.0, crash, "", dict, tuple(disks)))
    return tuple(vms)


def serve(lab: str, luns: Path, top: Path, socket: Path) -> None:
    """Serve them until SIGTERM; the socket is there last."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    vms = base_vms(lab, luns)
    tree = ServedTree(vms)
    with (
        FuseServer(tree.root, top, find=tree.views, source="base"),
        vm_exports(vms) as exports,
        NbdServer(exports, UnixAddress(socket)),
        suppress(KeyboardInterrupt),
    ):
        signal.pause()
    tree.close()


def export(lab: str, luns: Path, name: str, directory: Path) -> None:
    """Write a VM's disks as `vcbMounter -t fullvm` does."""
    directory.mkdir()
    (vm,) = (each for each in base_vms(lab, luns) if each.name == name)
    for disk in vm.disks:
        reader = disk.open()
        write_vmdk(
            reader,
            directory,
            disk.file.removesuffix(".vmdk"),
            VmdkForm(monolithic=False, flat=False),
            lambda done: None,
        )
        reader.close()


def _opener(disk_map: DiskMap, luns: dict[str, ImageReader]) -> Callable[[], BlockReader]:
    return partial(MappedReader, disk_map, luns)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        what, lab_name, lun_directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
        if what == "vm":
            export(lab_name, lun_directory, sys.argv[4], Path(sys.argv[5]))
        else:
            serve(lab_name, lun_directory, Path(sys.argv[4]), Path(sys.argv[5]))
