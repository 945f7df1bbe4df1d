"""Making, opening, finding points, evidence, leftovers."""

import shutil
from pathlib import Path

import pytest

from atoll.model.errors import (
    ConfigurationError,
    RepositoryDamagedError,
    RepositoryKeyError,
    RepositoryUnreachableError,
    StorageConflictError,
    UnknownPointError,
    UnsupportedFormatError,
)
from atoll.model.points import Evidence
from atoll.repository.keys import Argon2Cost, KeyFile, Passphrase, create_key_file
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from atoll.repository.sealing import checked, twice
from repository_parts import CHUNK, MemoryDisk, image, noise, point


def test_a_repository_is_made_once(place: Path, key: KeyFile, repository: Repository) -> None:
    with pytest.raises(StorageConflictError):
        Repository.create(place, key)
    assert Repository.open(f"file://{place}", key).chunk_bytes == CHUNK


def test_a_creation_that_was_killed_is_made_anew(place: Path, key: KeyFile) -> None:
    Repository.create(place, key).close()
    (place / "config").unlink()  # the key slot of the first try stays
    with pytest.raises(RepositoryUnreachableError, match="atoll repo init"):
        Repository.open(place, key)
    made = Repository.create(place, key)
    assert Repository.open(place, key).key_id == made.key_id


def test_wrong_keys_and_places_are_told_apart(
    tmp_path: Path, place: Path, key: KeyFile, repository: Repository
) -> None:
    with pytest.raises(RepositoryKeyError, match=repository.key_id):
        Repository.open(place, create_key_file(tmp_path / "other"))
    with pytest.raises(RepositoryKeyError):
        Repository.open(place, Passphrase("guess"))
    with pytest.raises(RepositoryUnreachableError):
        Repository.open(tmp_path / "nowhere", key)
    with pytest.raises(ConfigurationError):
        Repository.open("ftp://server/backups", key)
    with pytest.raises(ConfigurationError):
        Repository.create(tmp_path / "odd", key, chunk_bytes=5000)


def test_a_passphrase_opens(tmp_path: Path) -> None:
    cheap = Argon2Cost(memory_kib=64, passes=1, lanes=1)
    Repository.create(tmp_path / "r", Passphrase("open sesame", cheap)).close()
    Repository.open(tmp_path / "r", Passphrase("open sesame")).close()
    with pytest.raises(RepositoryKeyError):
        Repository.open(tmp_path / "r", Passphrase("open says me"))


def test_a_newer_format_is_refused_by_name(place: Path, key: KeyFile) -> None:
    LocalStore.create(place).put(
        "config", [twice(checked(b'{"format": "atoll-repository", "version": 2}|tag'))]
    )
    with pytest.raises(UnsupportedFormatError, match="newer Atoll"):
        Repository.open(place, key)


def test_settings_altered_without_the_key_are_refused(
    place: Path, key: KeyFile, repository: Repository
) -> None:
    config = place / "config"
    line = config.read_bytes().split(b"\n")[0]
    config.write_bytes(twice(checked(line.replace(b"4096", b"8192"))))
    with pytest.raises(RepositoryDamagedError, match="altered without its key"):
        Repository.open(place, key)


def test_points_are_found_by_name_time_and_id(repository: Repository) -> None:
    disk = image(repository.copy_disk(MemoryDisk(noise(1, CHUNK))))
    with pytest.raises(UnknownPointError, match="none yet"):
        repository.find("db1")
    repository.commit(
        [
            point("20260102-bb-db1", disk, at=2.0),
            point("20260101-aa-db1", disk, at=1.0),
            point("20260102-bb-odd@vm", disk, vm="odd@vm", at=2.0),
        ]
    )
    assert [found.created_at for found in repository.points()] == [1.0, 2.0, 2.0]
    for reference in (
        "db1",
        "db1@latest",
        "db1@20260102",
        "20260102-bb-db1",
        "db1@20260102-bb-db1",
    ):
        assert repository.find(reference).id == "20260102-bb-db1"
    assert repository.find("db1@20260101").created_at == 1.0
    assert repository.find("odd@vm").vm == "odd@vm"
    assert repository.find("odd@vm@latest").vm == "odd@vm"
    for reference, hint in (
        ("db1@2026", "could be any of 20260101-aa-db1, 20260102-bb-db1"),
        ("db1@1999", "that VM has 20260101-aa-db1"),
        ("db9", "there are points of db1, odd@vm"),
    ):
        with pytest.raises(UnknownPointError, match=hint):
            repository.find(reference)


def test_evidence_is_kept_beside_the_point(
    repository: Repository, place: Path, key: KeyFile
) -> None:
    disk = image(repository.copy_disk(MemoryDisk(noise(1, CHUNK))))
    repository.commit([point("p1", disk), point("p2", disk)])
    before = sorted(path.read_bytes() for path in (place / "points").iterdir())
    later = Evidence(20.0, True, 9.5, "The database answered.", {"rows": 5, "wal": None})
    repository.add_evidence("p1", later)
    repository.add_evidence("p1", Evidence(10.0, False, 0.0, "It did not boot."))
    with pytest.raises(UnknownPointError):
        repository.add_evidence("p9", later)
    with Repository.open(place, key) as other:
        assert [item.passed for item in other.evidence("p1")] == [False, True]
        assert other.evidence("p1")[1] == later
        assert other.evidence("p2") == []
    assert sorted(path.read_bytes() for path in (place / "points").iterdir()) == before


def test_no_name_or_content_is_in_clear(repository: Repository, place: Path) -> None:
    data = b"the secret of the guest " * 1000
    disk = image(repository.copy_disk(MemoryDisk(data)))
    repository.commit([point("p-very-secret", disk, vm="secretvm")])
    repository.add_evidence("p-very-secret", Evidence(1.0, True, 1.0, "secret evidence"))
    for path in place.rglob("*"):
        assert "secret" not in path.name
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_a_lost_index_segment_costs_nothing_and_is_rebuilt(
    repository: Repository, place: Path, key: KeyFile
) -> None:
    data = noise(1, 50 * CHUNK)
    disk = image(repository.copy_disk(MemoryDisk(data)))
    repository.commit([point("p1", disk)])
    shutil.rmtree(place / "index")
    with Repository.open(place, key) as other:
        assert other.open_disk(disk).read(0, len(data)) == data
        with pytest.raises(RepositoryDamagedError, match="rebuild the index"):
            other.prune()
        (damage,) = other.verify().damaged
        assert (damage.object, damage.points, damage.ranges) == ("index/", ("p1",), ())
        assert len(other.rebuild_index()) == 1
        assert other.verify().damaged == ()
        assert other.prune_plan().unused_packs == 0


def test_stats_add_up(repository: Repository, place: Path) -> None:
    disk = image(repository.copy_disk(MemoryDisk(noise(1, 50 * CHUNK))))
    repository.commit([point("p1", disk), point("p2", disk)])
    stats = repository.stats()
    on_disk = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert stats.stored_bytes == on_disk
    assert (stats.points, stats.packs, stats.logical_bytes) == (2, 1, 100 * CHUNK)
    told: list[int] = []
    report = repository.verify(told.append)
    assert sum(told) == report.checked_bytes == on_disk
    assert report.checked_chunks == stats.chunks
