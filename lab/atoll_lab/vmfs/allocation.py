"""Who owns what: the bitmaps of file blocks, sub-blocks and file descriptors."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from atoll.model.errors import PoolFullError, UnsupportedFormatError
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import CLUSTER_MAGIC, FBB, FDC, METADATA, SBC, Resource

_BITMAP = 0x80
_SECOND_HALF = 0x180  # bits of the 257th small block and on
_COUNTS = 0x20
_SYSTEM_FILE = {Resource.FILE_BLOCK: FBB, Resource.SUB_BLOCK: SBC, Resource.DESCRIPTOR: FDC}
_NAMES = {
    Resource.FILE_BLOCK: "file blocks",
    Resource.SUB_BLOCK: "sub-blocks",
    Resource.DESCRIPTOR: "file descriptors",
}


class Run(NamedTuple):
    """Resources `first` to `first + length - 1`."""

    first: int
    length: int


def small_block_bit(resource: int) -> tuple[int, int]:
    """(byte, shift) of a small block's two bits in its cluster's metadata; 1 is free, 0 is used."""
    half, index = divmod(resource, 256)
    return (_SECOND_HALF if half else _BITMAP) + index // 4, index % 4 * 2


def plain_bit(resource: int) -> tuple[int, int]:
    """(byte, shift) of any other resource's bit in its cluster's metadata; 1 is free."""
    return _BITMAP + resource // 8, resource % 8


class Cluster:
    """A cluster's metadata block in memory."""

    def __init__(self, raw: bytes, wide: bool) -> None:
        self.raw = bytearray(raw)
        self._bit = small_block_bit if wide else plain_bit
        self._mask = 3 if wide else 1
        self.total, self.free = struct.unpack_from("<HH", raw, _COUNTS)

    def is_free(self, resource: int) -> bool:
        """Whether nobody owns the resource."""
        at, shift = self._bit(resource)
        return (self.raw[at] >> shift) & self._mask == 1

    def mark(self, resource: int, free: bool) -> None:
        """Give or take a resource; the count follows."""
        if self.is_free(resource) == free:
            raise UnsupportedFormatError(
                f"A resource is {'given back' if free else 'taken'} twice; check the volume."
            )
        at, shift = self._bit(resource)
        self.raw[at] = self.raw[at] & ~(self._mask << shift) & 0xFF | (int(free) << shift)
        self.free += 1 if free else -1
        struct.pack_into("<H", self.raw, _COUNTS + 2, self.free)


class Pool:
    """Resources of one kind, numbered from 0 over all clusters. Changes are on disk at once."""

    def __init__(self, table: FileTable, kind: Resource, reserved: int = 0) -> None:
        self._table = table
        self._kind = kind
        self._file: Inode = table.system(_SYSTEM_FILE[kind])
        self._reserved = reserved
        self._attempt: list[Run] | None = None
        self.geometry = table.geometry(kind)

    def cluster(self, number: int) -> Cluster:
        """A cluster's metadata as it is on disk."""
        raw = self._table.read(self._file, self.geometry.cluster_at(number) + METADATA, METADATA)
        magic, _, index = struct.unpack_from("<IIQ", raw, 0x10)
        if magic != CLUSTER_MAGIC or index != number:
            raise UnsupportedFormatError(f"Cluster {number} of the {self.name} is damaged.")
        return Cluster(raw, self._kind == Resource.FILE_BLOCK)

    @property
    def name(self) -> str:
        """What the resources are called."""
        return _NAMES[self._kind]

    def free_runs(self) -> Iterator[Run]:
        """Runs of free resources in order, each as long as it is."""
        first, count = 0, 0
        for number in range(self.geometry.clusters):
            cluster = self.cluster(number)
            base = number * self.geometry.per_cluster
            for resource in range(cluster.total):
                at = base + resource
                if at >= self._reserved and cluster.is_free(resource):
                    if not count:
                        first = at
                    count += 1
                elif count:
                    yield Run(first, count)
                    count = 0
        if count:
            yield Run(first, count)

    def take(self, runs: list[Run]) -> None:
        """Own these resources; all of them must be free."""
        self._mark(runs, free=False)
        if self._attempt is not None:
            self._attempt += runs

    def release(self, runs: list[Run]) -> None:
        """Give these resources back."""
        self._mark(runs, free=True)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Give back what is taken within when it ends in an error; nothing may point to it yet."""
        self._attempt = []
        try:
            yield
        except BaseException:
            self.release(self._attempt)
            raise
        finally:
            self._attempt = None

    def allocate(self, count: int) -> list[int]:
        """Own the first free resources; PoolFullError when there are too few."""
        runs: list[Run] = []
        missing = count
        for run in self.free_runs():
            if missing:
                runs.append(Run(run.first, min(run.length, missing)))
                missing -= runs[-1].length
            else:
                break
        if missing:
            raise self.full(count)
        self.take(runs)
        return [run.first + n for run in runs for n in range(run.length)]

    def full(self, count: int) -> PoolFullError:
        """The error that says how much was asked for."""
        return PoolFullError(
            f"The datastore in {self._table.device.image} has no room for {count} more "
            f"{self.name}; delete something from it or make a larger LUN."
        )

    def _mark(self, runs: list[Run], free: bool) -> None:
        by_cluster: dict[int, list[int]] = {}
        for run in runs:
            for number in range(run.first, run.first + run.length):
                cluster, resource = divmod(number, self.geometry.per_cluster)
                by_cluster.setdefault(cluster, []).append(resource)
        for index, resources in sorted(by_cluster.items()):
            metadata = self.cluster(index)
            for resource in resources:
                metadata.mark(resource, free)
            at = self.geometry.cluster_at(index) + METADATA
            self._table.write(self._file, at, bytes(metadata.raw))


def runs_of(numbers: list[int]) -> list[Run]:
    """Numbers as runs, in the order given."""
    runs: list[Run] = []
    for number in numbers:
        if runs and runs[-1].first + runs[-1].length == number:
            runs[-1] = Run(runs[-1].first, runs[-1].length + 1)
        else:
            runs.append(Run(number, 1))
    return runs
