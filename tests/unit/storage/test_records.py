"""What a storage system's engine remembers."""

import sqlite3
import stat
from pathlib import Path

import pytest

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import GroupSnapshot
from atoll.storage.identity import identity_of
from atoll.storage.records import Intent, LunRecord, Owed, Records, SnapshotRecord

A, B = "a" * 32, "b" * 32


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path / "records.sqlite")
    made.create()
    return made


def lun(volume: str, name: str = "a") -> LunRecord:
    return LunRecord(volume, name, 4096, identity_of(volume), f"iqn.x:{volume[:4]}")


def snapshot(name: str, started_at: float, *members: tuple[str, str, int]) -> SnapshotRecord:
    sizes = tuple((each[0], each[2]) for each in members)
    taken = GroupSnapshot("g", name, started_at, started_at + 1, 0.5, sizes)
    return SnapshotRecord(f"id of {name}", taken, members)


def test_missing_records_are_no_empty_system(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreachableError):
        Records(tmp_path / "records.sqlite").groups()
    assert list(tmp_path.iterdir()) == []


def test_records_of_a_later_format_are_refused(records: Records, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "records.sqlite") as rows:
        rows.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageUnreachableError, match="format 99"):
        records.groups()


def test_creating_again_keeps_everything(records: Records, tmp_path: Path) -> None:
    records.add_group("id", "g")
    known = records.system_id
    records.create()
    assert [group.name for group in records.groups()] == ["g"]
    assert records.system_id == known
    assert stat.S_IMODE((tmp_path / "records.sqlite").stat().st_mode) == 0o600


def test_a_group_with_luns_snapshots_and_initiators(records: Records) -> None:
    records.add_group("g-id", "g", luns=[lun(A)])
    assert records.luns("g-id") == [lun(A)]
    later = snapshot("a-later", 2.0, ("a", A, 4096))
    earlier = snapshot("z-earlier", 1.0, ("a", A, 4096), ("b", B, 8192))
    for each in (later, earlier):
        records.add_snapshot(each, "g-id")
    assert records.snapshots("g-id") == [earlier, later]
    records.present(A, ["iqn.y", "iqn.x", "iqn.x"])
    assert records.presented("g-id") == {A: ("iqn.x", "iqn.y")}
    records.add_group("c-id", "c", later.id, [lun(B)], read_only=True)
    clone = records.group("c")
    assert clone is not None
    assert (clone.origin, clone.read_only) == (("g", "a-later"), True)
    assert records.clones_of(later.id) == ["c"]
    with pytest.raises(StorageUnreachableError):
        records.remove_snapshot(clone, later)  # a clone stands on it


def test_what_is_made_is_owed_until_it_is_recorded(records: Records) -> None:
    owed = [Owed("group", "g", "g-id", "g-id"), Owed("volume", "g", "g-id", A)]
    records.owe(*owed)
    assert records.owed("g") == [owed[1], owed[0]]
    assert records.owed("h") == []
    records.add_group("g-id", "g", luns=[lun(A)])
    assert records.owed() == []


def test_what_is_forgotten_is_owed_until_it_is_removed(records: Records) -> None:
    records.add_group("g-id", "g", luns=[lun(A)])
    group = records.group("g")
    assert group is not None
    records.remove_group(group, always=True)
    assert records.group("g") is None
    assert records.luns("g-id") == []
    volume, whole = records.owed()
    assert (volume.kind, volume.id, whole.kind, whole.id) == ("volume", A, "group", "g-id")
    for each in (volume, whole):
        records.paid(each)
    assert records.owed() == []


def test_a_volume_stays_as_long_as_a_snapshot_holds_it(records: Records) -> None:
    records.add_group("g-id", "g", luns=[lun(A)])
    group = records.group("g")
    assert group is not None
    first, second = snapshot("s", 1.0, ("a", A, 4096)), snapshot("t", 2.0, ("a", A, 4096))
    for each in (first, second):
        records.add_snapshot(each, "g-id")
    records.remove_lun(group, A, always=False)
    assert records.owed() == []
    assert records.held_volumes() == {A}
    records.remove_snapshot(group, first)
    assert [each.kind for each in records.owed()] == ["snapshot"]
    records.remove_snapshot(group, second)
    assert [each.kind for each in records.owed()] == ["snapshot", "snapshot", "volume"]
    assert records.held_volumes() == set()


def test_a_failed_change_changes_nothing(records: Records) -> None:
    records.add_group("g-id", "g", luns=[lun(A)])
    with pytest.raises(StorageUnreachableError):
        records.add_group("h-id", "h", luns=[lun(A)])
    assert records.group("h") is None


def test_what_was_begun_is_known_until_it_is_done(records: Records) -> None:
    records.add_group("g-id", "g", luns=[lun(A)])
    records.add_group("h-id", "h")
    records.begin_move(A, "h-id")
    records.begin_revert("g-id", "id of s", {A: 8192})
    assert records.intents("h-id") == [Intent("move", "h-id", f"{A} g-id")]
    assert records.luns("h-id")[0].size_bytes == 8192
    for intent in records.intents():
        records.carried_out(intent)
    assert records.intents() == []
    records.begin_revert("g-id", "id of t", {})
    records.abandon_revert("g-id", "id of t", {A: 4096})
    assert records.intents() == []
    assert records.luns("h-id")[0].size_bytes == 4096


def test_notes(records: Records) -> None:
    records.put_note("port:g", "3260")
    records.put_note("port:h", "3261")
    records.put_note("port%", "no pattern")
    records.put_note("port:h", None)
    assert records.notes("port:") == {"port:g": "3260"}
    assert records.note("port:h") is None
