"""What damaged and hostile guests do to the tree that shows them: harm to themselves, at most."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from atoll.filesystems import session
from mounted_tree import mounted_tree, served_vm

pytestmark = pytest.mark.needs_root


def make(image: Path, tree: Path | None = None, megabytes: int = 16) -> Path:
    """An ext4 image with a tree in it, made without mounting anything."""
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    source = ["-d", str(tree)] if tree else []
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *source, image], check=True)
    return image


def debugfs(image: Path, *commands: str) -> None:
    subprocess.run(
        ["debugfs", "-w", "-f", "-", image],
        input="\n".join(commands).encode(),
        check=True,
        capture_output=True,
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    (files / "good").mkdir(parents=True)
    (files / "bad").mkdir()
    (files / "good/file").write_bytes(b"g" * 100_000)
    (files / "bad/file").write_bytes(b"b" * 100_000)
    (files / "bad/beside").write_bytes(b"beside")
    return files


def number(caught: pytest.ExceptionInfo[OSError]) -> int | None:
    return caught.value.errno


def test_damage_is_told_where_it_is_and_nowhere_else(files: Path, tmp_path: Path) -> None:
    image = make(tmp_path / "image", files)
    # A file whose extent tree points beyond the volume, and a directory that is not in use.
    debugfs(
        image,
        "set_inode_field /bad/file block[5] 0x7fffff00",
        "set_inode_field /bad/beside links_count 0",
    )
    with mounted_tree([served_vm("db1", [image]), served_vm("app1", [image])], tmp_path / "t") as t:
        top = t.top / "db1/files"
        assert (top / "good/file").read_bytes() == b"g" * 100_000
        assert sorted(os.listdir(top / "bad")) == ["beside", "file"]
        with pytest.raises(OSError) as caught:
            (top / "bad/file").read_bytes()
        assert number(caught) == errno.EIO
        with pytest.raises(OSError) as caught:
            (top / "bad/beside").stat()
        assert number(caught) == errno.EIO
        assert any("outside" in str(error) for error in t.failures)
        listed = subprocess.run(
            ["ls", "-lR", t.top / "app1/files"], capture_output=True, check=False
        )
        assert listed.returncode == 1
        assert b"100000" in listed.stdout


def test_a_directory_that_contains_itself_ends(files: Path, tmp_path: Path) -> None:
    image = make(tmp_path / "image", files)
    debugfs(image, "link /bad /good/again", "link / /bad/top", "link /bad /bad/self")
    with mounted_tree([served_vm("db1", [image])], tmp_path / "t") as t:
        walked = subprocess.run(
            ["find", t.top / "db1/files"], capture_output=True, text=True, check=False, timeout=60
        )
        assert f"{t.top}/db1/files/good/file" in walked.stdout
        assert len(walked.stdout.splitlines()) < 30


def test_impossible_names_are_never_shown(files: Path, tmp_path: Path) -> None:
    image = make(tmp_path / "image", files)
    raw = bytearray(image.read_bytes())
    at = raw.index(b"beside")
    raw[at : at + 6] = b"a/../b"
    image.write_bytes(raw)
    with mounted_tree([served_vm("db1", [image])], tmp_path / "t") as t:
        with pytest.raises(OSError) as caught:
            os.listdir(t.top / "db1/files/bad")
        assert number(caught) == errno.EIO
        assert (t.top / "db1/files/good/file").stat().st_size == 100_000


def test_a_parser_that_dies_or_lies_costs_its_volume_alone(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make(tmp_path / "image", files)
    liar = tmp_path / "liar.py"
    # Greets like the real one, then says that a directory has the entry `..` in it.
    liar.write_text(
        "import json, os, struct, sys\n"
        "def send(kind, payload=b''):\n"
        "    os.write(0, struct.pack('<BI', kind, len(payload)) + payload)\n"
        "send(3, json.dumps(['ext4', '', '', 'clean']).encode())\n"
        "row = ['/', 'directory', 0, 0o755, 0, 0, 0, 0, 0, 2, 2, None, None, [], 0, None]\n"
        "while os.read(0, 5):\n"
        "    verb, where = json.loads(os.read(0, 65536))\n"
        "    row[0] = '/..' if verb == 'children' else '/'\n"
        "    send(5, json.dumps([row]).encode())\n"
        "    send(8)\n"
    )
    with mounted_tree([served_vm("liar", [image]), served_vm("db1", [image])], tmp_path / "t") as t:
        with monkeypatch.context() as patch:
            patch.setattr(session, "PARSER", (str(liar),))
            for _ in range(10):
                with pytest.raises(OSError) as caught:
                    os.listdir(t.top / "liar/volumes/disk1-part0")
                assert number(caught) == errno.EIO
        assert (t.top / "db1/files/good/file").read_bytes() == b"g" * 100_000
        assert any("impossible path" in str(error) for error in t.failures)


def test_a_listing_that_is_large_stays_small_in_memory(tmp_path: Path) -> None:
    """Many names of full length, in a directory made without writing each of them."""
    top = tmp_path / "files"
    (top / "d").mkdir(parents=True)
    (top / "one").write_bytes(b"1")
    for count in range(1200):
        os.link(top / "one", top / "d" / f"{count:06d}{'x' * 240}")
    image = make(tmp_path / "image", top)
    with mounted_tree([served_vm("db1", [image])], tmp_path / "t") as t:
        names = os.listdir(t.top / "db1/files/d")
        assert sorted(names) == sorted(os.listdir(top / "d"))
        wanted = t.top / "db1/files/d" / f"{1111:06d}{'x' * 240}"
        assert wanted.stat().st_ino == (t.top / "db1/files/one").stat().st_ino
        assert wanted.stat().st_nlink == 1201
