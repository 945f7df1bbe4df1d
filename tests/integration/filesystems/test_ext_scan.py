"""Catalogues of real ext file systems against the kernel's own walk, clean, dirty and damaged."""

import os
import random
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.catalogue.build import pieces_of
from atoll.catalogue.catalogue import Catalogue, MemoryPieces, Rows
from atoll.catalogue.sorting import Sorted, sort_tables
from atoll.filesystems import scanner
from atoll.filesystems.ext4 import open_volume
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.scanning import open_scan
from atoll.filesystems.tables import inode_table, name_table
from atoll.filesystems.wire import Kind
from atoll.model.errors import UnsupportedFormatError

pytestmark = pytest.mark.needs_root


def catalogue(image: Path) -> Catalogue:
    pieces = MemoryPieces(pieces_of([("disk", FileReader(image))]))
    return Catalogue(pieces, pieces.names)


def assert_as_the_kernel_walks(image: Path, truth) -> Catalogue:  # type: ignore[no-untyped-def]
    made = catalogue(image)
    found = {}
    for page in made.pages:
        rows = Rows(made, page)
        for row in range(len(rows)):
            entry = rows.entry(row)
            found[os.fsencode(entry.inner)] = entry
    assert found.keys() == truth.keys()
    for path, entry in found.items():
        expected = truth[path]
        assert (entry.mode, entry.uid, entry.gid, entry.nlink, entry.inode) == (
            *(expected.mode & 0o7777, expected.uid, expected.gid),
            *(expected.nlink, expected.inode),
        ), path
        assert (entry.mtime_ns, entry.ctime_ns) == (expected.mtime_ns, expected.ctime_ns), path
        target = None if entry.target is None else os.fsencode(entry.target)
        assert target == expected.target, path
        if entry.kind is EntryKind.FILE:
            assert entry.size == expected.size, path
    assert [volume.fault_count for volume in made.volumes] == [0]
    return made


def test_a_catalogue_is_what_a_walk_of_the_kernel_finds(guest) -> None:  # type: ignore[no-untyped-def]
    made = assert_as_the_kernel_walks(guest.image, guest.truth)
    corner = {os.fsencode(entry.path) for entry in made.list("/corner")}
    assert corner == {
        path for path in guest.truth if path.startswith(b"/corner/") and path.count(b"/") == 2
    }


def test_a_dirty_journal_is_part_of_it(dirty) -> None:  # type: ignore[no-untyped-def]
    made = assert_as_the_kernel_walks(dirty.image, dirty.truth)
    assert made.volumes[0].journal == "replayed"


def tables(image: Path, frames) -> Sorted:  # type: ignore[no-untyped-def]
    found = []
    for kind, payload in frames(open_volume(FileReader(image))):
        assert kind in (Kind.INODES, Kind.NAMES)
        found.append(inode_table(payload) if kind is Kind.INODES else name_table(payload))
    return sort_tables(found, 2)


def test_volumes_without_tables_of_their_own_are_walked_to_the_same_end(guest) -> None:  # type: ignore[no-untyped-def]
    by_tables = tables(guest.image, scanner.frames)
    walked = tables(guest.image, scanner.walked)
    assert walked.stats.tobytes() == by_tables.stats.tobytes()
    assert walked.directories == by_tables.directories
    for made in (by_tables, walked):
        names = [
            made.text[start : start + length].tobytes()
            for start, length in zip(made.starts.tolist(), made.lengths.tolist(), strict=True)
        ]
        if made is by_tables:
            expected = names
    assert names == expected


def test_damage_costs_no_more_than_what_it_hit(guest, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = guest.image.read_bytes()
    rnd = random.Random(guest.form)
    image = tmp_path / "damaged"
    damaged = bytearray(whole)
    for _ in range(200):
        at = rnd.randrange(len(whole) // 3)
        damaged[at] ^= 1 << rnd.randrange(8)
    image.write_bytes(damaged)
    made = catalogue(image)  # whatever it says, it says so and does not fail
    (volume,) = made.volumes
    assert volume.entries or volume.fault
    for page in made.pages:
        assert len(Rows(made, page)) == page.info.rows


def test_what_holds_no_files_is_said(tmp_path: Path) -> None:
    image = tmp_path / "swap"
    image.write_bytes(bytes(4086) + b"SWAPSPACE2" + bytes(1 << 20))
    (volume,) = catalogue(image).volumes
    assert "swap space" in volume.fault
    assert volume.entries == 0
    with pytest.raises(UnsupportedFormatError):
        open_scan(FileReader(image))
