"""A repository whose index is cached: backups, restores and prunes, and a cache that breaks meanwhile."""

from functools import partial
from pathlib import Path

import pytest

from atoll.repository.index_cache import CacheLimits, IndexCache
from atoll.repository.keys import KeyFile
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything is saved, however little it is."""
    limits = CacheLimits(memory_rows=8, save_rows=1, save_segments=1)
    monkeypatch.setattr(
        "atoll.repository.repository.IndexCache", partial(IndexCache, limits=limits)
    )
    return tmp_path / "caches"


def _back_up(repository: Repository, name: str, seed: int, at: float) -> bytes:
    data = noise(seed, 40 * CHUNK)
    copied = repository.copy_disk(MemoryDisk(data))
    repository.commit([point(name, image(copied), at=at)])
    return data


def _read(repository: Repository, name: str) -> bytes:
    (disk,) = repository.find(name).disks
    reader = repository.open_disk(disk)
    try:
        return reader.read(0, reader.size_bytes)
    finally:
        reader.close()


def test_backups_and_prunes_with_a_cache(
    repository: Repository, place: Path, key: KeyFile, caches: Path
) -> None:
    kept = {}
    for number in range(6):
        with Repository.open(place, key, caches=caches) as writer:
            kept[f"p{number}"] = _back_up(writer, f"p{number}", number, 1000.0 + number)
    (cache,) = caches.iterdir()
    assert (cache / "manifest").exists()
    with Repository.open(place, key, caches=caches) as pruner:
        pruner.forget({"p1", "p3"})
        pruner.prune()
    del kept["p1"], kept["p3"]
    for opened in (caches, None):
        with Repository.open(place, key, caches=opened) as reader:
            assert {name: _read(reader, name) for name in kept} == kept
            assert not reader.verify().damaged
    with Repository.open(place, key, caches=caches) as writer:
        # What was pruned is stored again and not taken for being there.
        kept["again"] = _back_up(writer, "again", 1, 2000.0)
    with Repository.open(place, key) as reader:
        assert _read(reader, "again") == kept["again"]
        assert not reader.verify().damaged


def test_a_cache_that_breaks_costs_nothing_but_time(
    repository: Repository, place: Path, key: KeyFile, caches: Path
) -> None:
    for number in range(3):
        with Repository.open(place, key, caches=caches) as writer:
            data = _back_up(writer, f"p{number}", number, 1000.0 + number)
    with (
        Repository.open(place, key, caches=caches) as reader,
        Repository.open(place, key, caches=caches) as writer,
    ):
        writer.begin()
        before = writer.stats().packs
        (cache,) = caches.iterdir()
        for table in cache.glob("*.table"):
            with table.open("r+b") as file:
                file.truncate(4096)
        assert _read(reader, "p0") == noise(0, 40 * CHUNK)
        copied = writer.copy_disk(MemoryDisk(data))
        assert copied.new_chunks == 0
        writer.commit([point("last", image(copied), at=2000.0)])
        assert writer.stats().packs == before
    with Repository.open(place, key, caches=caches) as reader:
        assert not reader.verify().damaged
