"""The SAN guest's kernel, initramfs and root file system, built once."""

import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from atoll_lab.guests import boot, rootfs
from atoll_lab.guests.cache import cached, content_key
from atoll_lab.guests.errors import LabGuestError

PACKAGES = (
    "dmeventd",
    "iproute2",
    "kmod",
    "lvm2",
    "procps",
    "python3",
    "python3-rtslib-fb",
    "thin-provisioning-tools",
    "udev",
)
# The cloud kernel has no LIO.
KERNEL = "linux-image-amd64"
EARLY_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
MODULES = (
    *EARLY_MODULES,
    "dm_mirror",
    "dm_thin_pool",
    "iscsi_target_mod",
    "sd_mod",
    "target_core_file",
    "target_core_iblock",
    "tcm_loop",
    "tcm_qla2xxx",
    "virtio_console",
    "virtio_net",
)
FILESYSTEM_BYTES = 768 << 20

_INSIDE = Path(__file__).parent / "inside"
_INITRAMFS_INIT = Path(rootfs.__file__).parent / "inside" / "initramfs-init"
_UUID = str(uuid.UUID("6f1d3b0e-5d5c-4f57-9c1b-0a7011ab5a00"))


@dataclass(frozen=True, slots=True)
class SanImage:
    """What QEMU boots directly. The root file system is never written to: every boot is the first."""

    kernel: Path
    initramfs: Path
    root: Path

    @property
    def kernel_arguments(self) -> str:
        """How the kernel finds the rest."""
        return f"root=UUID={_UUID} {boot.KERNEL_ARGUMENTS}"


def san_image() -> SanImage:
    """The cached image; built with debootstrap the first time, as root and with the network.

    LabGuestError with the end of the log when that fails.
    """
    key = content_key(
        [repr((rootfs.SUITE, KERNEL, PACKAGES, MODULES, FILESYSTEM_BYTES)).encode()]
        + [path.read_bytes() for path in (boot.BUSYBOX, _INSIDE / "init", _INITRAMFS_INIT)]
    )
    place = cached("san", key, _build)
    return SanImage(place / "vmlinuz", place / "initrd.img", place / "root.ext4")


def _build(work: Path) -> None:
    root, kernel = work / "root", work / "kernel"
    rootfs.debian_tree(root, PACKAGES)
    rootfs.unpack_kernel(root, KERNEL, kernel)
    [image] = (kernel / "boot").glob("vmlinuz-*")
    early = _take_modules(root, kernel)
    rootfs.slim(root)
    shutil.copyfile(boot.BUSYBOX, root / "bin" / "busybox")
    (root / "bin" / "busybox").chmod(0o755)
    for name in ("init", "poweroff"):
        (root / "sbin" / name).unlink(missing_ok=True)
    shutil.copy(boot.BUSYBOX, root / "sbin" / "poweroff")
    shutil.copyfile(_INSIDE / "init", root / "sbin" / "init")
    (root / "sbin" / "init").chmod(0o755)
    boot.install_boot_files(root, image, early, _INITRAMFS_INIT, _UUID)
    for name in ("vmlinuz", "initrd.img"):
        (root / "boot" / name).rename(work / name)
    shutil.rmtree(root / "boot")
    with (work / "root.ext4").open("wb") as disk:
        disk.truncate(FILESYSTEM_BYTES)
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-m", "0", "-L", "san", "-U", _UUID, "-d", str(root)),
        *("-E", "assume_storage_prezeroed=1,nodiscard", str(work / "root.ext4")),
        f"{FILESYSTEM_BYTES >> 10}k",
    )
    shutil.rmtree(root)
    shutil.rmtree(kernel)


def _take_modules(root: Path, kernel: Path) -> list[Path]:
    """Put MODULES and what they need into the tree; returns the early ones in loading order."""
    [tree] = (kernel / "lib" / "modules").iterdir()
    version = tree.name
    whole = root / "lib" / "modules" / version
    whole.parent.mkdir(exist_ok=True)
    tree.rename(whole)
    _run("chroot", str(root), "depmod", version)
    listings = {
        module: [
            line.split()[1]
            for line in _run(
                *("chroot", str(root), "modprobe", "-S", version, "--show-depends", module)
            ).splitlines()
            if line.startswith("insmod ")
        ]
        for module in MODULES
    }
    wanted = {path for paths in listings.values() for path in paths}
    for path in whole.rglob("*.ko"):
        if f"/{path.relative_to(root)}" not in wanted:
            path.unlink()
    _run("chroot", str(root), "depmod", version)
    early = dict.fromkeys(path for module in EARLY_MODULES for path in listings[module])
    return [root / path.lstrip("/") for path in early]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        tail = " / ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise LabGuestError(f"Building the SAN guest failed in `{' '.join(command[:4])}`: {tail}")
    return done.stdout
