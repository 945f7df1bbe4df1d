"""No key seals two messages under one nonce, whatever is done in whatever order by however many."""

import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.errors import RunConflictError
from atoll.model.extents import Extent
from atoll.model.points import Evidence
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

PACK = 4 * CHUNK
RECORD = 32 + 12
"""A key and a nonce."""


class Recorder:
    """The cipher, of which each sealing is noted in a file: also what forked processes seal."""

    file = -1

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, bound: bytes | None) -> bytes:
        os.write(self.file, self._key + nonce)  # O_APPEND: whole, and after the others
        return self._cipher.encrypt(nonce, data, bound)

    def decrypt(self, nonce: bytes, data: bytes, bound: bytes | None) -> bytes:
        return self._cipher.decrypt(nonce, data, bound)


@pytest.fixture
def sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Counter[bytes]]]:
    """How often each key and nonce were used together."""
    path = tmp_path / "sealed"
    Recorder.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for module in ("packs", "sealing", "keys"):
        monkeypatch.setattr(f"atoll.repository.{module}.AESGCM", Recorder)

    def read() -> Counter[bytes]:
        data = path.read_bytes()
        assert len(data) % RECORD == 0
        return Counter(data[at : at + RECORD] for at in range(0, len(data), RECORD))

    yield read
    os.close(Recorder.file)


def opened(place: Path, key: KeyFile) -> Repository:
    return Repository(LocalStore.open(place), key, pack_bytes=PACK)


class Life:
    """Operations that seal, on one repository, by number."""

    def __init__(self, place: Path, key: KeyFile, prefix: str = "") -> None:
        self.place, self.key, self.prefix = place, key, prefix
        self.count = 0
        self.operations = (
            self.copy,
            self.copy_two_disks_at_once,
            self.increment,
            self.abandon,
            self.evidence,
            self.forget_half,
            self.prune,
            self.prune_beside_a_writer,
            self.lose_the_index,
            self.hold,
        )

    def _name(self) -> str:
        self.count += 1
        return f"{self.prefix}p{self.count}"

    def _mine(self, repository: Repository) -> list[str]:
        return [made.id for made in repository.points() if made.id.startswith(self.prefix)]

    def copy(self) -> None:
        with opened(self.place, self.key) as repository:
            name = self._name()
            disk = repository.copy_disk(MemoryDisk(noise(self.count % 5, 9 * CHUNK)))
            blob = repository.put_blob(noise(self.count, 100))
            repository.commit([point(name, image(disk, blob)), point(f"{name}-b", image(disk))])

    def copy_two_disks_at_once(self) -> None:
        with opened(self.place, self.key) as repository:
            disks = []

            def one(seed: int) -> None:
                disks.append(image(repository.copy_disk(MemoryDisk(noise(seed, 12 * CHUNK)))))

            threads = [threading.Thread(target=one, args=(self.count + n,)) for n in (100, 101)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            repository.commit([point(self._name(), *disks)])

    def increment(self) -> None:
        with opened(self.place, self.key) as repository:
            points = repository.points()
            if not points:
                return
            parent = points[-1].disks[0]
            data = noise(self.count + 500, parent.size_bytes)
            disk = repository.copy_disk(MemoryDisk(data), extents=[Extent(0, CHUNK)], parent=parent)
            repository.commit([point(self._name(), image(disk))])

    def abandon(self) -> None:
        with opened(self.place, self.key) as repository:
            repository.copy_disk(MemoryDisk(noise(self.count + 900, 10 * CHUNK)))

    def evidence(self) -> None:
        with opened(self.place, self.key) as repository:
            for name in self._mine(repository)[:2]:
                repository.add_evidence(name, Evidence(1.0, True, 1.0, "ok"))

    def forget_half(self) -> None:
        with opened(self.place, self.key) as repository:
            repository.forget(set(self._mine(repository)[::2]))

    def prune(self) -> None:
        with opened(self.place, self.key) as repository:
            repository.prune()

    def prune_beside_a_writer(self) -> None:
        with opened(self.place, self.key) as writer:
            disk = writer.copy_disk(MemoryDisk(noise(self.count % 5, 9 * CHUNK)))
            self.prune()
            writer.commit([point(self._name(), image(disk))])

    def lose_the_index(self) -> None:
        with opened(self.place, self.key) as repository:
            store = LocalStore.open(self.place)
            for info in list(store.list("index/")):
                store.delete(info.name)
            repository.rebuild_index()

    def hold(self) -> None:
        with opened(self.place, self.key) as repository:
            for name in self._mine(repository)[:1]:
                repository.release(repository.hold(name, "the law").name)


@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(order=st.lists(st.integers(0, 9), min_size=3, max_size=12))
def test_any_order_of_all_that_seals(
    sealed: Callable[[], Counter[bytes]], key: KeyFile, tmp_path: Path, order: list[int]
) -> None:
    place = tmp_path / f"r{len(list(tmp_path.iterdir()))}"
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    life = Life(place, key)
    life.copy()
    for number in order:
        life.operations[number]()
    with opened(place, key) as repository:
        assert repository.verify().damaged == ()
    used = sealed()
    assert len(used) > 10
    assert set(used.values()) == {1}


def test_a_prune_that_moves_seals_under_new_keys(
    sealed: Callable[[], Counter[bytes]], key: KeyFile, place: Path
) -> None:
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    life = Life(place, key)
    with opened(place, key) as repository:
        for name, data in (("a", noise(1, CHUNK) + noise(2, 9 * CHUNK)), ("b", noise(1, CHUNK))):
            repository.commit([point(name, image(repository.copy_disk(MemoryDisk(data))))])
        before = {record[:32] for record in sealed()}
        repository.forget({"a"})
        assert repository.prune().moved_bytes > 0
    assert {record[:32] for record in sealed()} > before
    assert set(sealed().values()) == {1}
    life.prune()


def in_children(works: list[Callable[[], None]]) -> None:
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(works)


@pytest.mark.parametrize("rounds", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_many_processes_and_threads(
    sealed: Callable[[], Counter[bytes]], key: KeyFile, place: Path, rounds: int
) -> None:
    """Forked from a process that has the repository open and a pack half filled."""
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    parent = opened(place, key)
    disk = parent.copy_disk(MemoryDisk(noise(77, 2 * CHUNK)))

    def work(number: int) -> None:
        life = Life(place, key, f"w{number}-")
        for turn in range(rounds):
            life.copy()
            life.copy_two_disks_at_once()
            life.evidence()
            try:
                life.forget_half()
                if number == turn % 4:
                    life.prune()
            except RunConflictError:
                continue  # another is at it

    in_children([lambda number=number: work(number) for number in range(4)])  # type: ignore[misc]
    parent.commit([point("parent", image(disk))])
    parent.close()
    with opened(place, key) as repository:
        repository.prune()
        assert repository.verify().damaged == ()
        assert repository.find("parent")
    used = sealed()
    assert len(used) > 100
    assert set(used.values()) == {1}


def test_the_recorder_sees_a_nonce_used_twice(
    sealed: Callable[[], Counter[bytes]], monkeypatch: pytest.MonkeyPatch, key: KeyFile, place: Path
) -> None:
    monkeypatch.setattr("atoll.repository.packs._nonce", lambda number: bytes(12))
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    Life(place, key).copy()
    assert max(sealed().values()) > 1
