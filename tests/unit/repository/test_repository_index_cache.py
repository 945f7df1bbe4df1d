"""The index with a cache: the same answers as without, whatever happens to segments and files."""

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.repository.index import (
    INDEX,
    Index,
    IndexCache,
    IndexCacheDamagedError,
    write_segment,
)
from atoll.repository.index_cache import CacheLimits
from atoll.repository.index_table import MemoryTable
from index_parts import MASTER, MemoryStore, check_index, listing, named

REPOSITORY = "ab" * 16
SMALL = CacheLimits(memory_rows=40, save_rows=1, save_segments=1)
"""Files for everything, and several of them."""


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def cache(tmp_path: Path) -> IndexCache:
    return IndexCache(tmp_path / "cache", REPOSITORY, SMALL)


def names_of(pack: int) -> list[bytes]:
    """Twenty chunks; some are in the next pack too, some have the same first eight bytes."""
    own = [named(pack * 100 + number) for number in range(12)]
    shared = [named(pack * 100), named((pack + 1) * 100)]
    return [*own, *shared[1:], *(named(pack * 100 + n, crowded=True) for n in range(7))]


def put(store: MemoryStore, *packs: int) -> str:
    return write_segment(store, MASTER, [listing(pack, names_of(pack)) for pack in packs])


def wanted(*packs: int) -> dict[int, list[bytes]]:
    return {pack: names_of(pack) for pack in packs}


def absent(*packs: int) -> list[bytes]:
    return [name for pack in packs for name in names_of(pack)[1:12]]


def saved(store: MemoryStore, cache: IndexCache) -> Index:
    return Index(cache).refresh(store, MASTER).consolidate(store, MASTER)


def memory_rows(index: Index) -> int:
    return sum(each.rows for each in index._state.tables if isinstance(each.table, MemoryTable))


def files(cache: IndexCache) -> list[str]:
    return sorted(path.name for path in Path(cache.location).iterdir())


# What happens to segments, in any order.

_PACKS = st.integers(0, 11)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(_PACKS, min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("prune"), st.lists(_PACKS, min_size=1, max_size=4, unique=True)),
        st.tuples(st.sampled_from(["refresh", "save", "open", "lose cache"]), st.just([])),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(_STEPS)
def test_it_says_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[int]]]
) -> None:
    store = MemoryStore()
    cache = IndexCache(tmp_path_factory.mktemp("index") / "cache", REPOSITORY, SMALL)
    listed: dict[str, list[int]] = {}
    index = Index(cache).refresh(store, MASTER)
    for step, packs in steps:
        if step == "write":
            listed[put(store, *packs)] = packs
        elif step == "prune":
            for segment in list(listed):
                kept = [pack for pack in listed[segment] if pack not in packs]
                if kept != listed[segment]:
                    if kept:
                        listed[put(store, *kept)] = kept
                    store.delete(INDEX + segment)
                    del listed[segment]
        elif step == "open":
            index = Index(cache)
        elif step == "lose cache":
            cache.discard(cache.edition())
        index = index.refresh(store, MASTER)
        if step == "save":
            index = index.consolidate(store, MASTER)
        there = {pack for packs in listed.values() for pack in packs}
        check_index(index, wanted(*there), absent(*set(range(12)) - there))
        assert memory_rows(index) <= 2 * SMALL.memory_rows


@pytest.mark.parametrize("when", list(permutations(["open", "save", "prune"])))
def test_a_pack_that_no_segment_lists_is_not_found(
    store: MemoryStore, cache: IndexCache, when: tuple[str, ...]
) -> None:
    """Whoever opened or saved when, between any two steps of a prune."""
    first = put(store, 1, 2)
    put(store, 3)
    index = Index(cache).refresh(store, MASTER)
    gone: set[int] = set()
    for step in when:
        if step == "save":
            index = index.consolidate(store, MASTER)
        elif step == "open":
            index = Index(cache).refresh(store, MASTER)
        else:
            put(store, 2)
            check_index(index.refresh(store, MASTER), wanted(1, 2, 3))
            check_index(Index(cache).refresh(store, MASTER), wanted(1, 2, 3))
            saved(store, cache)
            store.delete(INDEX + first)
            gone = {1}
        index = index.refresh(store, MASTER)
        check_index(index, wanted(*{1, 2, 3} - gone), absent(*gone))
    for opened in (index, Index(cache).refresh(store, MASTER), saved(store, cache)):
        check_index(opened.refresh(store, MASTER), wanted(2, 3), absent(1))


def test_old_segments_may_go_before_a_reader_has_seen_the_new(
    store: MemoryStore, cache: IndexCache
) -> None:
    first = put(store, 1, 2)
    index = saved(store, cache)
    store.delete(INDEX + first)
    without = index.refresh(store, MASTER)
    check_index(without, {}, absent(1, 2))
    put(store, 2)
    check_index(without.refresh(store, MASTER), wanted(2), absent(1))
    check_index(Index(cache).refresh(store, MASTER), wanted(2), absent(1))


def test_a_pack_comes_back_whether_its_rows_were_kept_or_not(
    store: MemoryStore, cache: IndexCache
) -> None:
    segment = put(store, 1)
    put(store, 2, 3)
    kept = saved(store, cache)
    store.delete(INDEX + segment)
    merged = kept.refresh(store, MASTER).consolidate(store, MASTER)
    check_index(merged, wanted(2, 3), absent(1))
    put(store, 1)
    for index in (kept, merged, Index(cache)):
        check_index(index.refresh(store, MASTER), wanted(1, 2, 3))


def test_a_listing_that_shows_neither_the_old_nor_the_new_segment_is_not_believed(
    store: MemoryStore, cache: IndexCache
) -> None:
    """As readdir(3) may: past the place of the new before it is put, at that of the old after it went."""
    old = put(store, 1, 2)
    while old < "8" * 32:
        store.delete(INDEX + old)
        old = put(store, 1, 2)
    middle = INDEX + "8" * 32
    store.put(middle, [b"not a segment"])
    before = dict(store.objects)
    for opened in (Index(), Index(cache), saved(store, cache)):
        store.objects = dict(before)
        new: list[str] = []

        def prune(last: str, new: list[str] = new) -> None:
            if last != middle or new:
                return
            new.append(put(store, 2))
            while new[0] > "8" * 32:
                store.delete(INDEX + new.pop())
                new.append(put(store, 2))
            store.delete(INDEX + old)

        store.hook = prune
        check_index(opened.refresh(store, MASTER), wanted(2), absent(1))
        store.hook = None
        assert new


def test_a_segment_that_goes_between_listing_and_reading_begins_it_anew(
    store: MemoryStore, cache: IndexCache
) -> None:
    put(store, 3)
    old = put(store, 1, 2)
    ended: list[str] = []
    get = store.get

    def replaced(name: str) -> bytes:
        if name == INDEX + old and not ended:
            ended.append(put(store, 2))
            store.delete(name)
        return get(name)

    store.get = replaced  # type: ignore[method-assign]
    check_index(Index(cache).refresh(store, MASTER), wanted(2, 3), absent(1))
    assert ended


# What is read and held.


def test_opening_reads_only_what_is_new(store: MemoryStore, cache: IndexCache) -> None:
    for pack in range(10):
        put(store, pack)
    saved(store, cache)
    store.reads.clear()
    index = Index(cache).refresh(store, MASTER)
    assert store.reads == []
    new = put(store, 10)
    index.refresh(store, MASTER)
    assert store.reads == [INDEX + new]
    assert memory_rows(index) == len(names_of(10))


def test_indexes_of_a_process_share_what_was_loaded(store: MemoryStore, cache: IndexCache) -> None:
    put(store, 1, 2)
    saved(store, cache)
    one, two = (Index(cache).refresh(store, MASTER) for _ in range(2))
    assert one._state.tables[0].table is two._state.tables[0].table
    put(store, 3)
    check_index(two.refresh(store, MASTER), wanted(1, 2, 3))
    check_index(one, wanted(1, 2), absent(3))


def test_what_does_not_fit_into_memory_is_read_once(store: MemoryStore, cache: IndexCache) -> None:
    for pack in range(10):
        put(store, pack)
    check_index(Index(cache).refresh(store, MASTER), wanted(*range(10)))
    store.reads.clear()
    check_index(Index(cache).refresh(store, MASTER), wanted(*range(10)))
    assert store.reads == []


def test_rows_of_packs_that_move_to_new_segments_are_not_held_again(
    store: MemoryStore, cache: IndexCache
) -> None:
    old = put(store, 1, 2, 3)
    index = saved(store, cache)
    put(store, 1, 2)
    put(store, 3)
    store.delete(INDEX + old)
    index = index.refresh(store, MASTER)
    check_index(index, wanted(1, 2, 3))
    assert memory_rows(index) == 0
    assert len(index) == sum(map(len, wanted(1, 2, 3).values()))


def test_own_segments_go_to_files_as_well(store: MemoryStore, cache: IndexCache) -> None:
    index = Index(cache).refresh(store, MASTER)
    for pack in range(8):
        packs = [listing(pack, names_of(pack))]
        segment = write_segment(store, MASTER, packs)
        index.add(segment, packs)
        index.add(segment, packs)
        assert memory_rows(index) <= 2 * SMALL.memory_rows
    check_index(index, wanted(*range(8)))
    store.reads.clear()
    assert index.refresh(store, MASTER) is index
    assert store.reads == []
    check_index(index.consolidate(store, MASTER), wanted(*range(8)))


def test_few_files_are_left_however_often_it_is_saved(
    store: MemoryStore, cache: IndexCache
) -> None:
    for pack in range(40):
        put(store, pack)
        index = saved(store, cache)
        assert len([name for name in files(cache) if name.endswith(".table")]) <= 4
    check_index(index, wanted(*range(40)))
    assert not [name for name in files(cache) if name.endswith(".new")]


def test_small_repositories_leave_no_cache(store: MemoryStore, tmp_path: Path) -> None:
    cache = IndexCache(tmp_path / "cache", REPOSITORY)
    put(store, 1, 2)
    check_index(saved(store, cache), wanted(1, 2))
    assert not (tmp_path / "cache").exists()


def test_two_packs_of_one_name_that_differ_both_count(
    store: MemoryStore, cache: IndexCache
) -> None:
    write_segment(store, MASTER, [listing(1, [named(1), named(2)])])
    write_segment(store, MASTER, [listing(1, [named(1), named(2), named(3)])])
    for index in (saved(store, cache), Index(cache).refresh(store, MASTER)):
        assert {pack.name for pack in index.packs} == {f"{1:032x}"}
        assert all(named(number) in index for number in (1, 2, 3))


# Directories that cannot be used.


def test_the_directory_is_for_its_owner_only(store: MemoryStore, cache: IndexCache) -> None:
    put(store, 1)
    saved(store, cache)
    assert Path(cache.location).stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in Path(cache.location).iterdir())


def test_a_directory_that_others_may_write_to_is_not_used(
    store: MemoryStore, cache: IndexCache
) -> None:
    put(store, 1)
    saved(store, cache)
    Path(cache.location).chmod(0o770)
    store.reads.clear()
    index = Index(cache).refresh(store, MASTER)
    assert store.reads
    check_index(index.consolidate(store, MASTER), wanted(1))


def test_where_no_directory_can_be_all_is_in_memory(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = IndexCache(tmp_path / "file" / "cache", REPOSITORY, SMALL)
    for pack in range(6):
        put(store, pack)
    index = saved(store, cache)
    check_index(index, wanted(*range(6)))
    assert memory_rows(index) == len(index)


@pytest.mark.parametrize("room", [0, 100, 5000, 21_500, 22_000, 27_000])
def test_where_there_is_no_room_all_is_in_memory(
    store: MemoryStore, cache: IndexCache, room: int
) -> None:
    """A limit on the size of files fails writes at that place, as a full disk does."""
    put(store, 0)
    saved(store, cache)
    for pack in range(1, 6):
        put(store, pack)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        index = saved(store, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_index(index, wanted(*range(6)))
    check_index(saved(store, cache), wanted(*range(6)))


def test_a_cache_of_another_repository_is_not_used(store: MemoryStore, cache: IndexCache) -> None:
    put(store, 1)
    saved(store, cache)
    other, others = MemoryStore(), IndexCache(Path(cache.location), "cd" * 16, SMALL)
    put(other, 2)
    assert others.load() is None
    check_index(Index(others).refresh(other, MASTER), wanted(2), absent(1))
    check_index(saved(other, others), wanted(2), absent(1))
    check_index(Index(cache).refresh(store, MASTER), wanted(1), absent(2))


def test_a_cache_of_a_repository_that_went_other_ways_does_no_harm(
    store: MemoryStore, cache: IndexCache
) -> None:
    """A copy of a repository has the same id and key, and segments of its own."""
    put(store, 1)
    copy = MemoryStore()
    copy.objects = dict(store.objects)
    put(store, 2)
    saved(store, cache)
    put(copy, 3)
    check_index(Index(cache).refresh(copy, MASTER), wanted(1, 3), absent(2))


# Others at the same files.


def test_each_goes_on_with_what_it_opened_when_another_saves(
    store: MemoryStore, cache: IndexCache
) -> None:
    put(store, 1, 2)
    saved(store, cache)
    one, two = (Index(cache).refresh(store, MASTER) for _ in range(2))
    put(store, 3, 4, 5)
    saved(store, cache)
    check_index(one, wanted(1, 2))
    put(store, 6)
    two = two.refresh(store, MASTER)
    check_index(two, wanted(*range(1, 7)))
    two = two.consolidate(store, MASTER)
    check_index(two, wanted(*range(1, 7)))
    check_index(one.refresh(store, MASTER).consolidate(store, MASTER), wanted(*range(1, 7)))
    check_index(Index(cache).refresh(store, MASTER), wanted(*range(1, 7)))


def test_who_comes_to_save_after_another_goes_on_from_there(
    store: MemoryStore, cache: IndexCache
) -> None:
    """Else it would name a table that the other has removed."""
    put(store, *range(20))
    index = saved(store, cache)
    cache.discard(cache.edition())
    saved(store, cache)
    put(store, 20)
    index = index.refresh(store, MASTER).consolidate(store, MASTER)
    check_index(index, wanted(*range(21)))
    store.reads.clear()
    check_index(Index(cache).refresh(store, MASTER), wanted(*range(21)))
    assert store.reads == []


def test_who_finds_another_saving_does_not_wait(store: MemoryStore, cache: IndexCache) -> None:
    put(store, 1)
    index = Index(cache).refresh(store, MASTER)
    with cache.turn() as mine:
        assert mine
        assert index.consolidate(store, MASTER) is index
    assert index.consolidate(store, MASTER) is not index


def test_processes_that_save_at_once_do_not_harm_each_other(cache: IndexCache) -> None:
    """Each has a store of its own with the same segments, and saves all the time."""
    store = MemoryStore()
    segments = [put(store, pack) for pack in range(12)]
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                own, index = MemoryStore(), Index(cache)
                for at, segment in enumerate(segments[number:] + segments[:number]):
                    own.objects[INDEX + segment] = store.objects[INDEX + segment]
                    there = [(number + each) % 12 for each in range(at + 1)]
                    index = index.refresh(own, MASTER).consolidate(own, MASTER)
                    check_index(index, wanted(*there))
                    check_index(Index(cache).refresh(own, MASTER), wanted(*there))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    check_index(saved(store, cache), wanted(*range(12)))


# Kills and damage.


def _kill_at(number: int) -> Callable[[], None]:
    """Kill this process at the `number`-th call that changes a file."""
    left = number

    def strike() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def struck(call: Callable[..., object]) -> Callable[..., object]:
        def calling(*arguments: object, **named_ones: object) -> object:
            strike()
            return call(*arguments, **named_ones)

        return calling

    for name in ("write", "pwrite", "fsync", "rename", "unlink", "open"):
        setattr(os, name, struck(getattr(os, name)))
    return strike


def test_killed_anywhere_it_is_right_and_leaves_nothing_for_long(
    store: MemoryStore, tmp_path: Path
) -> None:
    first = put(store, 1, 2, 3)
    kills = 0
    for number in range(1, 200):
        cache = IndexCache(tmp_path / f"cache{number}", REPOSITORY, SMALL)
        begun = MemoryStore()
        begun.objects = dict(store.objects)
        saved(begun, cache)
        put(begun, 2, 3)
        begun.delete(INDEX + first)
        put(begun, 4)
        child = os.fork()
        if child == 0:
            try:
                _kill_at(number)
                saved(begun, cache)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        check_index(Index(cache).refresh(begun, MASTER), wanted(2, 3, 4), absent(1))
        check_index(saved(begun, cache), wanted(2, 3, 4), absent(1))
        assert len(files(cache)) <= 4  # lock, manifest and two tables
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    assert kills > 10


def _flips(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file with one bit changed, in every part and at many bytes of each."""
    data = path.read_bytes()
    places = {*range(0, 112, 3), *range(4096, 5120, 11), *range(0, len(data), 211)}
    for at in sorted({*places, *range(len(data) - 40, len(data))}):
        if at < len(data):
            yield at, data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def _cuts(path: Path) -> Iterator[tuple[int, bytes]]:
    data = path.read_bytes()
    for at in {0, 1, 50, 4096, 4100, 5120, len(data) // 2, len(data) - 1}:
        if at < len(data):
            yield at, data[:at]


@pytest.mark.parametrize("suffix", [".table", "manifest"])
@pytest.mark.parametrize("change", [_flips, _cuts])
def test_damage_never_makes_an_answer_wrong(
    store: MemoryStore,
    cache: IndexCache,
    suffix: str,
    change: Callable[[Path], Iterator[tuple[int, bytes]]],
) -> None:
    put(store, 1, 2)
    saved(store, cache)
    before = {path: path.read_bytes() for path in Path(cache.location).iterdir()}
    (path,) = (path for path in before if path.name.endswith(suffix))
    told = 0
    for _, damaged in change(path):
        for each, data in before.items():
            each.write_bytes(data)
        path.write_bytes(damaged)
        cache = IndexCache(path.parent, REPOSITORY, SMALL)  # as another process would come to it
        index = Index(cache).refresh(store, MASTER)
        try:
            check_index(index, wanted(1, 2), absent(3))
        except IndexCacheDamagedError:
            told += 1
            assert cache.edition() is None
            check_index(index.without_cache().refresh(store, MASTER), wanted(1, 2), absent(3))
        check_index(Index(cache).refresh(store, MASTER), wanted(1, 2), absent(3))
    assert told if (suffix, change) == (".table", _flips) else not told


def test_a_file_that_is_damaged_while_it_is_open_is_told_of(
    store: MemoryStore, cache: IndexCache
) -> None:
    put(store, 1, 2)
    index = saved(store, cache)
    (table,) = Path(cache.location).glob("*.table")
    with table.open("r+b") as file:
        file.truncate(4096)
    for look in (
        lambda: named(100) in index,
        lambda: list(index.locations(named(100))),
        lambda: index.find(np.frombuffer(named(100), np.uint8).reshape(1, 32)),
        lambda: list(index.blocks()),
        index.by_pack,
        index.check,
    ):
        with pytest.raises(IndexCacheDamagedError, match="run again"):
            look()
    assert cache.edition() is None
    check_index(saved(store, cache), wanted(1, 2))


def test_saving_over_a_damaged_table_is_told_of(store: MemoryStore, cache: IndexCache) -> None:
    put(store, 1, 2)
    saved(store, cache)
    index = Index(cache).refresh(store, MASTER)
    (table,) = Path(cache.location).glob("*.table")
    data = bytearray(table.read_bytes())
    data[4096 + 40] ^= 1
    table.write_bytes(data)
    put(store, 3)
    with pytest.raises(IndexCacheDamagedError):
        index.refresh(store, MASTER).consolidate(store, MASTER)
    check_index(saved(store, cache), wanted(1, 2, 3))


def test_lookups_go_on_while_segments_are_added(store: MemoryStore, cache: IndexCache) -> None:
    put(store, 0)
    index = saved(store, cache)
    done = threading.Event()
    wrong: list[bytes] = []

    def look() -> None:
        while not done.is_set():
            wrong.extend(name for name in names_of(0) if name not in index)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for pack in range(1, 12):
            packs = [listing(pack, names_of(pack))]
            index.add(write_segment(store, MASTER, packs), packs)
    finally:
        done.set()
        looking.join()
    assert not wrong
    check_index(index, wanted(*range(12)))
