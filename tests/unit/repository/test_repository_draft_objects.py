"""Drafts as objects: whose count, for how long, and what a reader without Atoll sees."""

from pathlib import Path

import pytest
from stranger import Stranger

from atoll.repository.doubled import as_written
from atoll.repository.drafts import Draft, DraftDisk, DraftLog
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository

DISK = DraftDisk("u1", 2000, 4096, "", "ab" * 32, 4096, 4096, 2000)


def draft(run: str, at: float, until: float = 100.0) -> Draft:
    return Draft(run, at, until, (DISK,))


@pytest.fixture
def log(place: Path, repository: Repository) -> DraftLog:
    return DraftLog(LocalStore.open(place), repository._master, lambda: 50.0)


def test_each_runs_newest_counts_until_its_time_is_over(log: DraftLog) -> None:
    older, newer = log.put(draft("r1", 1.0)), log.put(draft("r1", 2.0))
    over, committed = log.put(draft("r2", 1.0, until=50.0)), log.put(draft("r3", 1.0))
    assert log.going_on({"r3"}) == {newer: draft("r1", 2.0)}
    assert log.of("r1") == (newer, draft("r1", 2.0))
    assert log.of("r2") is None
    assert log.going_on(set()).keys() == {newer, committed}
    assert log.drop_stale({"r3"}) > 0
    assert log.going_on(set()).keys() == {newer}
    assert {older, over, committed}.isdisjoint(log.going_on(set()))
    log.drop("r1")
    log.drop("r1")
    assert log.going_on(set()) == {}


def test_one_whole_copy_is_enough(log: DraftLog, place: Path) -> None:
    name = log.put(draft("r1", 1.0))
    raw = (place / name).read_bytes()
    half = len(raw) // 2
    (place / name).write_bytes(bytes(half) + raw[half:])
    assert log.going_on(set()) == {name: draft("r1", 1.0)}
    (place / name).write_bytes(bytes(len(raw)))
    assert log.going_on(set()) == {}
    assert log.drop_stale(set()) == len(raw)


def test_a_draft_is_read_without_atoll(
    log: DraftLog, repository: Repository, place: Path, key: KeyFile
) -> None:
    repository.put_blob(b"a segment of the index")
    repository.commit([])
    name = log.put(draft("r1", 1.0))
    (document,) = Stranger(place, key_file=key.path).documents("drafts", b"ATOLDRF\x01")
    disk = document["disks"][0]
    assert (document["run"], document["written_at"], document["until"]) == ("r1", 1.0, 100.0)
    assert (disk["vm"], disk["key"], disk["root"], disk["copied_to"]) == (
        *("u1", 2000),
        *("ab" * 32, 4096),
    )
    raw = (place / name).read_bytes()
    assert as_written(repository._master, name, raw[: len(raw) // 2])
