"""Disks in memory, restore points made of them, and stores that fail on purpose."""

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from atoll.model.consistency import ApplicationState, Consistency, ConsistencyProof, Hold
from atoll.model.errors import RepositoryUnreachableError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage, RestorePoint
from atoll.repository.copying import CopiedDisk
from atoll.repository.store import Buffer, ObjectStore
from atoll.repository.wrapping import WrappedStore

CHUNK = 4096


class MemoryDisk:
    """A BlockReader over bytes; `piece` cuts what read_many gives, `reads` notes what was asked."""

    def __init__(self, data: bytes, holes: Sequence[Extent] = (), piece: int = 1 << 30) -> None:
        self.data = data
        self._holes = holes
        self._piece = piece
        self.reads: list[Extent] = []

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        for extent in extents:
            self.reads.append(extent)
            for at in range(extent.offset, extent.end, self._piece):
                yield at, self.data[at : min(at + self._piece, extent.end)]

    def holes(self) -> Sequence[Extent]:
        return self._holes

    def close(self) -> None:
        """Nothing is held."""


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def image(copied: CopiedDisk, extent_map: str = "") -> DiskImage:
    return DiskImage(
        key=2000,
        label="Hard disk 1",
        path="[ds1] db1/db1.vmdk",
        size_bytes=copied.size_bytes,
        root=copied.root,
        extent_map=extent_map,
        luns=("lun1", "lun2"),
        read_bytes=copied.read_bytes,
        changed_bytes=copied.read_bytes,
        stored_bytes=copied.stored_bytes,
    )


def point(identity: str, *disks: DiskImage, vm: str = "db1", at: float = 1000.0) -> RestorePoint:
    state = ApplicationState("postgresql", "main", True, "0/16B3748", "42", 0.25)
    hold = Hold(identity, at - 0.25, at, at + 0.5, 10.0, True, "", (state,), ("/",), 0.001, 0.0005)
    proof = ConsistencyProof(
        vm, Consistency.APP, (), hold, "gold", identity, at, at + 0.1, "esx1", "esx1"
    )
    return RestorePoint(
        identity,
        identity,
        vm,
        "5020-uuid",
        at,
        "gold",
        identity,
        False,
        proof,
        tuple(disks),
        'displayName = "db1"\n',
        "debian12_64Guest",
    )


class CountingStore(WrappedStore):
    """A store that counts its changes, and at the `fail_at`-th raises or kills the process.

    `when` says whether the change has been made by then. `fired` says whether it came to that.
    """

    def __init__(
        self, inner: ObjectStore, fail_at: int = 0, when: str = "before", how: str = "raise"
    ) -> None:
        super().__init__(inner)
        self.changes = 0
        self.fired = False
        self._fail_at, self._when, self._how = fail_at, when, how

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        with self._change():
            self.inner.put(name, parts)

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        with self._change():
            self.inner.replace(name, parts)

    def delete(self, name: str) -> None:
        with self._change():
            self.inner.delete(name)

    def delete_temporary(self, name: str) -> None:
        with self._change():
            self.inner.delete_temporary(name)

    @contextmanager
    def _change(self) -> Iterator[None]:
        self.changes += 1
        self._strike("before")
        yield
        self._strike("after")

    def _strike(self, when: str) -> None:
        if self.changes == self._fail_at and when == self._when:
            self.fired = True
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RepositoryUnreachableError("The store failed on purpose; run again.")


class Interposed:
    """A store that calls `between` before its `at`-th call of any kind, and counts its calls."""

    def __init__(self, inner: ObjectStore, at: int, between: Callable[[], None]) -> None:
        self.inner = inner
        self.calls = 0
        self.fired = False
        self._at = at
        self._between = between

    def __getattr__(self, name: str) -> object:
        found = getattr(self.inner, name)
        return self._counted(found) if callable(found) else found

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **more: object) -> object:
            self._count()
            result = call(*args, **more)
            return _InterposedSession(result, self._count) if hasattr(result, "say") else result

        return counted

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            self.fired = True
            self._between()


class _InterposedSession:
    def __init__(self, inner: object, count: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count

    def __getattr__(self, name: str) -> object:
        self._count()
        return getattr(self._inner, name)
