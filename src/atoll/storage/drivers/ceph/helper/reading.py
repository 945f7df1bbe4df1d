"""What a snapshot holds, where it holds nothing, and where two of them differ."""

from collections.abc import Iterator, Sequence
from typing import Any

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent, complement, merge
from atoll.storage.drivers.ceph.helper.cluster import Cluster
from atoll.storage.drivers.ceph.names import snapshot_name

_WINDOW_BYTES = 16 << 30
"""What is asked of librbd at once: its answer is held in memory."""


class Reading:
    """Open snapshots, each once, by volume and snapshot."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._open: dict[tuple[str, str], Any] = {}

    def open_snapshot(self, volume: str, snapshot: str) -> int:
        """Open it and tell its size in bytes."""
        with self._cluster.telling(f"open snapshot {snapshot} of volume {volume}"):
            return int(self._image(volume, snapshot).size())

    def close_snapshot(self, volume: str, snapshot: str) -> None:
        """Close it; harmless when it is not open."""
        image = self._open.pop((volume, snapshot), None)
        if image is not None:
            with self._cluster.telling(f"close snapshot {snapshot} of volume {volume}"):
                image.close()

    def read(self, volume: str, snapshot: str, offset: int, length: int) -> bytes:
        """Bytes of the volume as it was, all within its size."""
        with self._cluster.telling(f"read snapshot {snapshot} of volume {volume}"):
            data: bytes = self._image(volume, snapshot).read(offset, length)
            return data

    def read_each(self, volume: str, snapshot: str, pieces: Sequence[tuple[int, int]]) -> bytes:
        """Several pieces (offset, length), read side by side; one after the other."""
        with self._cluster.telling(f"read snapshot {snapshot} of volume {volume}"):
            image = self._image(volume, snapshot)
            return b"".join(self._cluster.at_once(lambda piece: image.read(*piece), pieces))

    def holes(self, volume: str, snapshot: str) -> Iterator[Extent]:
        """Where it has no data."""
        with self._cluster.telling(f"map snapshot {snapshot} of volume {volume}"):
            image = self._image(volume, snapshot)
            size = int(image.size())
            for offset in range(0, size, _WINDOW_BYTES):
                length = min(_WINDOW_BYTES, size - offset)
                data = merge(extent for extent, exists in _diff(image, offset, length) if exists)
                shifted = [Extent(start - offset, count) for start, count in data]
                for hole in complement(shifted, length):
                    yield Extent(offset + hole.offset, hole.length)

    def changed(
        self, volume: str, older: str, newer: str, offset: int, length: int
    ) -> list[Extent]:
        """What differs between two snapshots in a part of the newer one.

        Object by object, from what the disks know of each (`whole_object` would
        ask the object map, which is faster and coarser). Past the older one's end
        what holds no data is left out.
        """
        with self._cluster.telling(f"compare snapshots {older} and {newer} of volume {volume}"):
            image = self._image(volume, newer)
            old_size = self._size(image, older)
            return merge(
                extent
                for extent, exists in _diff(image, offset, length, snapshot_name(older))
                if exists or extent.offset < old_size
            )

    def _image(self, volume: str, snapshot: str) -> Any:
        key = (volume, snapshot)
        if key not in self._open:
            self._open[key] = self._cluster.open_image(volume, snapshot)
        return self._open[key]

    @staticmethod
    def _size(image: Any, snapshot: str) -> int:
        for each in image.list_snaps():
            if each["name"] == snapshot_name(snapshot):
                return int(each["size"])
        raise StorageUnreachableError(
            f"Snapshot {snapshot} is not in its image any more; somebody removed it by hand."
        )


def _diff(
    image: Any, offset: int, length: int, since: str | None = None
) -> list[tuple[Extent, bool]]:
    """Ranges that differ from an older snapshot, or from nothing; and whether they hold data."""
    found: list[tuple[Extent, bool]] = []

    def note(start: int, count: int, exists: bool) -> None:
        found.append((Extent(start, count), exists))

    image.diff_iterate(offset, length, since, note, include_parent=True, whole_object=False)
    return found
