"""What the served tree is made of: layouts, listings, pools, kept answers, names."""

import errno
import random
import threading
from dataclasses import replace

import pytest

from atoll.blocks.vmdk import parse_descriptor
from atoll.filesystems.interface import Data, Entry, EntryKind, Placed
from atoll.filesystems.rows import Row, pack, pack_damaged
from atoll.island import listing as listing_module
from atoll.island.answers import Answers
from atoll.island.descriptor import flat_descriptor, flat_name, safe_name
from atoll.island.guest_tree import mount_points
from atoll.island.layout import FileLayout
from atoll.island.listing import Listing
from atoll.island.nodes import inode_number
from atoll.island.pool import Pool
from atoll.island.tree import vm_names
from atoll.model.errors import StorageUnreachableError, UnsupportedFormatError
from mounted_tree import served_vm
from repository_parts import MemoryDisk

ENTRY = Entry("/x", EntryKind.FILE, 1, 0o644, 0, 0, 0, 0, 0, 1, 12)


def test_a_layout_reads_as_the_file_is() -> None:
    volume = MemoryDisk(bytes(range(256)) * 16)
    pieces = [Placed(0, 100, 1000), Placed(100, 50, 10), Data(300, b"inline"), Placed(306, 94, 0)]
    layout = FileLayout(500, pieces)
    content = bytearray(500)
    for piece in pieces:
        data = volume.read(piece.at, piece.length) if isinstance(piece, Placed) else piece.content
        content[piece.offset : piece.offset + len(data)] = data
    chance = random.Random(7)
    for _ in range(500):
        offset, length = chance.randrange(520), chance.randrange(520)
        assert layout.read(volume, offset, length) == content[offset : offset + length]
    assert layout.data_or_hole(0, hole=True) == 150
    assert layout.data_or_hole(150, hole=False) == 300
    assert layout.data_or_hole(301, hole=True) == 400
    for offset, hole in ((450, False), (500, True), (500, False), (-1, True)):
        with pytest.raises(OSError) as caught:
            layout.data_or_hole(offset, hole)
        assert caught.value.errno == errno.ENXIO


def test_a_volume_that_ends_early_gives_an_error_not_zeros() -> None:
    layout = FileLayout(100, [Placed(0, 100, 50)])
    with pytest.raises(OSError, match="ends before"):
        layout.read(MemoryDisk(bytes(120)), 0, 100)


def test_content_outside_blocks_is_bounded() -> None:
    pieces = (Data(n << 20, bytes(1 << 20)) for n in range(65))
    with pytest.raises(UnsupportedFormatError, match="outside its blocks"):
        FileLayout(1 << 40, pieces)


def row(name: bytes, inode: int) -> Row:
    """A file's row, or that of a damaged name where the inode is 0."""
    if inode == 0:
        return Row(pack_damaged(name))
    return Row(pack(name, replace(ENTRY, inode=inode), (("user.n", name),), None))


@pytest.mark.parametrize("count", [0, 1, 300, 5000])
def test_a_listing_gives_back_what_it_was_given(count: int) -> None:
    rows = [row(b"n%06d\xff" % n, n * 3 % 7919 if n % 7 else 0) for n in range(count)]
    listing = Listing(iter(rows))
    assert len(listing) == count
    assert list(listing.rows()) == rows
    for start in (1, 255, 256, 257, 4999, count):
        assert list(listing.rows(start)) == rows[start:]
    assert all(listing.find(row.name) == row for row in rows)
    assert listing.find(b"none") is None
    assert all(listing.by_inode(row.inode) == row for row in rows if row.inode)
    assert listing.by_inode(0) is None
    assert listing.by_inode(7919) is None


def test_long_rows_make_short_chunks() -> None:
    rows = [
        Row(pack(b"%d" % n, replace(ENTRY, inode=n + 1), (("user.n", bytes(8000)),), None))
        for n in range(300)
    ]
    listing = Listing(iter(rows))
    assert list(listing.rows(1)) == rows[1:]
    assert listing.find(b"299") == rows[299]


def test_names_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "_hash", lambda name: 1)
    listing = Listing([row(b"a", 1), row(b"b", 0)])
    assert listing.find(b"b") == row(b"b", 0)
    assert listing.find(b"c") is None


def test_a_pool_closes_what_was_used_least_and_nothing_in_use() -> None:
    opened: list[int] = []
    closed: list[int] = []

    def open_(key: int) -> int:
        opened.append(key)
        return key

    pool: Pool[int, int] = Pool(2, open_, closed.append)
    with pool.use(1), pool.use(2), pool.use(3):
        assert closed == []
    assert closed == [3]  # the first that nobody used when there were too many
    with pool.use(1):
        pass
    with pool.use(4):
        assert closed == [3]
    assert closed == [3, 2]
    assert opened == [1, 2, 3, 4]
    pool.close()
    assert sorted(closed) == [1, 2, 3, 4]


def test_a_pool_opens_once_for_many_and_again_after_a_failure() -> None:
    tries: list[int] = []

    def open_(key: int) -> int:
        tries.append(key)
        if len(tries) == 1:
            raise StorageUnreachableError("Not now; try again.")
        return key

    pool: Pool[int, int] = Pool(1, open_, lambda value: None)
    with pytest.raises(StorageUnreachableError), pool.use(1):
        pass
    assert len(pool) == 0
    inside = threading.Barrier(4)

    def use() -> None:
        with pool.use(1):
            inside.wait()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tries == [1, 1]


def test_answers_are_kept_by_weight_and_refusals_too() -> None:
    asked: list[object] = []

    def answer(key: str) -> str:
        asked.append(key)
        if key == "bad":
            raise UnsupportedFormatError("Damaged.")
        if key == "away":
            raise StorageUnreachableError("Not now.")
        return key * 100

    answers: Answers[str] = Answers(1500, len)
    for _ in range(3):
        with pytest.raises(UnsupportedFormatError):
            answers.get("bad", lambda: answer("bad"))
    for _ in range(2):
        with pytest.raises(StorageUnreachableError):
            answers.get("away", lambda: answer("away"))
    assert asked == ["bad", "away", "away"]
    for key in ("0123456789", "abcdefghij", "0123456789"):
        assert answers.get(key, lambda key=key: answer(key)) == key * 100
    assert asked[3:] == ["0123456789", "abcdefghij", "0123456789"]


def test_descriptors_are_read_by_our_own_parser() -> None:
    text = flat_descriptor(flat_name("db1.vmdk"), 5 << 30)
    descriptor = parse_descriptor(text, "db1.vmdk")
    (extent,) = descriptor.extents
    assert (extent.file, extent.length, extent.file_offset) == ("db1-flat.vmdk", 5 << 30, 0)
    assert descriptor.parent is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", 'x"y', "a\nb", "\0"])
def test_no_name_leaves_its_directory_or_its_line(name: str) -> None:
    safe = safe_name(name)
    assert safe not in ("", ".", "..")
    assert not set('/"\n\0') & set(safe)


def test_vms_of_one_name_are_told_apart() -> None:
    one, other = served_vm("db/1", []), replace(served_vm("db/1", []), instance_uuid="other")
    assert vm_names([one, other, served_vm("app1", [])]) == [
        b"db_1.uuid-db_1",
        b"db_1.other",
        b"app1",
    ]


def test_mount_points_are_a_tree() -> None:
    top = mount_points("id", 3, {"/": "disk1:part1", "/var/lib": "disk1:part2"})
    assert top.volume == (3, "disk1:part1")
    assert top.below[b"var"].volume is None
    assert top.below[b"var"].below[b"lib"].volume == (3, "disk1:part2")
    assert top.below[b"var"].below[b"lib"].view != top.view


def test_inode_numbers_stay_and_differ() -> None:
    assert inode_number("vm/disk1", 12) == inode_number("vm/disk1", 12)
    assert inode_number("vm/disk1", 12) & 0xFFFFFFFF == 12
    numbers = {
        inode_number(f"vm/{n}", inode) for n in range(50) for inode in (1, 2, 1 << 40, 1 << 41)
    }
    assert len(numbers) == 200
