"""The pool's records."""

import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import GroupSnapshot
from atoll.storage.drivers.embedded.records import LunRecord, Records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path / "records.sqlite")
    made.create()
    return made


def test_missing_records_are_no_empty_pool(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreachableError):
        Records(tmp_path / "records.sqlite").groups()
    assert list(tmp_path.iterdir()) == []


def test_records_of_a_later_format_are_refused(records: Records, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "records.sqlite") as rows:
        rows.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageUnreachableError, match="format 99"):
        records.groups()


def test_creating_again_keeps_everything(records: Records) -> None:
    records.add_group("g")
    records.create()
    assert [group.name for group in records.groups()] == ["g"]


def test_a_group_with_luns_snapshots_and_initiators(records: Records) -> None:
    lun = LunRecord("g", "a", uuid4())
    records.add_group("g", ("origin", "s"), [lun])
    assert records.luns("g") == [lun]
    assert records.clones_of("origin", "s") == ["g"]
    second = GroupSnapshot("g", "a-later", 2.0, 3.0, 0.5, (("a", 4096),))
    first = GroupSnapshot("g", "z-earlier", 1.0, 1.5, 0.1, (("a", 4096), ("b", 8192)))
    records.add_snapshot(second)
    records.add_snapshot(first)
    assert records.snapshots("g") == [first, second]
    records.present("g", "a", ["iqn.y", "iqn.x", "iqn.x"])
    assert records.presented("g") == {"a": ("iqn.x", "iqn.y")}


def test_removing_owes_a_path_until_it_is_removed(records: Records) -> None:
    records.add_group("g", luns=[LunRecord("g", "a", uuid4())])
    records.remove_group("g", "groups/g")
    assert records.group("g") is None
    assert records.luns("g") == []
    assert records.removals() == ["groups/g"]
    records.removed("groups/g")
    assert records.removals() == []


def test_a_failed_change_changes_nothing(records: Records) -> None:
    lun = LunRecord("g", "a", uuid4())
    records.add_group("g", luns=[lun])
    with pytest.raises(StorageUnreachableError):
        records.add_group("h", luns=[LunRecord("h", "a", lun.uuid)])
    assert records.group("h") is None


def test_a_port_belongs_to_one_group(records: Records) -> None:
    records.add_group("g")
    records.add_group("h")
    records.set_port("g", 3260)
    with pytest.raises(StorageUnreachableError):
        records.set_port("h", 3260)
    assert records.ports() == {3260}
