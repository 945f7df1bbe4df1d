"""How volumes are reached and read: the half of the backend that Cinder's drivers differ in."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from atoll.model.readers import BlockReader
from atoll.model.storage import Portal
from atoll.storage.backend import Export, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.cinder.remembered import Volume


class DataPath(Protocol):
    """By a target of this machine (`OwnTarget`), or by the array (`ArrayPath`).

    What is not explained here is as in VolumeBackend.
    """

    def identify(self, volume: Volume) -> VolumeIdentity:
        """Who a volume that was just made says it is."""
        ...

    def measure(self, volume: Volume) -> int:
        """How many bytes a volume has, whatever is noted."""
        ...

    def sizes(self, volumes: Mapping[str, Volume]) -> Mapping[str, int]:
        """Bytes of those of the volumes that are there."""
        ...

    def let_go(self, volume: Volume) -> None:
        """End whatever reaches a volume, which is about to be deleted."""
        ...

    def forget_group(self, group: str) -> None:
        """A group is gone."""
        ...

    def while_held(self, group: str, action: Callable[[], None]) -> SnapshotTimes:
        """Do it while no write of the group is acknowledged; StorageConflictError if that cannot be."""
        ...

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read a volume as it was."""
        ...

    def clear(self) -> None:
        """Remove what dead processes left behind."""
        ...

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Let exactly these be reached."""
        ...

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """Where an export is reached."""
        ...

    def served(self) -> Collection[str]:
        """Groups of which something is served."""
        ...

    def release(self, group: str) -> bool:
        """Lift a barrier that a dead process left."""
        ...

    def stop(self, group: str) -> bool:
        """End what serves a group on this machine."""
        ...
