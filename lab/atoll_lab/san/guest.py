"""The SAN guest's life: booted on its disks, its power cut, booted again on the same ones."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.storage.drivers.san import package
from atoll_lab.guests import qemu
from atoll_lab.guests.control import PORT_NAME, GuestShell
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.san.image import san_image

VOLUME_GROUP = "san"
POOL = "pool"
ADDRESS = "10.0.2.15"
PORTAL_PORTS = (3260, 3261)
BRIDGE_PORT = 5000
DISK_BYTES = 4 << 30
MEMORY_BYTES = 768 << 20

_HELPER = "usr/lib/atoll-san"
_INSIDE = Path(__file__).parent / "inside"
_UDEV_RULES = Path(package.__file__).with_name("11-atoll-san.rules")
_CONTROL_LOOP = Path(qemu.__file__).parent / "inside" / "control_loop.py"
_SCRIPTS = ("boot", "bridge_server.py", "shutdown")
_PATIENCE_SECONDS = 300.0
_READY = "/run/lab-bridge"
"""There once the bridge listens."""
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Forwards:
    """Ports of 127.0.0.1 that lead to the guest's portals and to its bridge."""

    portals: tuple[int, ...]
    bridge: int


class SanGuest:
    """A SAN server whose disks are sparse files in `directory`.

    `disks` of DISK_BYTES each are /dev/vdb, /dev/vdc and so on inside. With
    `udev` the guest runs udev as a normal server does; without it boots faster.
    Nothing else of the guest survives a boot.
    """

    def __init__(self, directory: Path, *, disks: int = 3, udev: bool = False) -> None:
        self.directory = directory
        self._disks = [directory / f"disk{number}.raw" for number in range(disks)]
        self._udev = udev
        self._forwards: Forwards | None = None

    @property
    def shell(self) -> GuestShell:
        """Commands as root inside."""
        return GuestShell(self.directory / "control.sock")

    @property
    def disks(self) -> list[str]:
        """The data disks as the guest names them."""
        return [f"/dev/vd{'bcdefgh'[number]}" for number in range(len(self._disks))]

    @property
    def settings(self) -> dict[str, object]:
        """The keys of a [[storage]] section for the driver."""
        forwards = self._running()
        return {
            "driver": "san",
            "volume_group": VOLUME_GROUP,
            "pool": POOL,
            "helper": [sys.executable, "-m", "atoll_lab.san.bridge", str(forwards.bridge)],
            "portals": [f"127.0.0.1:{port}" for port in forwards.portals],
            "listen": [f"{ADDRESS}:{port}" for port in PORTAL_PORTS],
        }

    def boot(self) -> None:
        """Start it and wait until its bridge answers; on the same ports as before."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for disk in self._disks:
            if not disk.exists():
                disk.touch()
                os.truncate(disk, DISK_BYTES)
        (self.directory / "config.tar").write_bytes(_config_drive())
        for left in reversed(range(_TRIES)):
            forwards = self._forwards or Forwards(
                tuple(_free_port() for _ in PORTAL_PORTS), _free_port()
            )
            try:
                self._start(forwards)
            except LabGuestError:
                # Somebody may have taken a port since it was found free.
                if self._forwards is not None or not left:
                    raise
                continue
            break
        self._forwards = forwards
        self._wait()

    def power_cut(self) -> None:
        """End it without a warning: all that was in its memory alone is gone."""
        qemu.kill(self.directory)

    def close(self) -> None:
        """End it and remove its disks."""
        self.power_cut()
        for disk in self._disks:
            disk.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Make a volume group of all disks but the last, if there is none."""
        disks = " ".join(self.disks[:-1])
        self.shell.check(f"vgs {VOLUME_GROUP} 2>/dev/null || vgcreate -q {VOLUME_GROUP} {disks}")

    def _running(self) -> Forwards:
        if self._forwards is None:
            raise LabGuestError("The SAN guest was never booted; boot it first.")
        return self._forwards

    def _start(self, forwards: Forwards) -> None:
        for stale in ("qemu.pid", "qmp.sock", "control.sock", "serial.log"):
            (self.directory / stale).unlink(missing_ok=True)
        done = subprocess.run(
            [*self._command(forwards), "-daemonize"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            check=False,
        )
        if done.returncode or qemu.status(self.directory) is None:
            raise LabGuestError(f"QEMU would not start the SAN guest: {done.stderr.strip()}")

    def _command(self, forwards: Forwards) -> list[str]:
        image, where = san_image(), self.directory
        ports = [*zip(forwards.portals, PORTAL_PORTS, strict=True), (forwards.bridge, BRIDGE_PORT)]
        network = ",".join(
            f"hostfwd=tcp:127.0.0.1:{outside}-{ADDRESS}:{inside}" for outside, inside in ports
        )
        command = [
            *(qemu.QEMU, "-name", "lab-san", "-pidfile", str(where / "qemu.pid")),
            *("-machine", "pc,usb=off,hpet=off", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", "2", "-m", f"{MEMORY_BYTES >> 20}M"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
            *("-append", image.kernel_arguments + (" lab.udev" if self._udev else "")),
            *("-qmp", f"unix:{where / 'qmp.sock'},server=on,wait=off"),
            *("-chardev", f"file,id=serial,path={where / 'serial.log'}"),
            *("-serial", "chardev:serial"),
            *("-chardev", f"socket,id=control,path={where / 'control.sock'},server=on,wait=off"),
            *("-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=control,name={PORT_NAME}"),
            *("-netdev", f"user,id=net0,{network}"),
            *("-device", f"virtio-net-pci,netdev=net0,mac={qemu.MAC},romfile="),
            # What a boot writes to the root file system is forgotten with it.
            *("-drive", f"file={image.root},format=raw,if=none,id=root,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=root"),
        ]
        for number, disk in enumerate(self._disks):
            command += _disk(f"disk{number}", disk)
        return command + _disk("config", where / "config.tar", qemu.CONFIG_SERIAL)

    def _wait(self) -> None:
        self.shell.check(f"until [ -e {_READY} ]; do sleep 0.2; done", _PATIENCE_SECONDS)


@contextmanager
def san_guest(
    directory: Path, *, disks: int = 3, udev: bool = False, prepared: bool = True
) -> Iterator[SanGuest]:
    """A booted guest, `prepared` with a volume group of all disks but the last; gone afterwards."""
    guest = SanGuest(directory, disks=disks, udev=udev)
    try:
        guest.boot()
        if prepared:
            guest.prepare()
        yield guest
    finally:
        guest.close()


def _disk(name: str, path: Path, serial: str = "") -> list[str]:
    # Not flushed to this machine's disk: its page cache survives QEMU, and so plays the part of
    # a disk that keeps what it acknowledged. What the guest has only in its memory is lost.
    cache = {"direct": False, "no-flush": True}
    node = {
        "driver": "raw",
        "node-name": name,
        "cache": cache,
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "cache": cache, "discard": "unmap"},
    }
    known = f",serial={serial}" if serial else ""
    return [
        *("-blockdev", json.dumps(node)),
        *("-device", f"virtio-blk-pci,drive={name},write-cache=on{known}"),
    ]


def _config_drive() -> bytes:
    """A tar of all that the guest's first process is to find."""
    members: Mapping[str, bytes] = {
        "etc/inittab": (_INSIDE / "inittab").read_bytes(),
        "etc/lvm/lvmlocal.conf": (_INSIDE / "lvmlocal.conf").read_bytes(),
        "etc/lvm/no-udev.conf": (_INSIDE / "no-udev.conf").read_bytes(),
        "etc/udev/rules.d/11-atoll-san.rules": _UDEV_RULES.read_bytes(),
        "usr/lib/lab/control_loop.py": _CONTROL_LOOP.read_bytes(),
        **{f"usr/lib/lab/{name}": (_INSIDE / name).read_bytes() for name in _SCRIPTS},
        **{f"{_HELPER}/{name}": data for name, data in package.helper_members().items()},
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
