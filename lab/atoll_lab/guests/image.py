"""The disks of the lab's guests: a database on three disks, and an application server on one."""

import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.vmware import install
from atoll_lab.guests import boot
from atoll_lab.guests.cache import cached, content_key
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.rootfs import MODULES, rootfs

INSIDE = Path(__file__).parent / "inside"
AGENT = Path("/usr/lib/atoll/atoll-agent.pyz")
MIB = 1 << 20
NAMESPACE = uuid.UUID("6f1d3b0e-5d5c-4f57-9c1b-0a7011ab0001")


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk of a role: which directory becomes its file system, and how large it is."""

    label: str
    mount: str
    filesystem_bytes: int


@dataclass(frozen=True, slots=True)
class Role:
    """What a guest is for. The first volume is the system disk and is mounted at `/`."""

    name: str
    volumes: tuple[Volume, ...]


DB1 = Role(
    "db1",
    (
        Volume("system", "/", 2560 * MIB),
        Volume("data", "/var/lib/postgresql", 1536 * MIB),
        Volume("wal", "/var/lib/postgresql-wal", 1024 * MIB),
    ),
)
APP1 = Role("app1", (Volume("system", "/", 2560 * MIB),))
ROLES = {role.name: role for role in (DB1, APP1)}


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A finished raw disk, sparse, a multiple of 1 MiB long. Copy it before writing to it."""

    label: str
    path: Path
    size_bytes: int


def guest_disks(role: str) -> Sequence[DiskFile]:
    """The cached disks of `db1` or `app1`, system disk first; built the first time.

    Needs root, debootstrap and grub-pc-bin; raises LabGuestError.
    """
    wanted = ROLES.get(role)
    if wanted is None:
        raise LabGuestError(f"No lab guest is called {role}; there are {', '.join(ROLES)}.")
    base = rootfs()
    key = content_key(
        [base.name.encode(), repr(wanted).encode(), boot.BUSYBOX.read_bytes()]
        + [path.read_bytes() for path in sorted(INSIDE.iterdir()) if path.is_file()]
        + [Path(source).read_bytes() for source in (__file__, boot.__file__, install.__file__)]
    )
    place = cached(role, key, lambda work: _build(wanted, base, work))
    return [_disk(volume, place) for volume in wanted.volumes]


def _disk(volume: Volume, place: Path) -> DiskFile:
    path = place / f"{volume.label}.raw"
    return DiskFile(volume.label, path, path.stat().st_size)


def _build(role: Role, base: Path, work: Path) -> None:
    root = work / "root"
    _run("cp", "-a", "--reflink=auto", str(base / "root"), str(root))
    _install(role, root)
    _provision(root)
    boot.install_boot_files(
        root,
        base / "vmlinuz",
        [base / "modules" / Path(module).name for module in MODULES],
        INSIDE / "initramfs-init",
        _uuid(role, role.volumes[0]),
    )
    # Inner mounts first, so that what is left under `root` is the system disk's own content.
    for volume in reversed(role.volumes):
        source = root
        if volume.mount != "/":
            source = work / f"tree-{volume.label}"
            mount_point = root / volume.mount.lstrip("/")
            mount_point.rename(source)
            mount_point.mkdir()
        _make_disk(role, volume, source, work / f"{volume.label}.raw")
        shutil.rmtree(source)


def _install(role: Role, root: Path) -> None:
    lab = root / "usr" / "lib" / "lab"
    lab.mkdir(parents=True)
    for path in INSIDE.iterdir():
        if path.is_file():
            shutil.copy(path, lab / path.name)
    for name in ("sbin/init", "sbin/poweroff", "bin/busybox"):
        shutil.copy(boot.BUSYBOX, root / name)
    etc = root / "etc"
    shutil.copy(INSIDE / "inittab", etc / "inittab")
    # As VMware Tools would have it; the script does nothing where no agent is installed.
    shutil.copy(INSIDE / "vmware-rpctool", root / "usr" / "bin" / "vmware-rpctool")
    install.install_script(root, AGENT)
    (etc / "lab").mkdir()
    (etc / "lab" / "role").write_text(f"{role.name}\n")
    (etc / "hostname").write_text(f"{role.name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {role.name}\n")
    (etc / "resolv.conf").write_text("nameserver 10.0.2.3\n")
    lines = ["# <file system> <mount point> <type> <options> <dump> <pass>"]
    for number, volume in enumerate(role.volumes):
        options = "defaults" if number else "errors=remount-ro"
        check = 2 if number else 1
        lines.append(f"UUID={_uuid(role, volume)} {volume.mount} ext4 {options} 0 {check}")
    (etc / "fstab").write_text("\n".join(lines) + "\n")


def _provision(root: Path) -> None:
    """Run the databases for a moment inside the tree.

    In namespaces of their own: no port or socket of this machine is touched,
    and mounts and servers are gone when the script ends, however it ends.
    """
    script = (
        'mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/run" && mkdir -p "$1/dev/shm" '
        '&& mount -t tmpfs shm "$1/dev/shm" && exec chroot "$1" /usr/lib/lab/provision'
    )
    _run(
        *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"),
        *("sh", "-c", script, "sh", str(root)),
    )


def _make_disk(role: Role, volume: Volume, tree: Path, disk: Path) -> None:
    bootable = volume.mount == "/"
    offset = boot.PARTITION_OFFSET if bootable else 0
    with disk.open("wb") as target:
        target.truncate(offset + volume.filesystem_bytes)
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-m", "1", "-L", volume.label, "-d", str(tree)),
        *("-U", _uuid(role, volume), "-E", f"offset={offset},assume_storage_prezeroed=1,nodiscard"),
        *(str(disk), f"{volume.filesystem_bytes // 1024}k"),
    )
    if bootable:
        boot.make_bootable(disk)


def _uuid(role: Role, volume: Volume) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{role.name}/{volume.label}"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        tail = " / ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise LabGuestError(f"Building a lab guest failed in `{command[0]}`: {tail}")
