"""XFS in use: images whose log was not replayed, against what the kernel shows after it replayed a copy."""

import hashlib
import os
import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from linux_trees import (
    Guest,
    assert_as_the_kernel_sees,
    assert_content,
    assert_scanned,
    mounted,
    view,
)
from xfs_images import FORMS, Changes, LogWriter, make

from atoll.blocks.readers import FileReader
from atoll.filesystems import xfs_replay
from atoll.filesystems.session import open_filesystem
from atoll.filesystems.xfs import open_volume
from atoll.filesystems.xfs_superblock import read_geometry
from atoll.model.errors import UnsupportedFormatError

pytestmark = pytest.mark.needs_root

SMALL_LOG = ["-l", "size=6m"]  # so small that it is gone round
_SECTOR = 512


def shut_down(how: str) -> Callable[[Path, Path, Path], None]:
    """The image as a shutdown leaves it, with the last changes in the log or without."""

    def act(top: Path, live: Path, image: Path) -> None:
        subprocess.run(["xfs_io", "-x", "-c", how, top], check=True)
        subprocess.run(["cp", "--sparse=always", live, image], check=True)

    return act


def copied(top: Path, live: Path, image: Path) -> None:
    """The image as it is while it is mounted."""
    subprocess.run(["cp", "--sparse=always", live, image], check=True)


def frozen(top: Path, live: Path, image: Path) -> None:
    """The image while it is frozen, which XFS leaves with a log to replay."""
    subprocess.run(["fsfreeze", "-f", top], check=True)
    try:
        copied(top, live, image)
    finally:
        subprocess.run(["fsfreeze", "-u", top], check=True)


WAYS = {"flushed": shut_down("shutdown -f"), "cut": shut_down("shutdown"), "copied": copied}


def assert_replayed(image: Path, work: Path) -> int:
    """What is read is what the kernel shows; returns how much that is."""
    truth = view(image, work)
    with open_filesystem(FileReader(image)) as session:
        assert session.journal == "replayed"
        assert_as_the_kernel_sees(session, truth)
    assert_scanned(image, truth)
    return len(truth)


def rounds(work: Path, options: list[str], seed: int, count: int, changes: int) -> None:
    """Change a file system at random and stop it; look at it; go on from there."""
    live, image = work / "live.img", work / "guest.img"
    make(live, options, 200)
    rnd = random.Random(seed)
    for number in range(count):
        way = rnd.choice(list(WAYS))
        logs = rnd.choice(("", ",logbsize=256k", ",logbsize=64k"))
        with mounted(live, work / "mnt", f"loop{logs}") as top:
            Changes(top, rnd).make(changes)
            WAYS[way](top, live, image)
        assert assert_replayed(image, work) > 1, (seed, number, way)


@pytest.mark.parametrize(("form", "seed"), [("xfs", 1), ("xfs-1k-blocks", 2)])
def test_random_changes_are_replayed_as_the_kernel_does(
    form: str, seed: int, tmp_path: Path
) -> None:
    rounds(tmp_path, FORMS[form] + SMALL_LOG, seed, 2, 130)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("form", list(FORMS))
def test_many_random_changes_are_replayed(form: str, seed: int, tmp_path: Path) -> None:
    options = FORMS[form] if "-l" in FORMS[form] else FORMS[form] + ["-l", "size=16m"]
    rounds(tmp_path, options, 1000 + seed, 4, 900)


def busy(top: Path, seed: int, stop: threading.Event) -> None:
    """Changes in a directory of its own, until the file system is gone."""
    place = top / f"busy{seed}"
    place.mkdir()
    changes = Changes(place, random.Random(seed))
    while not stop.is_set():
        try:
            changes.make(20)
        except (OSError, subprocess.CalledProcessError):
            return


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 40))]
)
def test_work_that_is_cut_off_in_the_middle(seed: int, tmp_path: Path) -> None:
    live, image = tmp_path / "live.img", tmp_path / "guest.img"
    make(live, SMALL_LOG, 200)
    stop = threading.Event()
    rnd = random.Random(seed)
    with mounted(live, tmp_path / "mnt") as top:
        workers = [
            threading.Thread(target=busy, args=(top, seed * 100 + number, stop))
            for number in range(3)
        ]
        for worker in workers:
            worker.start()
        try:
            stop.wait(0.3 + rnd.random())
            WAYS[rnd.choice(("flushed", "cut"))](top, live, tmp_path / "unused")
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    live.rename(image)
    assert assert_replayed(image, tmp_path) > 1


@pytest.mark.parametrize("way", ["flushed", "frozen"])
def test_changes_in_the_log_alone_are_part_of_what_is_read(way: str, tmp_path: Path) -> None:
    live, image = tmp_path / "live.img", tmp_path / "guest.img"
    make(live, SMALL_LOG, 60)
    with mounted(live, tmp_path / "mnt") as top:
        (top / "gone").mkdir()
        (top / "gone" / "x").write_text("x")
        (top / "kept").write_bytes(b"1" * 20000)
    with mounted(live, tmp_path / "mnt") as top:
        (top / "new").mkdir()
        for number in range(400):
            (top / "new" / f"n{number}").write_text(f"new {number}")
        shutil.rmtree(top / "gone")
        (top / "kept").rename(top / "renamed")
        os.setxattr(top / "renamed", "user.a", b"b" * 3000)
        subprocess.run(["cp", "--reflink=always", top / "renamed", top / "shared"], check=True)
        with (top / "shared").open("r+b") as file:
            file.write(b"2")
            os.fsync(file.fileno())
        (frozen if way == "frozen" else WAYS[way])(top, live, image)
    before = hashlib.sha256(image.read_bytes()).digest()
    assert assert_replayed(image, tmp_path) == 404
    assert hashlib.sha256(image.read_bytes()).digest() == before
    assert_content(Guest("xfs", image, view(image, tmp_path)))


def mapping_intent(
    inode: int, identity: int, *, kind: int, at: int, block: int, blocks: int = 1
) -> bytes:
    """An announcement that blocks of a file are to be mapped (1) or unmapped (2) (xfs_bui_log_format)."""
    return struct.pack("<HHIQ QQQII", 0x1244, 1, 1, identity, inode, block, at, blocks, kind)


def buffer_of(sector: int, content: bytes, flags: int = 9 << 11) -> list[bytes]:
    """A change of the first bytes of a block (xfs_buf_log_format)."""
    pieces = (1 << len(content) // 128) - 1
    return [struct.pack("<HHHHqII", 0x123C, 2 if content else 1, flags, 8, sector, 1, pieces)] + [
        content
    ] * bool(content)


@pytest.fixture
def clean(tmp_path: Path) -> tuple[Path, int, int]:
    """An image with two files, the inode of the second, and where its content lies, in sectors."""
    image = tmp_path / "guest.img"
    make(image, SMALL_LOG, 40)
    with mounted(image, tmp_path / "mnt") as top:
        (top / "first").write_bytes(b"1" * 5000)
        (top / "second").write_bytes(b"2" * 5000)
        os.setxattr(top / "second", "user.a", b"b")
    with open_filesystem(FileReader(image)) as session:
        inode = session.stat("/second").inode
        places = session.node(inode).places
        assert places
    return image, inode, places[0].at // _SECTOR


def content_of(image: Path, path: str) -> bytes:
    with open_filesystem(FileReader(image)) as session:
        return b"".join(data.content for data in session.read(path))


def test_an_announced_mapping_is_finished_as_recovery_does(clean: tuple[Path, int, int]) -> None:
    image, inode, sector = clean
    log = LogWriter(image)
    block, size = sector // 8, read_geometry(FileReader(image)).block_size
    assert size == 4096
    log.add([mapping_intent(inode, 5, kind=2, at=0, block=block)])
    assert content_of(image, "/second") == b"2" * 904
    assert_content(Guest("xfs", image, view(image, image.parent)))
    # The whole of what a copy-on-write does: the old block goes, another comes in its place.
    log.add([mapping_intent(inode, 6, kind=1, at=0, block=block + 1)])
    assert content_of(image, "/second") == b"2" * 904 + bytes(3192) + b"2" * 904
    assert_replayed(image, image.parent)


def test_an_announced_change_that_was_made_is_no_matter(clean: tuple[Path, int, int]) -> None:
    image, inode, sector = clean
    log = LogWriter(image)
    log.add([mapping_intent(inode, 5, kind=2, at=0, block=sector // 8)])
    log.add([struct.pack("<HHIQ", 0x1245, 1, 0, 5)])
    assert content_of(image, "/second") == b"2" * 5000


def test_an_announced_exchange_that_was_not_made_is_said(clean: tuple[Path, int, int]) -> None:
    image, inode, _ = clean
    head = struct.pack("<HHIQQQ", 0x1248, 1, 0, 5, inode, 1 << 20)
    LogWriter(image).add([head.ljust(88, b"\0")])
    with open_filesystem(FileReader(image)) as session:
        assert {entry.name for entry in session.list("/")} == {"first", "second"}
        assert session.xattrs("/second") == {"user.a": b"b"}
        with pytest.raises(UnsupportedFormatError, match="announced in the log"):
            list(session.read("/second"))
        assert len(b"".join(data.content for data in session.read("/first"))) == 5000


def test_attributes_that_were_being_changed_are_said(clean: tuple[Path, int, int]) -> None:
    image, inode, _ = clean
    LogWriter(image).add([struct.pack("<HHIQQ", 0x1246, 1, 0, 5, inode).ljust(40, b"\0")])
    assert content_of(image, "/second") == b"2" * 5000
    with (
        open_filesystem(FileReader(image)) as session,
        pytest.raises(UnsupportedFormatError, match="attributes of inode"),
    ):
        session.xattrs("/second")


def test_what_was_freed_later_is_not_changed(clean: tuple[Path, int, int]) -> None:
    """A block that was metadata, was freed, and now is a file's: its old changes must not come back."""
    image, _, sector = clean
    log = LogWriter(image)
    log.add(buffer_of(sector, b"X" * 256))
    assert content_of(image, "/second") == b"X" * 256 + b"2" * 4744
    log.add(buffer_of(sector, b"", flags=2))
    assert content_of(image, "/second") == b"2" * 5000
    log.add(buffer_of(sector, b"Y" * 128))
    assert content_of(image, "/second") == b"Y" * 128 + b"2" * 4872
    assert_content(Guest("xfs", image, view(image, image.parent)))


def test_what_is_newer_on_disk_than_in_the_log_stays(clean: tuple[Path, int, int]) -> None:
    image, _, sector = clean
    log = LogWriter(image)
    known = read_geometry(FileReader(image))
    head = b"XSLM" + bytes(12) + known.meta_uuid + bytes(16)
    for lsn, replayed in ((log.tail + 100, False), (log.tail - 1, True)):
        with image.open("r+b") as file:
            file.seek(sector * _SECTOR)
            file.write(head + lsn.to_bytes(8))
        if not replayed:
            log.add(buffer_of(sector, b"Z" * 256))
        assert (content_of(image, "/second")[:256] == b"Z" * 256) == replayed


def test_a_transaction_without_its_commit_is_not_made(clean: tuple[Path, int, int]) -> None:
    image, _, sector = clean
    log = LogWriter(image)
    log.add(buffer_of(sector, b"X" * 256), committed=False)
    assert content_of(image, "/second") == b"2" * 5000


def test_a_record_that_was_being_written_is_left_out(clean: tuple[Path, int, int]) -> None:
    image, _, sector = clean
    log = LogWriter(image)
    log.add(buffer_of(sector, b"X" * 256))
    log.add(buffer_of(sector, b"Y" * 256), broken=True)
    assert content_of(image, "/second") == b"X" * 256 + b"2" * 4744
    assert_content(Guest("xfs", image, view(image, image.parent)))


def test_a_broken_record_before_others_is_refused(clean: tuple[Path, int, int]) -> None:
    image, _, sector = clean
    log = LogWriter(image)
    log.add(buffer_of(sector, b"X" * 256))
    log.add(buffer_of(sector, b"Y" * 256), broken=True)
    for _ in range(9):  # more than can be under way at a time
        log.add(buffer_of(sector, b"Z" * 256))
    with pytest.raises(UnsupportedFormatError, match="a mount would refuse"):
        open_filesystem(FileReader(image))


def test_more_changes_than_fit_into_memory_are_refused(
    clean: tuple[Path, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _, sector = clean
    monkeypatch.setattr(xfs_replay, "_MAX_HELD_BYTES", 20_000)
    log = LogWriter(image)
    log.add(buffer_of(sector, b"X" * 256))
    assert open_volume(FileReader(image)).journal == "replayed"
    for number in range(60):
        log.add(buffer_of(sector + 8 * number, b"X" * 256))
    with pytest.raises(UnsupportedFormatError, match="more changes than"):
        open_volume(FileReader(image))


def test_a_change_of_an_unknown_kind_is_refused(clean: tuple[Path, int, int]) -> None:
    image, _, _ = clean
    LogWriter(image).add([struct.pack("<HHIQ", 0x12FF, 1, 0, 0)])
    with pytest.raises(UnsupportedFormatError, match="of a kind"):
        open_filesystem(FileReader(image))


def test_the_older_format_is_refused_when_its_log_holds_changes(tmp_path: Path) -> None:
    image = tmp_path / "guest.img"
    make(image, ["-m", "crc=0", *SMALL_LOG], 40)
    log = LogWriter(image)
    log.add([struct.pack("<HHHHqII", 0x123C, 2, 0, 1, 0, 1, 1), bytes(128)])
    with open_filesystem(FileReader(image)) as session:
        assert list(session.list("/")) == []  # a freeze leaves the superblock's counters there
    log.add(buffer_of(4096, b"X" * 256))
    with pytest.raises(UnsupportedFormatError, match="older format"):
        open_filesystem(FileReader(image))
