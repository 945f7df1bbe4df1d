"""The index: merging, lookups, refreshing."""

from pathlib import Path

from atoll.repository.index import Index, entries, read_segment, write_segment
from atoll.repository.keys import MasterKey
from atoll.repository.local import LocalStore
from atoll.repository.packs import PackEntry, PackListing

MASTER = MasterKey(bytes(32))


def _listing(number: int, names: list[bytes]) -> PackListing:
    held = tuple(PackEntry(name, at, at * 100, 100, 90, 1) for at, name in enumerate(names))
    return PackListing(f"{number:032x}", 1000, held)


def _name(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(24, "big")


def test_what_was_added_is_found_and_nothing_else() -> None:
    index = Index()
    for segment in range(40):  # enough for tables to merge several times
        packs = [
            _listing(segment * 2 + half, [_name(segment * 100 + half * 50 + n) for n in range(50)])
            for half in range(2)
        ]
        index.add(f"{segment:032x}", packs)
    assert len(index) == 4000
    for number in range(4000):
        (place,) = index.locations(_name(number))
        assert place.pack == f"{number // 50:032x}"
        assert place.entry.number == number % 50
    assert _name(4001) not in index


def test_names_with_the_same_beginning_are_told_apart() -> None:
    names = [b"\xff" * 8 + bytes([n]) * 24 for n in range(6)]
    index = Index()
    index.add("0" * 32, [_listing(1, names[:5])])
    assert [next(index.locations(name)).entry.number for name in names[:5]] == [0, 1, 2, 3, 4]
    assert names[5] not in index


def test_a_chunk_that_two_writers_stored_has_two_places() -> None:
    index = Index()
    index.add("0" * 32, [_listing(1, [_name(1)])])
    index.add("1" * 32, [_listing(2, [_name(1)])])
    assert {place.pack for place in index.locations(_name(1))} == {f"{1:032x}", f"{2:032x}"}


def test_segments_come_back_and_packs_are_grouped(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "s")
    packs = [_listing(1, [_name(n) for n in range(9)]), _listing(2, [_name(n) for n in (9, 10)])]
    segment = write_segment(store, MASTER, packs)
    assert read_segment(store, MASTER, segment) == packs
    grouped = Index().refresh(store, MASTER).by_pack()
    assert {pack: entries(rows) for pack, rows in grouped.items()} == {
        pack.name: pack.entries for pack in packs
    }


def test_refreshing_takes_in_the_new_and_forgets_the_removed(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "s")
    first = write_segment(store, MASTER, [_listing(1, [_name(1)])])
    index = Index().refresh(store, MASTER)
    write_segment(store, MASTER, [_listing(2, [_name(2)])])
    assert _name(2) not in index
    grown = index.refresh(store, MASTER)
    assert _name(1) in grown
    assert _name(2) in grown
    store.delete(f"index/{first}")
    shrunk = grown.refresh(store, MASTER)
    assert _name(1) not in shrunk
    assert _name(2) in shrunk


def test_a_damaged_segment_is_noted_and_the_others_serve(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "s")
    write_segment(store, MASTER, [_listing(1, [_name(1)])])
    store.put("index/" + "ab" * 16, [b"no segment"])
    index = Index().refresh(store, MASTER)
    assert list(index.damaged) == ["ab" * 16]
    assert _name(1) in index
