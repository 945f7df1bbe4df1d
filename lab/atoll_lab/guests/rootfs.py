"""The Debian tree all guests are made of, and the kernel they boot."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from atoll_lab.guests.cache import cached, content_key
from atoll_lab.guests.errors import LabGuestError

SUITE = "bookworm"
PACKAGES = (
    "acl",
    "attr",
    "iproute2",
    "kmod",
    "mariadb-server",
    "postgresql",
    "procps",
    "python3",
    "qemu-guest-agent",
    "restic",
)
# The cloud kernel has ext4 built in and knows little hardware besides virtio: small and quick.
KERNEL = "linux-image-cloud-amd64"
MODULES = (
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/char/virtio_console.ko",
)
# PostgreSQL's JIT pulls in 110 MB of LLVM and runs without it; the rest nobody reads in a lab.
UNWANTED = (
    "usr/lib/x86_64-linux-gnu/libLLVM*",
    "usr/lib/postgresql/*/lib/llvmjit*",
    "usr/lib/postgresql/*/lib/bitcode",
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/share/i18n/*",
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
    "var/log/*.log",
    "var/lib/mysql/*",
)


def rootfs() -> Path:
    """The cached tree: `root/` (Debian), `vmlinuz` and `modules/` in loading order by MODULES.

    Built once with debootstrap, as root and with the network; about 150 MB are
    fetched. Raises LabGuestError with the end of the log when that fails.
    """
    parts = [SUITE, KERNEL, *PACKAGES, *MODULES, *UNWANTED]
    return cached("rootfs", content_key(part.encode() for part in parts), _build)


def debian_tree(root: Path, packages: Sequence[str]) -> None:
    """A minimal Debian with these packages in the directory `root`."""
    _run(
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        SUITE,
        str(root),
        *_mirror(),
    )


def unpack_kernel(root: Path, package: str, into: Path) -> None:
    """Unpack the kernel that `package` names into `into`: `boot/vmlinuz-…` and `lib/modules/…`.

    `root` is a tree of `debian_tree`, whose apt fetches it. Not installed: its
    scripts would build an initramfs that lab guests have no use for.
    """
    _run("chroot", str(root), "apt-get", "update", "-qq")
    listing = _run("chroot", str(root), "apt-cache", "depends", package)
    names = [line.split()[-1] for line in listing.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise LabGuestError(f"{package} names no kernel; check the Debian mirror.")
    into.mkdir()
    _run("chroot", str(root), "sh", "-c", f"cd /tmp && apt-get download -qq {names[0]}")
    [archive] = (root / "tmp").glob("linux-image-*.deb")
    _run("dpkg-deb", "-x", str(archive), str(into))
    archive.unlink()


def slim(root: Path) -> None:
    """Remove what a lab guest can do without."""
    for pattern in UNWANTED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _build(work: Path) -> None:
    root = work / "root"
    debian_tree(root, PACKAGES)
    _take_kernel(work, root)
    slim(root)


def _mirror() -> list[str]:
    """Where this machine's own apt gets the suite from; nothing leaves it to debootstrap."""
    targets = _run("apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)")
    for line in targets.splitlines():
        codename, component, uri = line.split(maxsplit=2)
        if (codename, component) == (SUITE, "main"):
            return [uri]
    return []


def _take_kernel(work: Path, root: Path) -> None:
    kernel = work / "kernel"
    unpack_kernel(root, KERNEL, kernel)
    [image] = (kernel / "boot").glob("vmlinuz-*")
    shutil.copyfile(image, work / "vmlinuz")
    [tree] = (kernel / "lib" / "modules").iterdir()
    (work / "modules").mkdir()
    for module in MODULES:
        shutil.copyfile(tree / "kernel" / module, work / "modules" / Path(module).name)
    shutil.rmtree(kernel)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        tail = " / ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise LabGuestError(
            f"Building the lab's Debian tree failed in `{' '.join(command[:4])}`: {tail}"
        )
    return done.stdout
