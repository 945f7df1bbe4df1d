"""What damaged and hostile guests do to the tree that shows them: harm to themselves, at most."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
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
        "root = ['/', 'directory', 0, 0o755, 0, 0, 0, 0, 0, 2, 2, None, None, [], 0]\n"
        "def row(name):\n"
        "    head = len(name), 0o755, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0\n"
        "    head = 2, 1, 0, *head\n"
        "    size = struct.calcsize('<IBBBxHHIIIIIIIQQQqqqIII')\n"
        "    return struct.pack('<IBBBxHHIIIIIIIQQQqqqIII', size + len(name), *head) + name\n"
        "while os.read(0, 5):\n"
        "    verb, where = json.loads(os.read(0, 65536))\n"
        "    if verb == 'stat':\n"
        "        send(5, json.dumps([root]).encode())\n"
        "    else:\n"
        "        send(11, row(b'..' if verb == 'children' else b''))\n"
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
        assert any("impossible name" in str(error) for error in t.failures)


def test_a_parser_killed_once_makes_no_other_volume_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    for name in ("root", "older"):
        files = tmp_path / f"files-{name}"
        (files / "etc").mkdir(parents=True)
        (files / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
        (files / "which").write_text(name)
        images.append(make(tmp_path / name, files))
    once = tmp_path / "once.py"
    once.write_text(
        "import os, runpy, signal\n"
        "try:\n"
        f"    os.close(os.open({str(tmp_path / 'killed')!r}, os.O_CREAT | os.O_EXCL))\n"
        "except FileExistsError:\n"
        "    runpy.run_module('atoll.filesystems.parser', run_name='__main__', alter_sys=True)\n"
        "else:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setattr(session, "PARSER", (str(once),))
    with mounted_tree([served_vm("db1", images)], tmp_path / "t") as t:
        assert (t.top / "db1/files/which").read_text() == "root"
    assert (tmp_path / "killed").exists()


def test_absurd_sizes_are_zeros_or_damage(files: Path, tmp_path: Path) -> None:
    image = make(tmp_path / "image", files)
    debugfs(
        image,
        "set_inode_field /good/file size 0x4000000000000000",
        "set_inode_field /bad/file size 0x8000000000000000",
    )
    with mounted_tree([served_vm("db1", [image])], tmp_path / "t") as t:
        large = t.top / "db1/files/good/file"
        assert large.stat().st_size == 1 << 62
        with large.open("rb") as file:
            assert os.pread(file.fileno(), 100_000, 0) == b"g" * 100_000
            assert os.pread(file.fileno(), 1 << 20, 1 << 61) == bytes(1 << 20)
            with pytest.raises(OSError) as caught:
                os.lseek(file.fileno(), 1 << 61, os.SEEK_DATA)
            assert number(caught) == errno.ENXIO
        with pytest.raises(OSError) as caught:
            (t.top / "db1/files/bad/file").stat()
        assert number(caught) == errno.EIO
        assert (t.top / "db1/files/bad/beside").read_bytes() == b"beside"


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
        assert len(t.server._table) < 20, "something is kept for each name that the kernel knows"


SERVE = """
import sys
from mounted_tree import mounted_tree, served_vm
from pathlib import Path
with mounted_tree([served_vm("db1", [Path(sys.argv[1])])], Path(sys.argv[2])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def peak_mib(processes: list[int]) -> int:
    """The most that they have had in memory, together."""
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                total += int(line.split()[1])
    return total >> 10


def children(process: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(place.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(place.parent.name))
    return found


@pytest.mark.soak
def test_a_million_entries_stay_small_in_memory(tmp_path: Path) -> None:
    image = make(tmp_path / "image", megabytes=1500)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-N", "1001000", image], check=True)
    top = tmp_path / "loop"
    top.mkdir()
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    try:
        (top / "many").mkdir()
        for number in range(1_000_000):
            os.close(os.open(top / f"many/file-{number:08d}", os.O_CREAT | os.O_WRONLY))
    finally:
        subprocess.run(["umount", top], check=True)
    command = [sys.executable, "-c", SERVE, str(image), str(tmp_path / "t")]
    paths = os.pathsep.join(sys.path)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        many = tmp_path / "t/db1/volumes/disk1-part0/many"
        assert many.stat().st_nlink == 2
        processes = [server.pid, *children(server.pid)]
        assert len(processes) == 2
        before = peak_mib(processes)
        listed = subprocess.run(
            f"find {many} -printf '%s %i\\n' | sort -u | wc -l",
            shell=True,
            capture_output=True,
            check=True,
        )
        assert int(listed.stdout) == 1_000_001
        assert peak_mib(processes) - before < 400
        server.stdin.close()
