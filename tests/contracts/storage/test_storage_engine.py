"""What storage/interface.py promises, checked against every engine."""

import itertools
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from storage_engines import CHAP, ESX1, ESX2, ESX3, Storage

from atoll.model.errors import PoolFullError, StorageConflictError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Lun, Portal
from atoll.storage.initiator import lun_numbers
from atoll.storage.interface import StorageEngine
from atoll_lab.iscsi import InitiatorRefusedError, IscsiError, discover
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest

pytestmark = pytest.mark.needs_root

MIB = 1 << 20
BLOCK = 4096


def test_is_a_storage_engine(storage: Storage) -> None:
    engine: StorageEngine = storage.engine
    assert engine.name == "suite"


def test_create_group_and_lun_are_idempotent(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    assert engine.create_group(group).luns == ()
    lun = engine.create_lun(group, "a", storage.size)
    assert (lun.name, lun.group, lun.size_bytes) == ("a", group, storage.size)
    assert lun.naa.startswith("naa.6")
    assert len(lun.naa) == 36
    assert engine.create_lun(group, "a", storage.size) == lun
    assert engine.create_group(group).luns == (lun,)
    assert storage.reopen().create_lun(group, "a", storage.size) == lun
    with pytest.raises(StorageConflictError):
        engine.create_lun(group, "a", storage.size + MIB)


def test_capacity_counts_what_is_promised(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    before = engine.capacity()
    engine.create_lun(group, "a", storage.size)
    after = engine.capacity()
    assert after.provisioned_bytes - before.provisioned_bytes == storage.size
    assert 0 < after.free_bytes <= after.total_bytes


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "-a", "a" * 64])
def test_names_outside_the_contract_are_refused(storage: Storage, name: str) -> None:
    group = storage.fresh()
    storage.engine.create_group(group)
    with pytest.raises(StorageConflictError):
        storage.engine.create_group(name)
    with pytest.raises(StorageConflictError):
        storage.engine.create_lun(group, name, storage.size)
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
        engine.create_lun(group, "a", storage.size)
    with pytest.raises(StorageConflictError):
        engine.snapshot_group(group, "s")
    engine.create_group(group)
    with pytest.raises(StorageConflictError):
        engine.present(group, "a", [ESX1])
    with pytest.raises(StorageConflictError):
        engine.grow_lun(group, "a", storage.size)
    with pytest.raises(StorageConflictError):
        engine.clone(group, "s", storage.fresh())
    with pytest.raises(StorageConflictError):
        engine.open_snapshot(group, "a", "s")
    with pytest.raises(StorageConflictError):
        list(engine.changed_extents(group, "a", "s", "t"))


def test_only_the_named_initiators_see_a_lun(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    lun = engine.create_lun(group, "a", storage.size)
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
        assert session.read_capacity() == storage.size
    assert portal.target in {target.name for target in discover(address, ESX1)}
    assert not _shown(portal, ESX2)
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


def _shown(portal: Portal, initiator: str) -> bool:
    """Whether it finds the LUN: by its target, or in the one target that an array shows to all."""
    address = f"{portal.address}:{portal.port}"
    if portal.target not in {target.name for target in discover(address, initiator)}:
        return False
    try:
        return portal.lun_number in lun_numbers(address, portal.target, initiator)
    except InitiatorRefusedError:
        return False


def test_an_initiator_taken_off_the_list_loses_its_session(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
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
    engine.create_lun(group, "a", storage.size)
    for initiators in ([], ["ALL"], ["iqn.a,b=c"]):
        with pytest.raises(StorageConflictError):
            engine.present(group, "a", initiators)


def test_identity_and_portal_survive(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
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
    engine.create_lun(group, "a", storage.size)
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
    engine.create_lun(group, "a", storage.size)
    engine.create_lun(group, "b", 2 * storage.size)
    portal = engine.present(group, "a", [ESX1]).portals[0]
    with storage.open(portal) as session:
        session.write(BLOCK, b"old!" * 1024)
        taken = engine.snapshot_group(group, "s1")
        session.write(BLOCK, b"new!" * 1024)
        assert engine.snapshot_group(group, "s1") == taken
        second = engine.snapshot_group(group, "s2")
    assert taken.started_at <= taken.finished_at <= second.started_at
    assert taken.pause_seconds >= 0
    assert dict(taken.lun_sizes) == {"a": storage.size, "b": 2 * storage.size}
    assert engine.snapshots(group) == [taken, second]
    assert storage.reopen().snapshots(group) == [taken, second]
    reader = engine.open_snapshot(group, "a", "s1")
    assert isinstance(reader, BlockReader)
    assert reader.size_bytes == storage.size
    assert reader.read(BLOCK, BLOCK) == b"old!" * 1024
    assert reader.read(storage.size - 10, 100) == bytes(10)
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
    old = engine.create_lun(group, "a", storage.size)
    engine.snapshot_group(group, "s")
    with pytest.raises(StorageConflictError):
        engine.delete_lun(group, "a")
    engine.present(group, "a", [ESX1])
    engine.delete_lun(group, "a", force=True)
    engine.delete_lun(group, "a", force=True)
    assert [one for one in engine.presentations() if one.group == group] == []
    with closing(engine.open_snapshot(group, "a", "s")) as reader:
        assert reader.size_bytes == storage.size
    new = engine.create_lun(group, "a", 2 * storage.size)
    assert new.naa != old.naa


def test_a_clone_is_writable_and_apart(storage: Storage) -> None:
    engine, group, clone = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(group)
    lun = engine.create_lun(group, "a", storage.size)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(0, b"base" * 1024)
    engine.snapshot_group(group, "s")
    made = engine.clone(group, "s", clone)
    assert made.clone_of == f"{group}@s"
    assert [one.size_bytes for one in made.luns] == [storage.size]
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
    before = engine.create_lun(group, "a", storage.size)
    engine.create_lun(group, "b", storage.size)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(0, b"kept" * 1024)
        with pytest.raises(IscsiError):
            session.write(storage.size, b"past" * 1024)
        grown = engine.grow_lun(group, "a", 2 * storage.size)
        assert (grown.size_bytes, grown.naa) == (2 * storage.size, before.naa)
        assert engine.grow_lun(group, "a", 2 * storage.size) == grown
        assert session.read(0, BLOCK) == b"kept" * 1024
        assert session.read_capacity() == 2 * storage.size
        session.write(2 * storage.size - BLOCK, b"last" * 1024)
        assert session.read(2 * storage.size - BLOCK, BLOCK) == b"last" * 1024
    with pytest.raises(StorageConflictError):
        engine.grow_lun(group, "a", storage.size)
    assert engine.grow_lun(group, "b", 3 * storage.size).size_bytes == 3 * storage.size
    engine.withdraw(group, "a")


def test_a_pool_below_its_reserve_refuses_before_anything(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    full = storage.reopen(reserve_bytes=1 << 60)
    engine.require_room(group)
    with pytest.raises(PoolFullError):
        full.require_room(group)
    with pytest.raises(PoolFullError):
        full.snapshot_group(group, "s")
    with pytest.raises(PoolFullError):
        full.create_lun(group, "b", storage.size)
    assert engine.snapshots(group) == []
    assert [lun.name for lun in engine.create_group(group).luns] == ["a"]
    assert engine.reconcile() == []


def test_reconcile_of_a_sound_engine_does_nothing(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    engine.snapshot_group(group, "s")
    engine.clone(group, "s", storage.fresh())
    engine.present(group, "a", [ESX1])
    assert engine.reconcile() == []
    assert storage.reopen().reconcile() == []
    engine.withdraw(group, "a")


def test_a_forced_delete_takes_all_but_clones(storage: Storage) -> None:
    engine, group, clone = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    engine.present(group, "a", [ESX1])
    engine.snapshot_group(group, "s")
    engine.clone(group, "s", clone)
    with pytest.raises(StorageConflictError):
        engine.delete_group(group, force=True)
    assert [one.lun for one in engine.presentations() if one.group == group] == ["a"]
    engine.delete_clone(clone)
    engine.delete_group(group, force=True)
    engine.delete_group(group, force=True)
    assert group not in {one.name for one in engine.groups()}
    assert engine.reconcile() == []


def test_renaming_changes_a_name_and_nothing_else(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    before = engine.create_lun(group, "a", storage.size)
    engine.create_lun(group, "other", storage.size)
    shown = engine.present(group, "a", [ESX1])
    with storage.open(shown.portals[0]) as session:
        session.write(0, b"kept" * 1024)
        engine.snapshot_group(group, "s")
        after = engine.rename_lun(group, "a", "b")
        assert engine.rename_lun(group, "a", "b") == after
        assert (after.naa, after.serial, after.volume) == (before.naa, before.serial, before.volume)
        assert session.read(0, BLOCK) == b"kept" * 1024
        session.write(0, b"more" * 1024)
    with pytest.raises(StorageConflictError):
        engine.rename_lun(group, "b", "other")
    with pytest.raises(StorageConflictError):
        engine.rename_lun(group, "b", "../c")
    (again,) = (one for one in engine.presentations() if one.group == group)
    assert (again.lun, again.portals) == ("b", shown.portals)
    engine.snapshot_group(group, "t")
    for name in ("a", "b"):  # what it was called then, and what it is called now
        with closing(engine.open_snapshot(group, name, "s")) as reader:
            assert reader.read(0, 4) == b"kept"
    assert list(engine.changed_extents(group, "b", "s", "t"))
    fresh = engine.create_lun(group, "a", storage.size)
    portal, first = engine.present(group, "a", [ESX1]).portals[0], shown.portals[0]
    assert (portal.target, portal.lun_number) != (first.target, first.lun_number)
    assert fresh.naa != before.naa
    for name in ("a", "b"):
        engine.withdraw(group, name)


def test_a_lun_moves_to_another_group_with_its_identity(storage: Storage) -> None:
    engine, group, other = storage.engine, storage.fresh(), storage.fresh()
    for name in (group, other):
        engine.create_group(name)
    before = engine.create_lun(group, "a", storage.size)
    engine.create_lun(group, "b", storage.size)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(0, b"kept" * 1024)
        engine.snapshot_group(group, "s")
    with pytest.raises(StorageConflictError):
        engine.move_lun(group, "a", other)
    engine.withdraw(group, "a")
    with pytest.raises(StorageConflictError):
        engine.move_lun(group, "a", storage.fresh())
    clone = storage.fresh()
    engine.clone(group, "s", clone)
    for source, target in ((group, clone), (clone, other)):
        with pytest.raises(StorageConflictError, match="clone"):
            engine.move_lun(source, "a", target)
    engine.delete_clone(clone)
    after = engine.move_lun(group, "a", other)
    assert engine.move_lun(group, "a", other) == after
    assert (after.group, after.naa, after.size_bytes) == (other, before.naa, storage.size)
    assert [lun.name for lun in engine.create_group(group).luns] == ["b"]
    with storage.open(engine.present(other, "a", [ESX1]).portals[0]) as session:
        assert session.inquiry().naa == before.naa
        assert session.read(0, BLOCK) == b"kept" * 1024
        session.write(0, b"more" * 1024)
        engine.snapshot_group(other, "t")
    with closing(engine.open_snapshot(group, "a", "s")) as reader:
        assert reader.read(0, 4) == b"kept"
    with closing(engine.open_snapshot(other, "a", "t")) as reader:
        assert reader.read(0, 4) == b"more"
    engine.withdraw(other, "a")
    engine.delete_group(other, force=True)
    with closing(engine.open_snapshot(group, "a", "s")) as reader:
        assert reader.read(0, 4) == b"kept"
    engine.delete_group(group, force=True)
    assert engine.reconcile() == []


def test_snapshots_expire_when_their_time_is_over(storage: Storage) -> None:
    engine, group, clone = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    now = time.time()
    assert engine.snapshot_group(group, "over", now - 1).expires_at == now - 1
    engine.snapshot_group(group, "cloned", now - 1)
    engine.snapshot_group(group, "later", now + 3600)
    engine.snapshot_group(group, "kept")
    engine.clone(group, "cloned", clone)
    assert engine.expire_snapshots() == [f"{group}@over"]
    assert engine.expire_snapshots() == []
    engine.delete_clone(clone)
    assert engine.keep_snapshot(group, "kept", now - 1).expires_at == now - 1
    assert engine.keep_snapshot(group, "cloned").expires_at is None
    assert storage.reopen().expire_snapshots() == [f"{group}@kept"]
    assert [one.name for one in engine.snapshots(group)] == ["cloned", "later"]


def test_what_is_written_on_a_snapshot_goes_with_it(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    engine.snapshot_group(group, "snap1")
    assert engine.annotation(group, "snap1") is None
    for words in ("first", '{"words": "last – ✓"}'):
        engine.annotate_snapshot(group, "snap1", words)
    assert storage.reopen().annotation(group, "snap1") == '{"words": "last – ✓"}'
    with pytest.raises(StorageConflictError):
        engine.annotate_snapshot(group, "snap2", "of nothing")
    engine.delete_snapshot(group, "snap1")
    assert engine.annotation(group, "snap1") is None
    engine.snapshot_group(group, "snap1")
    assert engine.annotation(group, "snap1") is None


def test_reverting_brings_everything_back(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    if not engine.capabilities.revert:
        pytest.skip("this engine cannot revert")
    engine.create_group(group)
    lun = engine.create_lun(group, "a", storage.size)
    engine.create_lun(group, "gone", storage.size)
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(BLOCK, b"then" * 1024)
        engine.snapshot_group(group, "s")
        session.write(BLOCK, b"now!" * 1024)
        session.write(3 * BLOCK, b"late" * 1024)
        engine.grow_lun(group, "a", 2 * storage.size)
        engine.snapshot_group(group, "t")
    with pytest.raises(StorageConflictError):
        engine.revert_group(group, "s")
    engine.withdraw(group, "a")
    engine.delete_lun(group, "gone", force=True)
    engine.create_lun(group, "new", storage.size)
    with pytest.raises(StorageConflictError):
        engine.revert_group(group, "s")
    engine.delete_lun(group, "new", force=True)
    (reverted,) = engine.revert_group(group, "s").luns
    assert (reverted.naa, reverted.size_bytes) == (lun.naa, storage.size)
    portal = engine.present(group, "a", [ESX1]).portals[0]
    with storage.open(portal) as session:
        assert session.read_capacity() == storage.size
        assert session.read(BLOCK, BLOCK) == b"then" * 1024
        assert session.read(3 * BLOCK, BLOCK) == bytes(BLOCK)
        session.write(5 * BLOCK, b"next" * 1024)
    engine.snapshot_group(group, "u")
    for older, block in (("s", 5), ("t", 1), ("t", 3)):
        listed = engine.changed_extents(group, "a", older, "u")
        assert any(e.offset <= block * BLOCK < e.end for e in listed)
    with closing(engine.open_snapshot(group, "a", "t")) as reader:
        assert reader.read(3 * BLOCK, 4) == b"late"
    engine.withdraw(group, "a")
    (forward,) = engine.revert_group(group, "t").luns
    assert forward.size_bytes == 2 * storage.size
    assert engine.reconcile() == []
    engine.delete_group(group, force=True)


def test_a_read_only_clone_is_read_and_never_written(storage: Storage) -> None:
    engine, group, clone = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    if not engine.capabilities.read_only_clones:
        engine.snapshot_group(group, "s")
        with pytest.raises(StorageConflictError):
            engine.clone(group, "s", clone, read_only=True)
        return
    with storage.open(engine.present(group, "a", [ESX1]).portals[0]) as session:
        session.write(0, b"base" * 1024)
    engine.snapshot_group(group, "s")
    made = engine.clone(group, "s", clone, read_only=True)
    assert made.read_only
    assert engine.clone(group, "s", clone, read_only=True) == made
    with pytest.raises(StorageConflictError):
        engine.clone(group, "s", clone)
    with storage.open(engine.present(clone, "a", [ESX2]).portals[0], ESX2) as session:
        with pytest.raises(IscsiError):
            session.write(0, b"mine" * 1024)
        assert session.read(0, BLOCK) == b"base" * 1024
    for refused in (
        lambda: engine.create_lun(clone, "b", storage.size),
        lambda: engine.grow_lun(clone, "a", 2 * storage.size),
    ):
        with pytest.raises(StorageConflictError):
            refused()
    engine.delete_clone(clone)
    engine.withdraw(group, "a")


def test_a_clone_of_a_clone_stands_by_itself(storage: Storage) -> None:
    engine = storage.engine
    names = [storage.fresh() for _ in range(4)]
    engine.create_group(names[0])
    engine.create_lun(names[0], "a", storage.size)
    for number, name in enumerate(names):
        with storage.open(engine.present(name, "a", [ESX1]).portals[0]) as session:
            session.write(number * BLOCK, bytes([number + 1]) * BLOCK)
        engine.snapshot_group(name, "s")
        if number + 1 < len(names):
            engine.clone(name, "s", names[number + 1])
    for depth, name in enumerate(names):
        with closing(engine.open_snapshot(name, "a", "s")) as reader:
            wanted = [number + 1 if number <= depth else 0 for number in range(len(names))]
            assert [reader.read(n * BLOCK, 1)[0] for n in range(len(names))] == wanted
    with pytest.raises(StorageConflictError):
        engine.delete_clone(names[1])
    for name in reversed(names[1:]):
        engine.delete_snapshot(name, "s")
        engine.delete_clone(name)
    engine.delete_group(names[0], force=True)
    assert engine.reconcile() == []


def test_chap_asks_for_the_secret_and_proves_the_target(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    with pytest.raises(StorageConflictError):
        engine.present(group, "a", [ESX1, ESX3])  # with an account and without
    if not engine.capabilities.chap:
        with pytest.raises(StorageConflictError, match="CHAP"):
            engine.present(group, "a", [ESX3])
        return
    portal = engine.present(group, "a", [ESX3]).portals[0]
    wrong = replace(CHAP, secret="another-secret-3")
    for chap in (None, wrong):
        with pytest.raises(InitiatorRefusedError):
            storage.open(portal, ESX3, chap)
    with pytest.raises(IscsiError):
        storage.open(portal, ESX3, replace(CHAP, mutual_secret="who-is-this-then"))
    with storage.open(portal, ESX3, CHAP) as session:
        session.write(0, b"mine" * 1024)
    engine.withdraw(group, "a")


def test_every_portal_leads_to_the_same_lun(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    lun = engine.create_lun(group, "a", storage.size)
    shown = engine.present(group, "a", [ESX1])
    for number, portal in enumerate(shown.portals):
        with storage.open(portal) as session:
            assert session.inquiry().naa == lun.naa
            session.write(number * BLOCK, b"path" * 1024)
    with storage.open(shown.portals[0]) as session:
        for number in range(len(shown.portals)):
            assert session.read(number * BLOCK, BLOCK) == b"path" * 1024
    engine.withdraw(group, "a")


def test_what_the_system_lost_is_told_and_kept_in_the_records(storage: Storage) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    for name in ("a", "b"):
        engine.create_lun(group, name, storage.size)
        engine.present(group, name, [ESX1])
    (lost,) = (lun for lun in engine.create_group(group).luns if lun.name == "a")
    backend, record = engine._backend, engine._records.group(group)
    assert record is not None
    engine.stop()
    backend.delete_volume(record.id, lost.volume)  # behind the engine's back
    said = engine.reconcile()
    assert any(f"{group}/a" in line for line in said)
    assert [lun.lost for lun in engine.create_group(group).luns] == [True, False]
    (portal,) = (one for one in engine.presentations() if (one.group, one.lun) == (group, "b"))
    with storage.open(portal.portals[0]) as session:  # one that is lost keeps no other away
        assert session.read_capacity() == storage.size
    with pytest.raises(StorageConflictError):
        engine.present(group, "a", [ESX1])
    assert [name for name, _ in engine.snapshot_group(group, "s").lun_sizes] == ["b"]
    engine.delete_group(group, force=True)
    assert engine.reconcile() == []


def test_what_no_record_explains_goes_after_the_grace_time(storage: Storage) -> None:
    """As when the records were restored from an older copy."""
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    engine.create_lun(group, "a", storage.size)
    engine.snapshot_group(group, "s")
    record = engine._records.group(group)
    assert record is not None
    (snapshot,) = engine._records.snapshots(record.id)
    with engine._records._transaction("IMMEDIATE") as rows:
        rows.execute("DELETE FROM snapshot WHERE id = ?", (snapshot.id,))
        rows.execute("DELETE FROM lun_group WHERE id = ?", (record.id,))
    (volume,) = snapshot.volumes
    told = engine.reconcile()
    assert any(volume in line for line in told)
    assert any(snapshot.id in line for line in told)
    assert volume in engine._backend.volumes()
    assert snapshot.id in engine._backend.snapshots()
    hasty = storage.reopen(grace_days=0.0)
    assert len(hasty.reconcile()) == len(told)
    assert volume not in engine._backend.volumes()
    assert snapshot.id not in engine._backend.snapshots()
    assert record.id not in engine._backend.groups()
    assert engine.reconcile() == []


def test_a_pool_promises_no_more_than_its_limit(storage: Storage) -> None:
    capacity = storage.engine.capacity()
    group = storage.fresh()
    storage.engine.create_group(group)
    room = 2 * storage.size + capacity.provisioned_bytes
    careful = storage.reopen(overcommit_limit=room / capacity.total_bytes)
    careful.create_lun(group, "a", storage.size)
    with pytest.raises(PoolFullError):
        careful.create_lun(group, "b", 2 * storage.size)
    with pytest.raises(PoolFullError):
        careful.grow_lun(group, "a", 3 * storage.size)
    assert [lun.size_bytes for lun in careful.create_group(group).luns] == [storage.size]
    assert careful.alarms() == storage.engine.alarms()
    strict = storage.reopen(overcommit_limit=1 / capacity.total_bytes)
    assert [alarm.level for alarm in strict.alarms()] == ["warning"]


@pytest.mark.parametrize(
    ("luns", "snapshots"),
    [(4, 5), pytest.param(4, 100, marks=pytest.mark.soak)],
)
def test_every_snapshot_of_a_group_is_one_instant(
    storage: Storage, luns: int, snapshots: int
) -> None:
    engine, group = storage.engine, storage.fresh()
    engine.create_group(group)
    sessions = []
    for number in range(luns):
        engine.create_lun(group, f"l{number}", storage.size)
        portal = engine.present(group, f"l{number}", [ESX1]).portals[0]
        sessions.append(storage.open(portal))
    writer = OrderedWriter(sessions, flush=False)
    writer.start()
    seen = []
    try:
        for number in range(snapshots):
            before = writer.written
            engine.snapshot_group(group, f"s{number}")
            found = []
            for lun in range(luns):
                with closing(engine.open_snapshot(group, f"l{lun}", f"s{number}")) as reader:
                    found.append(newest(reader))
            assert is_one_instant(found), f"snapshot {number} holds {found}"
            assert found[-1] >= before, "an acknowledged write is missing"
            seen.append(found[0])
            engine.delete_snapshot(group, f"s{number}")
    finally:
        writer.end()
        for session in sessions:
            session.close()
    assert seen[-1] > seen[0], "the writer did not write, so nothing was tested"
    engine.delete_group(group, force=True)


@pytest.mark.soak
def test_a_group_of_64_luns_and_a_group_of_200_snapshots(storage: Storage) -> None:
    engine, wide, deep = storage.engine, storage.fresh(), storage.fresh()
    engine.create_group(wide)
    for number in range(64):
        engine.create_lun(wide, f"l{number}", storage.size)
    assert len(engine.snapshot_group(wide, "s").lun_sizes) == 64
    assert len(engine.clone(wide, "s", f"{wide}-copy").luns) == 64
    engine.delete_clone(f"{wide}-copy")
    engine.delete_group(wide, force=True)
    engine.create_group(deep)
    engine.create_lun(deep, "a", storage.size)
    with storage.open(engine.present(deep, "a", [ESX1]).portals[0]) as session:
        for number in range(200):
            session.write(number * 512, bytes([number + 1]) * 512)
            engine.snapshot_group(deep, f"s{number}")
    assert len(engine.snapshots(deep)) == 200
    for number in (0, 99, 199):
        with closing(engine.open_snapshot(deep, "a", f"s{number}")) as reader:
            assert reader.read(number * 512, 1)[0] == number + 1
            assert reader.read((number + 1) * 512, 1) == bytes(1)
    if engine.capabilities.changed_extents == "listed":
        listed = list(engine.changed_extents(deep, "a", "s0", "s199"))
        assert sum(extent.length for extent in listed) < storage.size
    engine.delete_group(deep, force=True)
    assert engine.reconcile() == []


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1 << 20), st.integers(1, 64)),
    st.tuples(st.just("write"), st.integers(0, 1 << 20), st.sampled_from([2048, 16384])),
    st.tuples(st.just("unmap"), st.integers(0, 1 << 20), st.integers(1, 4096)),
    st.tuples(st.just("grow"), st.integers(1, 8), st.just(0)),
    st.tuples(st.just("clone"), st.just(0), st.just(0)),
)
WORKLOAD = st.lists(st.lists(STEP, max_size=6), min_size=2, max_size=4)
_EXAMPLES = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture
def listing(storage: Storage) -> Storage:
    """An engine that lists what changed."""
    if storage.engine.capabilities.changed_extents == "compared":
        pytest.skip("everything counts as changed with this engine")
    return storage


@settings(_EXAMPLES, phases=[Phase.explicit])
@example(
    # All steps, several between two snapshots, a clone of a clone, and writes over what was there.
    workload=[
        [("write", 0, 64), ("clone", 0, 0), ("write", 9000, 2048), ("clone", 0, 0)],
        [("write", 9100, 3), ("unmap", 0, 4096), ("write", 32767, 64)],
        [("grow", 3, 0), ("write", 40000, 16384), ("unmap", 9000, 1)],
        [("write", 1 << 20, 5), ("write", 1 << 19, 1), ("grow", 1, 0)],
    ],
    order=random.Random(1),
)
@given(workload=WORKLOAD, order=st.randoms(use_true_random=False))
def test_changed_extents_never_miss_a_byte(
    listing: Storage, workload: list[list[tuple]], order: random.Random
) -> None:
    check_changed_extents(listing, workload, order)


@pytest.mark.soak
@settings(_EXAMPLES, max_examples=100)
@given(workload=WORKLOAD, order=st.randoms(use_true_random=False))
def test_changed_extents_never_miss_a_byte_in_many_tries(
    listing: Storage, workload: list[list[tuple]], order: random.Random
) -> None:
    check_changed_extents(listing, workload, order)


def check_changed_extents(
    storage: Storage, workload: list[list[tuple]], order: random.Random
) -> None:
    """Play each list of steps and snapshot; compare every pair of snapshots, in any order.

    A clone goes on where the group before it stood, so it is a clone of a clone sooner or later.
    """
    engine, made = storage.engine, [storage.fresh()]
    engine.create_group(made[0])
    engine.create_lun(made[0], "a", storage.size)
    taken = []
    for number, steps in enumerate(workload):
        for kind, place, units in steps:
            if kind == "clone":
                engine.snapshot_group(made[-1], "base")
                made.append(storage.fresh())
                engine.clone(made[-2], "base", made[-1])
                taken = []
            elif kind == "grow":
                (lun,) = _luns(engine, made[-1])
                unit = engine.capabilities.unit_bytes
                engine.grow_lun(made[-1], "a", lun.size_bytes + place * unit)
            else:
                _play(storage, made[-1], kind, place, units)
        engine.snapshot_group(made[-1], f"s{number}")
        taken.append(f"s{number}")
    pairs = list(itertools.combinations(taken, 2))
    order.shuffle(pairs)
    for older, newer in pairs:
        _compare(engine, made[-1], older, newer)
    for group in reversed(made):
        engine.delete_group(group, force=True)


def _play(storage: Storage, group: str, kind: str, place: int, units: int) -> None:
    with storage.open(storage.engine.present(group, "a", [ESX1]).portals[0]) as session:
        size = session.read_capacity()
        length = min(units * 512, size)
        offset = place * 512 % (size - length + 512)
        if kind == "write":
            session.write(offset, random.Random(place).randbytes(length))
        elif session.thin:
            session.unmap(offset, length)


def _compare(engine: StorageEngine, group: str, older: str, newer: str) -> None:
    """The older image with the listed ranges of the newer one is the newer one."""
    with (
        closing(engine.open_snapshot(group, "a", older)) as old,
        closing(engine.open_snapshot(group, "a", newer)) as new,
    ):
        listed = list(engine.changed_extents(group, "a", older, newer))
        assert all(a.end < b.offset for a, b in itertools.pairwise(listed))
        assert all(e.offset >= 0 and e.length > 0 and e.end <= new.size_bytes for e in listed)
        image = bytearray(old.read(0, old.size_bytes) + bytes(new.size_bytes - old.size_bytes))
        for offset, data in new.read_many(listed):
            image[offset : offset + len(data)] = data
        assert bytes(image) == new.read(0, new.size_bytes)


def _luns(engine: StorageEngine, group: str) -> Sequence[Lun]:
    return next(one.luns for one in engine.groups() if one.name == group)
