"""What one ordinary user of a guest can do to the restore of everybody's files."""

import os
import subprocess
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.guestfiles.browser import FileBrowser
from atoll.recovery.files import restore_files

pytestmark = pytest.mark.needs_root


def test_directories_nested_too_long_cost_nobody_else_their_files(tmp_path: Path) -> None:
    image, top = tmp_path / "image", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", image], check=True)
    top.mkdir()
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    try:
        below = os.open(top, os.O_RDONLY)
        for _ in range(300):
            os.mkdir(b"\xff" * 255, dir_fd=below)
            deeper = os.open(b"\xff" * 255, os.O_RDONLY, dir_fd=below)
            os.close(below)
            below = deeper
        os.close(below)
        (top / "zeros").mkdir()
        (top / "zeros" / "file").write_text("somebody else's")
    finally:
        subprocess.run(["umount", top], check=True)
    target = tmp_path / "target"
    with FileBrowser([("disk", FileReader(image))]) as browser:
        report = restore_files(browser, "/", target)
    assert (target / "zeros" / "file").read_text() == "somebody else's"
    assert report.missing == 1
    (note,) = report.not_kept
    assert "longer than 65536 characters" in note
