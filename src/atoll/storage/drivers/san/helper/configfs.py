"""LIO's configuration as the kernel shows it: directories and files below /sys/kernel/config/target.

Layout: the kernel's drivers/target/target_core_configfs.c and target_core_fabric_configfs.c.
"""

import os
from contextlib import suppress
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.drivers.san.helper.failures import run

_ROOT = Path("/sys/kernel/config")


def root() -> Path:
    """The directory of LIO, mounted and loaded when it is not."""
    target = _ROOT / "target"
    if not target.is_dir():
        if not _ROOT.is_dir() or not _ROOT.is_mount():
            run(["modprobe", "-a", "configfs"])
            run(["mount", "-t", "configfs", "configfs", str(_ROOT)])
        if not target.is_dir():
            run(["modprobe", "-a", "target_core_mod"])
    return target


def fabric_directory(fabric: str, module: str) -> Path:
    """The directory of a fabric, its module loaded when it is not."""
    place = root() / fabric
    if not place.is_dir():
        run(["modprobe", "-a", module])
        make(place)
    return place


def make(path: Path) -> bool:
    """Make an object; whether it was not there."""
    if path.is_dir():
        return False
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove an object; absent is success. What it holds of its own goes with it."""
    with suppress(FileNotFoundError):
        path.rmdir()


def write(path: Path, value: str) -> None:
    """Set an attribute. StorageUnreachableError says which one the kernel refused, never to what."""
    try:
        # As it is: a line's end would become part of some values.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageUnreachableError(
            f"LIO refused {path.relative_to(_ROOT)}: {error.strerror}; see the SAN server's "
            "kernel log."
        ) from error


def read(path: Path) -> str:
    """An attribute; empty when it is not there."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return ""


def link(path: Path, to: Path) -> None:
    """Have the object `path` use `to`."""
    if links(path) != [to]:
        unlink(path)
        (path / "atoll").symlink_to(to)


def links(path: Path) -> list[Path]:
    """What an object uses."""
    if not path.is_dir():
        return []
    return [each.resolve() for each in path.iterdir() if each.is_symlink()]


def unlink(path: Path) -> None:
    """Have an object use nothing."""
    if path.is_dir():
        for each in path.iterdir():
            if each.is_symlink():
                each.unlink()


def children(path: Path) -> list[Path]:
    """An object's objects, in order; none when it is not there."""
    if not path.is_dir():
        return []
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.is_symlink())
