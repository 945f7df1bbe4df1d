"""What every `ObjectStore` promises, on every kind of store there is."""

import threading

import pytest
from repository_stores import StorePlace

from atoll.model.errors import RunConflictError, StorageConflictError
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

MIB = 1 << 20


def names(store: ObjectStore, folder: str) -> list[str]:
    return sorted(info.name for info in store.list(folder))


def test_what_was_put_is_got_in_whole_and_in_part(store: ObjectStore) -> None:
    parts = [bytes([n % 251]) * 3 for n in range(1500)]
    store.put("packs/ab/abcd", [parts[0], bytearray(parts[1]), *map(memoryview, parts[2:])])
    whole = b"".join(parts)
    assert store.get("packs/ab/abcd") == whole
    assert store.get_range("packs/ab/abcd", 0, len(whole)) == whole
    assert store.get_range("packs/ab/abcd", 100, 50) == whole[100:150]
    assert store.get_range("packs/ab/abcd", len(whole) - 5, 50) == whole[-5:]
    assert store.get_range("packs/ab/abcd", len(whole), 5) == b""
    assert store.get_range("packs/ab/abcd", len(whole) + 7, 5) == b""
    assert store.get_range("packs/ab/abcd", 7, 0) == b""
    assert [(info.name, info.size_bytes) for info in store.list("packs/")] == [
        ("packs/ab/abcd", len(whole))
    ]
    assert list(store.temporaries()) == []


def test_an_object_may_be_empty_or_as_large_as_a_pack(store: ObjectStore) -> None:
    store.put("index/none", [])
    assert store.get("index/none") == b""
    assert store.get_range("index/none", 0, 10) == b""
    pack = bytes(range(256)) * (32 * MIB // 256)
    store.put("packs/ab/large", [pack, b"end"])
    assert store.get("packs/ab/large") == pack + b"end"
    assert store.get_range("packs/ab/large", len(pack) - 1, 10) == b"\xffend"


def test_an_object_is_never_overwritten(place: StorePlace, store: ObjectStore) -> None:
    store.put("config", [b"first"])
    for other in (store, place.open()):
        with pytest.raises(StorageConflictError, match="config"):
            other.put("config", [b"second"])
        with pytest.raises(StorageConflictError):
            other.put("config", [b"first"])
    assert store.get("config") == b"first"


def test_of_two_who_put_the_same_name_at_once_one_succeeds(place: StorePlace) -> None:
    if not place.certain:
        pytest.skip("this server promises no such thing where there are versions")
    stores = [place.open() for _ in range(4)]
    for store in stores:
        store.put(f"points/own-{stores.index(store)}", [b"x"])  # so that all are ready
    start = threading.Barrier(len(stores))
    wins: list[int] = []
    losses: list[int] = []

    def write(number: int) -> None:
        start.wait()
        try:
            stores[number].put("points/one", [bytes([number]) * 1000])
            wins.append(number)
        except StorageConflictError:
            losses.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(wins), len(losses)) == (1, 3)
    assert stores[0].get("points/one") == bytes(wins) * 1000


def test_replacing_leaves_the_new_bytes_whole(store: ObjectStore) -> None:
    store.put("keys/one", [b"damaged and longer"])
    store.replace("keys/one", [b"as it", b" was"])
    assert store.get("keys/one") == b"as it was"
    assert names(store, "keys/") == ["keys/one"]


def test_listing_gives_a_folder_and_what_is_below_and_nothing_else(store: ObjectStore) -> None:
    for name in ("packs/aa/one", "packs/bb/two", "packs/three", "packsother/four", "config"):
        store.put(name, [name.encode()])
    assert names(store, "packs/") == ["packs/aa/one", "packs/bb/two", "packs/three"]
    assert names(store, "packs/aa/") == ["packs/aa/one"]
    assert names(store, "nowhere/") == []
    assert {info.name: info.size_bytes for info in store.list("packs/")}["packs/three"] == 11


def test_settling_changes_nothing_and_needs_no_folder(store: ObjectStore) -> None:
    store.put("packs/ab/one", [b"x"])
    for folder in ("packs/", "packs/ab/", "nowhere/"):
        store.settle(folder)
    assert names(store, "packs/") == ["packs/ab/one"]
    assert store.get("packs/ab/one") == b"x"


def test_deleting_twice_and_deleting_the_absent_succeed(store: ObjectStore) -> None:
    store.put("a/b", [b"x"])
    store.delete("a/b")
    store.delete("a/b")
    store.delete("nowhere/at-all")
    assert names(store, "a/") == []
    with pytest.raises(MissingObjectError):
        store.get("a/b")
    store.put("a/b", [b"again"])
    assert store.get("a/b") == b"again"


def test_what_is_not_there_is_told_by_name(store: ObjectStore) -> None:
    for read in (
        lambda: store.get("packs/aa/aabb"),
        lambda: store.get_range("packs/aa/aabb", 0, 10),
        lambda: store.get_range("packs/aa/aabb", 0, 0),
    ):
        with pytest.raises(MissingObjectError, match="packs/aa/aabb is missing"):
            read()


def test_names_cannot_leave_the_place(store: ObjectStore) -> None:
    for name in ("../x", "/etc/passwd", "a/../b", "", "a//b", "A"):
        with pytest.raises(ValueError, match="no object name"):
            store.get(name)
        with pytest.raises(ValueError, match="no object name"):
            store.put(name, [b"x"])


def test_another_sees_sessions_from_join_to_end(place: StorePlace, store: ObjectStore) -> None:
    other = place.open()
    one, two = store.join(b"one"), store.join(b"two")
    one.say(b"one, later")
    assert {(seen.name, seen.said) for seen in other.sessions()} == {
        (one.name, b"one, later"),
        (two.name, b"two"),
    }
    one.confirm()
    one.end()
    one.end()
    assert [seen.name for seen in other.sessions()] == [two.name]
    two.confirm()
    two.end()
    assert list(other.sessions()) == []
    assert names(other, "sessions/") == []
    for late in (lambda: one.say(b"more"), one.confirm):
        with pytest.raises(RunConflictError):
            late()


def test_the_session_of_a_killed_process_is_ended(place: StorePlace, store: ObjectStore) -> None:
    dead = place.killed_in("join(b'doomed')")
    assert names(store, "sessions/") == [f"sessions/{dead}"]
    with place.long_after() as later:
        assert list(later.sessions()) == []
    assert names(store, "sessions/") == []


def test_who_was_taken_for_dead_learns_it(store: ObjectStore) -> None:
    session = store.join(b"slow")
    store.delete(f"sessions/{session.name}")
    with pytest.raises(RunConflictError, match="taken for dead"):
        session.confirm()
    with pytest.raises(RunConflictError, match="taken for dead"):
        session.say(b"still here")
    session.end()
    assert names(store, "sessions/") == []


def test_one_maintains_at_a_time(place: StorePlace, store: ObjectStore) -> None:
    other = place.open()
    first = store.maintain()
    with pytest.raises(RunConflictError, match="tidied by another"):
        other.maintain()
    store.put("packs/ab/one", [b"x"])
    store.delete("packs/ab/one")
    first.release()
    first.release()
    second = other.maintain()
    first.release()
    with pytest.raises(RunConflictError):
        store.maintain()
    second.release()


def test_of_many_who_want_to_maintain_at_once_at_most_one_may(place: StorePlace) -> None:
    stores = [place.open() for _ in range(4)]
    start = threading.Barrier(len(stores))
    held: list[object] = []
    refused: list[RunConflictError] = []

    def try_it(store: ObjectStore) -> None:
        start.wait()
        try:
            held.append(store.maintain())
        except RunConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=try_it, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) <= 1
    assert len(held) + len(refused) == len(stores)
    for lock in held:
        lock.release()  # type: ignore[attr-defined]
    place.open().maintain().release()


def test_the_lock_of_a_killed_process_is_taken_over(place: StorePlace, store: ObjectStore) -> None:
    place.killed_in("maintain()")
    with place.long_after() as later:
        lock = later.maintain()
    with pytest.raises(RunConflictError):
        store.maintain()
    lock.release()
    store.maintain().release()


def test_what_the_store_keeps_for_itself_is_nobodys_object(store: ObjectStore) -> None:
    session, lock = store.join(b"at work"), store.maintain()
    store.sessions()
    for folder in ("config", "keys/", "packs/", "index/", "points/", "evidence/", "marks/"):
        assert names(store, folder) == []
    assert [info.name for info in own_objects(store, "sessions/")] == [f"sessions/{session.name}"]
    session.end()
    lock.release()


def test_closing_twice_is_harmless(place: StorePlace, store: ObjectStore) -> None:
    store.put("a/b", [b"x"])
    store.close()
    store.close()
    assert place.open().get("a/b") == b"x"
