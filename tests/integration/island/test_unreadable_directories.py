"""A directory that cannot be listed says so when it is opened."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from mounted_tree import mounted_tree, served_vm

pytestmark = pytest.mark.needs_root


def test_opening_fails_because_some_software_takes_an_error_of_readdir_for_the_end(
    tmp_path: Path,
) -> None:
    files, image = tmp_path / "files", tmp_path / "image"
    for name in ("good", "bad"):
        (files / name).mkdir(parents=True)
        (files / name / "file").write_bytes(b"x")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, image], check=True)
    # The directory's one extent begins beyond the volume.
    subprocess.run(
        ["debugfs", "-w", "-R", "set_inode_field /bad block[5] 0x7fffff00", image],
        check=True,
        capture_output=True,
    )
    nowhere = tmp_path / "nowhere"
    with mounted_tree(
        [served_vm("db1", [image]), served_vm("gone", [nowhere])], tmp_path / "tree"
    ) as tree:
        top = tree.top / "db1/files"
        assert os.listdir(top / "good") == ["file"]
        for place in (top / "bad", tree.top / "gone/volumes"):
            with pytest.raises(OSError) as caught:
                os.close(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
            assert caught.value.errno == errno.EIO
