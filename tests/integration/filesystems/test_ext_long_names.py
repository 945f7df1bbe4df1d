"""A directory of so many long names that no frame holds them all is listed whole."""

import os
import subprocess
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.service.cataloguing import catalogue_now

pytestmark = pytest.mark.needs_root


def test_many_names_of_255_bytes(tmp_path: Path) -> None:
    at, disk = tmp_path / "mounted", tmp_path / "disk"
    at.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, at], check=True)
    names = {f"{number:06d}" + "x" * 249 for number in range(34_000)}
    try:
        kept = at / "kept"
        kept.touch()
        for name in names:
            os.link(kept, at / name)
    finally:
        subprocess.run(["umount", at], check=True)
    listed = catalogue_now([("disk", FileReader(disk))]).list("/")
    assert {entry.name for entry in listed} == names | {"kept", "lost+found"}
    assert len({entry.inode for entry in listed}) == 2
