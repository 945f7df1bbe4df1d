"""A guest that keeps its parser busy keeps its own readers waiting, and nobody else's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from atoll.filesystems import session
from atoll.island import guests
from mounted_tree import MountedTree, mounted_tree, served_vm

pytestmark = pytest.mark.needs_root

READERS = 300
HONEST_MB, SLOW_MB = 16, 17
# Lists a directory of files and never says where their content lies. Of images of another size it
# is the real parser.
SLOW = """
import json, os, runpy, struct, sys, time
if sys.argv[2] != "{slow_bytes}":
    runpy.run_module("atoll.filesystems.parser", run_name="__main__", alter_sys=True)
    sys.exit()
def send(kind, payload=b""):
    data = struct.pack("<BI", kind, len(payload)) + payload
    while data:
        data = data[os.write(0, data):]
def row(name, kind, inode):
    size = struct.calcsize("<IBBBxHHIIIIIIIQQQqqqIII")
    return struct.pack("<IBBBxHHIIIIIIIQQQqqqIII", size + len(name), kind, 1, 0, len(name), 0o755,
        0, 0, 1, 0, 0, 0, 0, inode, 4096, 0, 0, 0, 0, 0, 0, 0) + name
send(3, json.dumps(["ext4", "", "", "clean"]).encode())
while os.read(0, 5):
    verb, where = json.loads(os.read(0, 65536))
    if verb == "stat":
        root = ["/", "directory", 0, 0o755, 0, 0, 0, 0, 0, 2, 2, None, None, [], 0]
        send(5, json.dumps([root]).encode())
    elif verb == "node":
        send(11, row(b"", 2, 2))
    elif verb == "children":
        send(11, b"".join(row(b"f%d" % n, 1, 100 + n) for n in range({readers})))
    else:
        time.sleep(3600)
    send(8)
"""


def ext4(image: Path, tree: Path, megabytes: int) -> Path:
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), image], check=True)
    return image


def parsers(script: Path) -> list[int]:
    """The processes that parse the slow guest's volume."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if {os.fsencode(script), b"%d" % (SLOW_MB << 20)} <= set(
                place.read_bytes().split(b"\0")
            ):
                found.append(int(place.parent.name))
    return found


def parked(tree: MountedTree) -> int:
    """How many requests wait without a thread."""
    return sum(map(len, list(tree.server._lanes._waiting.values())))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(slow_bytes=SLOW_MB << 20, readers=READERS))
    monkeypatch.setattr(session, "PARSER", (str(script),))
    # So that it is slow for as long as the test takes; at its end it is killed.
    monkeypatch.setattr(guests, "_LIMITS", session.Limits(patience_seconds=600))
    return script


@pytest.fixture
def tree(script: Path, tmp_path: Path) -> Iterator[MountedTree]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "file").write_bytes(b"g" * 100_000)
    honest = ext4(tmp_path / "honest", files, HONEST_MB)
    slow = ext4(tmp_path / "slow", files, SLOW_MB)
    with mounted_tree([served_vm("slow", [slow]), served_vm("db1", [honest])], tmp_path / "t") as t:
        yield t


def test_others_are_served_while_hundreds_wait_for_a_slow_guest(
    tree: MountedTree, script: Path, tmp_path: Path
) -> None:
    slow = tree.top / "slow/volumes/disk1-part0"
    names = os.listdir(slow)
    assert len(names) == READERS

    def read(name: str) -> OSError | bytes:
        try:
            return (slow / name).read_bytes()
        except OSError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        waiting = [pool.submit(read, name) for name in names]
        try:
            while parked(tree) < READERS // 2:
                assert not any(reader.done() for reader in waiting)
                time.sleep(0.01)
            for path, source in (
                ("db1/files/file", tmp_path / "files/file"),
                ("db1/image/raw/disk1.img", tmp_path / "honest"),
                ("slow/image/raw/disk1.img", tmp_path / "slow"),
            ):
                done = subprocess.run(
                    ["cmp", tree.top / path, source], check=False, capture_output=True, timeout=120
                )
                assert done.returncode == 0, done.stderr
            assert not any(reader.done() for reader in waiting)
            before = parked(tree)
            seeks = f"import os; os.lseek(os.open({str(slow / names[0])!r}, 0), 0, os.SEEK_DATA)"
            with subprocess.Popen([sys.executable, "-c", seeks]) as killed:
                while parked(tree) == before:
                    assert killed.poll() is None
                    time.sleep(0.01)
                killed.kill()
                killed.wait(120)  # without waiting for the guest
            assert parked(tree) == before
            assert not any(reader.done() for reader in waiting)
        finally:
            while not all(reader.done() for reader in waiting):
                for process in parsers(script):
                    os.kill(process, signal.SIGKILL)
                time.sleep(0.05)
    assert all(isinstance(reader.result(), OSError) for reader in waiting)
    assert (tree.top / "db1/files/file").stat().st_size == 100_000
