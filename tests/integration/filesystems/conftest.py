"""Real ext images, filled through the kernel, and the kernel's own view of them as the truth."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from linux_trees import Guest, fill, mounted, view

FORMS = {
    "ext4": ["-t", "ext4"],
    "ext4-inline": ["-t", "ext4", "-O", "inline_data,ea_inode"],
    "ext4-inodes512-1k": ["-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data"],
    "ext4-meta-groups": ["-t", "ext4", "-O", "meta_bg,^resize_inode,^flex_bg", "-g", "8192"],
    "ext3": ["-t", "ext3", "-b", "1024"],
    "ext2-inodes128": ["-t", "ext2", "-I", "128", "-b", "1024"],
}


def make(image: Path, form: str, megabytes: int) -> None:
    """An empty file system of that form."""
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    command = ["mke2fs", "-q", "-F", "-L", f"L-{form}"[:16], *FORMS[form], image]
    subprocess.run(command, check=True)


@pytest.fixture(scope="session", params=list(FORMS))
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A cleanly unmounted file system of each form."""
    work = tmp_path_factory.mktemp(f"guest-{request.param}")
    image = work / "guest.img"
    make(image, request.param, 300)
    with mounted(image, work / "mnt") as top:
        fill(top, request.param)
    return Guest(request.param, image, view(image, work))


@pytest.fixture(scope="session", params=["ext4", "ext3", "ext4-inline"])
def dirty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A file system copied while it was mounted, with changes in its journal alone."""
    work = tmp_path_factory.mktemp(f"dirty-{request.param}")
    live, image = work / "live.img", work / "guest.img"
    make(live, request.param, 200)
    with mounted(live, work / "mnt") as top:
        (top / "base").mkdir()
        (top / "gone").mkdir()
        for number in range(300):
            (top / "base" / f"f{number}").write_text(f"base {number}")
        (top / "overwrite").write_text("v1")
        (top / "gone" / "x").write_text("x")
    with mounted(live, work / "mnt") as top:
        (top / "new").mkdir()
        for number in range(500):
            (top / "new" / f"n{number}").write_text(f"new {number}")
        shutil.rmtree(top / "gone")
        (top / "base" / "f1").rename(top / "base" / "renamed")
        (top / "overwrite").write_bytes(b"Z" * 100000)
        os.setxattr(top / "new" / "n1", "user.a", b"b")
        subprocess.run(["sync", "-f", top], check=True)
        with (top / "new" / "synced").open("w") as file:
            file.write("synced content\n")
            file.flush()
            os.fsync(file.fileno())
        subprocess.run(["cp", "--sparse=always", live, image], check=True)
    live.unlink()
    return Guest(request.param, image, view(image, work))
