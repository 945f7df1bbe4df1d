"""What storage/interface.py promises, checked against every engine."""

import itertools
import os
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_engines import ESX1, ESX2, Storage

from atoll.model.errors import PoolFullError, StorageConflictError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.storage.interface import StorageEngine
from atoll_lab.iscsi import InitiatorRefusedError, IscsiError, discover

pytestmark = pytest.mark.needs_root

MIB = 1 << 20
SIZE = 16 * MIB
BLOCK = 4096


def test_is_a_storage_engine(storage: Storage) -> None:
    engine: StorageEngine = storage.engine
    assert engine.name == "suite"


def test_create_group_and_lun_are_idempotent(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    assert engine.create_group(group).luns == ()
    lun = engine.create_lun(group, "a", SIZE)
    assert (lun.name, lun.group, lun.size_bytes) == ("a", group, SIZE)
    assert lun.naa.startswith("naa.6")
    assert len(lun.naa) == 36
    assert engine.create_lun(group, "a", SIZE) == lun
    assert engine.create_group(group).luns == (lun,)
    assert storage.reopen().create_lun(group, "a", SIZE) == lun
    with pytest.raises(StorageConflictError):
        engine.create_lun(group, "a", SIZE + MIB)


def test_capacity_counts_what_is_promised(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    before = engine.capacity()
    engine.create_lun(group, "a", SIZE)
    after = engine.capacity()
    assert after.provisioned_bytes - before.provisioned_bytes == SIZE
    assert 0 < after.free_bytes <= after.total_bytes


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "-a", "a" * 64])
def test_names_outside_the_contract_are_refused(storage: Storage, name: str) -> None:
    group = storage.fresh()
    storage.engine.create_group(group)
    with pytest.raises(StorageConflictError):
        storage.engine.create_group(name)
    with pytest.raises(StorageConflictError):
        storage.engine.create_lun(group, name, SIZE)
    with pytest.raises(StorageConflictError):
        storage.engine.snapshot_group(group, name)


def test_deleting_what_is_absent_succeeds(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.delete_group(group)
    engine.delete_clone(group)
    engine.delete_lun(group, "a")
    engine.delete_snapshot(group, "s")
    engine.withdraw(group, "a")
    engine.create_group(group)
    engine.delete_lun(group, "a")
    engine.delete_snapshot(group, "s")
    engine.withdraw(group, "a")
    engine.delete_group(group)
    engine.delete_group(group)
    assert group not in {one.name for one in engine.groups()}


def test_what_is_unknown_is_a_conflict(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    with pytest.raises(StorageConflictError):
        engine.create_lun(group, "a", SIZE)
    with pytest.raises(StorageConflictError):
        engine.snapshot_group(group, "s")
    engine.create_group(group)
    with pytest.raises(StorageConflictError):
        engine.present(group, "a", [ESX1])
    with pytest.raises(StorageConflictError):
        engine.grow_lun(group, "a", SIZE)
    with pytest.raises(StorageConflictError):
        engine.clone(group, "s", storage.fresh())
    with pytest.raises(StorageConflictError):
        engine.open_snapshot(group, "a", "s")
    with pytest.raises(StorageConflictError):
        list(engine.changed_extents(group, "a", "s", "t"))


def test_only_the_named_initiators_see_a_lun(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    lun = engine.create_lun(group, "a", SIZE)
    shown = engine.present(group, "a", [ESX1])
    assert (shown.lun, shown.group, shown.initiators) == ("a", group, (ESX1,))
    assert engine.present(group, "a", [ESX1]) == shown
    assert shown in engine.presentations()
    portal = shown.portals[0]
    address = f"{portal.address}:{portal.port}"
    with storage.open(portal) as session:
        answer = session.inquiry()
        assert (answer.naa, answer.serial) == (lun.naa, lun.serial)
        assert (answer.vendor, answer.product) == (lun.vendor, lun.product)
        assert session.read_capacity() == SIZE
    assert portal.target in {target.name for target in discover(address, ESX1)}
    assert portal.target not in {target.name for target in discover(address, ESX2)}
    with pytest.raises(InitiatorRefusedError):
        storage.open(portal, ESX2)

    engine.present(group, "a", [ESX2])
    with pytest.raises(InitiatorRefusedError):
        storage.open(portal, ESX1)
    storage.open(portal, ESX2).close()

    engine.withdraw(group, "a")
    engine.withdraw(group, "a")
    with pytest.raises(IscsiError):
        storage.open(portal, ESX2)
    assert engine.presentations() == [one for one in engine.presentations() if one.group != group]


def test_an_initiator_taken_off_the_list_loses_its_session(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    portal = engine.present(group, "a", [ESX1, ESX2]).portals[0]
    first, second = storage.open(portal, ESX1), storage.open(portal, ESX2)
    first.write(0, b"1" * BLOCK)
    engine.present(group, "a", [ESX2])
    with pytest.raises(IscsiError):
        first.write(0, b"2" * BLOCK)
    assert second.read(0, BLOCK) == b"1" * BLOCK
    first.close()
    second.close()
    engine.withdraw(group, "a")


def test_presenting_to_nobody_or_to_nonsense_is_refused(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    for initiators in ([], ["ALL"], ["iqn.a,b=c"]):
        with pytest.raises(StorageConflictError):
            engine.present(group, "a", initiators)


def test_identity_and_portal_survive(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    first = engine.present(group, "a", [ESX1])
    with storage.open(first.portals[0]) as session:
        naa = session.inquiry().naa
    engine.withdraw(group, "a")
    again = storage.reopen().present(group, "a", [ESX1])
    assert again == first
    with storage.open(again.portals[0]) as session:
        assert session.inquiry().naa == naa
    engine.withdraw(group, "a")


def test_guards_keep_what_is_in_use(storage: Storage) -> None:
    engine, group, clone = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    engine.present(group, "a", [ESX1])
    with pytest.raises(StorageConflictError):
        engine.delete_lun(group, "a")
    with pytest.raises(StorageConflictError):
        engine.delete_group(group)
    engine.withdraw(group, "a")
    engine.snapshot_group(group, "s")
    with pytest.raises(StorageConflictError):
        engine.delete_group(group)
    with pytest.raises(StorageConflictError):
        engine.delete_clone(group)
    engine.clone(group, "s", clone)
    with pytest.raises(StorageConflictError):
        engine.delete_snapshot(group, "s")
    with pytest.raises(StorageConflictError):
        engine.create_group(clone)
    engine.delete_clone(clone)
    engine.delete_clone(clone)
    engine.delete_snapshot(group, "s")
    engine.delete_snapshot(group, "s")
    engine.delete_group(group)


def test_a_snapshot_stays_as_it_was(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    engine.create_lun(group, "b", 2 * SIZE)
    portal = engine.present(group, "a", [ESX1]).portals[0]
    with storage.open(portal) as session:
        session.write(BLOCK, b"old!" * 1024)
        taken = engine.snapshot_group(group, "s1")
        session.write(BLOCK, b"new!" * 1024)
        assert engine.snapshot_group(group, "s1") == taken
        second = engine.snapshot_group(group, "s2")
    assert taken.started_at <= taken.finished_at <= second.started_at
    assert taken.pause_seconds >= 0
    assert dict(taken.lun_sizes) == {"a": SIZE, "b": 2 * SIZE}
    assert engine.snapshots(group) == [taken, second]
    assert storage.reopen().snapshots(group) == [taken, second]
    reader = engine.open_snapshot(group, "a", "s1")
    assert isinstance(reader, BlockReader)
    assert reader.size_bytes == SIZE
    assert reader.read(BLOCK, BLOCK) == b"old!" * 1024
    assert reader.read(SIZE - 10, 100) == bytes(10)
    pieces = list(reader.read_many([Extent(0, 2 * BLOCK), Extent(3 * BLOCK, BLOCK)]))
    assert b"".join(data for _, data in pieces) == bytes(BLOCK) + b"old!" * 1024 + bytes(BLOCK)
    holes = list(reader.holes())
    assert holes == sorted(holes)
    assert all(not any(reader.read(*hole)) for hole in holes)
    reader.close()
    reader.close()
    engine.withdraw(group, "a")


def test_snapshots_of_a_deleted_lun_keep_it(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    old = engine.create_lun(group, "a", SIZE)
    engine.snapshot_group(group, "s")
    engine.delete_lun(group, "a")
    with closing(engine.open_snapshot(group, "a", "s")) as reader:
        assert reader.size_bytes == SIZE
    new = engine.create_lun(group, "a", 2 * SIZE)
    assert new.naa != old.naa


def test_a_clone_is_writable_and_apart(storage: Storage) -> None:
    engine, group, clone = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(group)
    lun = engine.create_lun(group, "a", SIZE)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(0, b"base" * 1024)
    engine.snapshot_group(group, "s")
    made = engine.clone(group, "s", clone)
    assert made.clone_of == f"{group}@s"
    assert [one.size_bytes for one in made.luns] == [SIZE]
    assert made.luns[0].naa != lun.naa
    assert made.luns[0].serial != lun.serial
    assert engine.clone(group, "s", clone) == made
    engine.snapshot_group(group, "t")
    with pytest.raises(StorageConflictError):
        engine.clone(group, "t", clone)
    with storage.open(engine.present(clone, "a", [ESX2]).portals[0], ESX2) as session:
        assert session.read(0, BLOCK) == b"base" * 1024
        session.write(0, b"mine" * 1024)
    with closing(engine.open_snapshot(group, "a", "s")) as reader:
        assert reader.read(0, 4) == b"base"
    assert made in engine.groups()
    engine.delete_clone(clone)  # withdraws by itself
    assert made not in engine.groups()
    assert clone not in {one.group for one in engine.presentations()}
    engine.withdraw(group, "a")


def test_growing_is_online_and_never_shrinks(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    before = engine.create_lun(group, "a", SIZE)
    engine.create_lun(group, "b", SIZE)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(0, b"kept" * 1024)
        with pytest.raises(IscsiError):
            session.write(SIZE, b"past" * 1024)
        grown = engine.grow_lun(group, "a", 2 * SIZE)
        assert (grown.size_bytes, grown.naa) == (2 * SIZE, before.naa)
        assert engine.grow_lun(group, "a", 2 * SIZE) == grown
        assert session.read(0, BLOCK) == b"kept" * 1024
        assert session.read_capacity() == 2 * SIZE
        session.write(2 * SIZE - BLOCK, b"last" * 1024)
        assert session.read(2 * SIZE - BLOCK, BLOCK) == b"last" * 1024
    with pytest.raises(StorageConflictError):
        engine.grow_lun(group, "a", SIZE)
    assert engine.grow_lun(group, "b", 3 * SIZE).size_bytes == 3 * SIZE
    engine.withdraw(group, "a")


def test_a_pool_below_its_reserve_refuses_before_anything(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    full = storage.full()
    engine.require_room(group)
    with pytest.raises(PoolFullError):
        full.require_room(group)
    with pytest.raises(PoolFullError):
        full.snapshot_group(group, "s")
    with pytest.raises(PoolFullError):
        full.create_lun(group, "b", SIZE)
    assert engine.snapshots(group) == []
    assert [lun.name for lun in engine.create_group(group).luns] == ["a"]
    assert engine.reconcile() == []


def test_reconcile_of_a_sound_engine_does_nothing(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    engine.snapshot_group(group, "s")
    engine.clone(group, "s", storage.fresh())
    engine.present(group, "a", [ESX1])
    assert engine.reconcile() == []
    assert storage.reopen().reconcile() == []
    engine.withdraw(group, "a")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "unmap"]), st.integers(0, 4095), st.integers(1, 300)
    ),
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(before=STEPS, after=STEPS, growth=st.sampled_from([0, 0, MIB, 8 * MIB]))
def test_changed_extents_never_miss_a_byte(
    storage: Storage, before: list[tuple], after: list[tuple], growth: int
) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", SIZE)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        _play(session, before, SIZE)
        engine.snapshot_group(group, "old")
        if growth:
            engine.grow_lun(group, "a", SIZE + growth)
        _play(session, after, SIZE + growth)
        engine.snapshot_group(group, "new")
    old, new = (engine.open_snapshot(group, "a", name) for name in ("old", "new"))
    listed = list(engine.changed_extents(group, "a", "old", "new"))
    assert all(a.end < b.offset for a, b in itertools.pairwise(listed))
    assert all(e.offset >= 0 and e.length > 0 and e.end <= SIZE + growth for e in listed)
    image = bytearray(old.read(0, SIZE) + bytes(growth))
    for offset, data in new.read_many(listed):
        image[offset : offset + len(data)] = data
    assert bytes(image) == new.read(0, SIZE + growth)
    old.close()
    new.close()
    engine.withdraw(group, "a")
    for name in ("old", "new"):
        engine.delete_snapshot(group, name)
    engine.delete_group(group)


def _play(session, steps: list[tuple], size: int) -> None:
    for kind, place, units in steps:
        offset = place * 512 * (size // SIZE + 7) % (size - 300 * 512) // 512 * 512
        if kind == "write":
            session.write(offset, os.urandom(units * 512))
        else:
            session.unmap(offset, units * 512)
