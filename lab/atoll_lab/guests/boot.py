"""A system disk that boots by itself: partition table, GRUB in the gap before it, kernel, initramfs."""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from atoll_lab.guests.errors import LabGuestError

GRUB = Path("/usr/lib/grub/i386-pc")
BUSYBOX = Path("/bin/busybox")
PARTITION_OFFSET = 1 << 20
SECTOR = 512
KERNEL_ARGUMENTS = (
    "ro quiet loglevel=4 console=ttyS0,115200 panic=5 mitigations=off nokaslr "
    "random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0 nowatchdog"
)


def install_boot_files(
    root: Path, kernel: Path, modules: Sequence[Path], init: Path, uuid: str
) -> None:
    """Put kernel, initramfs and GRUB's menu under `root`/boot.

    `modules` are loaded in that order by `init`, the initramfs's first program,
    which finds the file system by `uuid`.
    """
    grub = root / "boot" / "grub"
    grub.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kernel, root / "boot" / "vmlinuz")
    (root / "boot" / "initrd.img").write_bytes(_initramfs(modules, init))
    (grub / "grub.cfg").write_text(
        "set timeout=0\n"
        "menuentry 'Debian GNU/Linux' {\n"
        f"  linux /boot/vmlinuz root=UUID={uuid} {KERNEL_ARGUMENTS}\n"
        "  initrd /boot/initrd.img\n"
        "}\n"
    )


def make_bootable(disk: Path) -> None:
    """Write the partition table and GRUB into a disk whose file system starts at PARTITION_OFFSET.

    GRUB's boot and core images are placed by hand because its installer wants
    real devices. Layout: GRUB 2.06, `grub-core/boot/i386/pc/boot.S`,
    `diskboot.S` and `include/grub/offsets.h`.
    """
    size_sectors = disk.stat().st_size // SECTOR
    first = PARTITION_OFFSET // SECTOR
    core = _core_image()
    if len(core) > PARTITION_OFFSET - SECTOR:
        raise LabGuestError("GRUB's core image does not fit before the first partition.")
    boot = bytearray((GRUB / "boot.img").read_bytes())
    struct.pack_into("<Q", boot, 0x5C, 1)  # the core image starts at sector 1
    boot[0x66:0x68] = b"\x90\x90"  # trust the BIOS's drive number, as GRUB does on hard disks
    # The core image's own first sector loads the rest: where from, how many sectors, to where.
    rest = -(-len(core) // SECTOR) - 1
    core = core.ljust((rest + 1) * SECTOR, b"\0")
    core = core[:0x1F4] + struct.pack("<QHH", 2, rest, 0x820) + core[0x200:]
    partition = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", first, size_sectors - first
    )
    sector = bytes(boot[:0x1B8]).ljust(0x1B8, b"\0") + b"ATOL\0\0" + partition
    with disk.open("r+b") as target:
        target.write(sector.ljust(0x1FE, b"\0") + b"\x55\xaa")
        target.write(core)


def _core_image() -> bytes:
    modules = ["biosdisk", "part_msdos", "ext2", "normal", "configfile", "linux"]
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "core.img"
        _run(
            "grub-mkimage",
            *("-O", "i386-pc", "-d", str(GRUB), "-p", "(hd0,msdos1)/boot/grub"),
            *("-o", str(output)),
            *modules,
        )
        return output.read_bytes()


def _initramfs(modules: Sequence[Path], init: Path) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in ("bin", "dev", "proc", "new", "modules"):
            (tree / name).mkdir()
        shutil.copyfile(BUSYBOX, tree / "bin" / "busybox")
        (tree / "bin" / "busybox").chmod(0o755)
        shutil.copyfile(init, tree / "init")
        (tree / "init").chmod(0o755)
        for position, module in enumerate(modules):
            shutil.copyfile(module, tree / "modules" / f"{position:02d}-{module.name}")
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        done = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=tree,
            input=names.encode(),
            capture_output=True,
            check=True,
        )
        return done.stdout


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabGuestError(f"`{command[0]}` failed: {done.stderr.strip()}")
