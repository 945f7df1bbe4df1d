"""Two storage systems behave as one: every group on the one that has it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from atoll.model.errors import StorageConflictError
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.federation import Federation, as_one, systems_of
from atoll.storage.interface import StorageEngine
from atoll.storage.limits import Allowances
from atoll_lab.pool import create_loop_pool, destroy

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20


@pytest.fixture
def systems(tmp_path: Path) -> Iterator[list[ManagedEngine]]:
    opened = []
    sizes = {"small": 512 * MIB, "large": 1024 * MIB}
    try:
        for name, size in sizes.items():
            root = create_loop_pool(tmp_path / name, size)
            create_pool(root, name)
            opened.append(open_embedded(root, Rules(Allowances(reserve_bytes=MIB))))
        yield opened
    finally:
        for engine in opened:
            engine.stop()
        for name in sizes:
            destroy(tmp_path / name)


def test_one_system_needs_no_federation(systems: list[ManagedEngine]) -> None:
    assert as_one(systems[:1]) is systems[0]
    assert systems_of(systems[0]) == [systems[0]]
    assert list(systems_of(as_one(systems))) == systems


def test_every_call_finds_its_system(systems: list[ManagedEngine]) -> None:
    small, large = systems
    whole: StorageEngine = Federation(systems)
    small.create_group("old")
    whole.create_group("new")
    assert [group.name for group in large.groups()] == ["new"]
    assert [group.name for group in whole.groups()] == ["new", "old"]
    whole.create_group("old")  # where it is
    for group in ("old", "new"):
        whole.create_lun(group, "a", 16 * MIB)
        whole.present(group, "a", [HOST])
        whole.snapshot_group(group, "s", 1.0)
        whole.require_room(group)
        assert [one.name for one in whole.snapshots(group)] == ["s"]
        whole.clone(group, "s", f"{group}-copy")
        with closing(whole.open_snapshot(group, "a", "s")) as reader:
            assert reader.size_bytes == 16 * MIB
        whole.grow_lun(group, "a", 32 * MIB)
        whole.rename_lun(group, "a", "b")
        whole.snapshot_group(group, "t")
        assert list(whole.changed_extents(group, "b", "s", "t")) == []
    assert [group.name for group in small.groups()] == ["old", "old-copy"]
    assert {one.group for one in whole.presentations()} == {"old", "new"}
    assert whole.capacity().provisioned_bytes == 2 * (32 + 16) * MIB
    assert whole.reconcile() == []
    with pytest.raises(StorageConflictError, match="different storage systems"):
        whole.move_lun("old", "b", "new")
    with pytest.raises(StorageConflictError, match="Another storage system"):
        whole.clone("old", "t", "new")
    with pytest.raises(StorageConflictError, match="--system"):
        whole.devices()
    with pytest.raises(StorageConflictError, match="nowhere"):
        whole.create_lun("nowhere", "a", 16 * MIB)
    for group in ("old", "new"):
        whole.withdraw(group, "b")
        whole.delete_clone(f"{group}-copy")
        whole.revert_group(group, "s")
    assert whole.expire_snapshots() == ["old@s", "new@s"]
    for group in ("old", "new", "nowhere"):
        whole.delete_snapshot(group, "t")
        whole.delete_lun(group, "b")
        whole.delete_group(group)
    assert whole.groups() == []


def test_a_name_on_two_systems_is_an_error(systems: list[ManagedEngine]) -> None:
    for system in systems:
        system.create_group("same")
    with pytest.raises(StorageConflictError, match="Two storage systems"):
        Federation(systems).groups()


def test_alarms_name_their_system_the_worst_first(systems: list[ManagedEngine]) -> None:
    small, large = systems
    large.create_group("g")
    large.create_lun("g", "a", 16 * MIB)
    strict = [
        ManagedEngine(engine.name, engine._records, lambda _, engine=engine: engine._backend, rules)
        for engine, rules in (
            (large, Rules(Allowances(reserve_bytes=MIB, overcommit_limit=0.001))),
            (small, Rules(Allowances(reserve_bytes=1 << 60))),
        )
    ]
    alarms = Federation(strict).alarms()
    assert [alarm.level for alarm in alarms] == ["critical", "warning"]
    assert alarms[0].text.startswith("small: ")
