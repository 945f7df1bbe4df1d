"""A Ceph backend by itself, with notes in memory, and what tests do to its volumes."""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from atoll.storage.backend import Export, Place, VolumeBackend
from atoll.storage.drivers.ceph.driver import Settings, open_backend
from atoll.storage.identity import identity_of, target_name
from atoll_lab.iscsi import IscsiLun

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20


class MemoryNotes:
    """Notes that last as long as the test."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}

    def note(self, key: str) -> str | None:
        return self._notes.get(key)

    def notes(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self._notes.items() if key.startswith(prefix)}

    def put_note(self, key: str, value: str | None) -> None:
        if value is None:
            self._notes.pop(key, None)
        else:
            self._notes[key] = value


def new_id() -> str:
    """An id as the engine makes them up."""
    return secrets.token_hex(16)


class CephSystem:
    """A storage system in a pool. `group` is a group's id."""

    def __init__(self, settings: Settings, directory: Path, system: str) -> None:
        self.settings = settings
        self.place = Place(directory / "run", MemoryNotes(), system)
        self.group = new_id()
        self.backend = self.reopen()
        self._made: list[str] = []

    def reopen(self) -> VolumeBackend:
        """Another backend over the same, as another process would have."""
        return open_backend("test", self.settings, self.place)

    def volume(self, size_bytes: int = 16 * MIB) -> str:
        """A new volume's id."""
        volume = new_id()
        self._made.append(volume)
        self.backend.create_volume(self.group, volume, size_bytes, "group/lun")
        return volume

    def snapshot(self, *volumes: str) -> str:
        """A new snapshot's id."""
        snapshot = new_id()
        self.backend.take_snapshot(self.group, snapshot, volumes)
        return snapshot

    def clone(self, snapshot: str, volume: str) -> str:
        """The new volume's id."""
        copy = new_id()
        self._made.append(copy)
        self.backend.clone(snapshot, self.group, {volume: copy}, {copy: "group/copy"})
        return copy

    def read(self, volume: str, snapshot: str) -> bytes:
        """All of a volume as it was."""
        reader = self.backend.open_snapshot(volume, snapshot)
        try:
            return reader.read(0, reader.size_bytes)
        finally:
            reader.close()

    def exports(self, volumes: Sequence[str]) -> list[Export]:
        """Volumes as HOST is to reach them, with the size they have."""
        sizes = self.backend.volumes()
        return [
            Export(
                volume,
                target_name("test", "group", volume),
                identity_of(volume),
                sizes[volume],
                (HOST,),
                {},
                read_only=False,
            )
            for volume in volumes
        ]

    def serve(self, *volumes: str) -> list[IscsiLun]:
        """Serve exactly these; a session on each, in their order."""
        exports = self.exports(volumes)
        self.backend.serve(self.group, exports)
        sessions = []
        with ExitStack() as opened:
            for export in exports:
                portal = self.backend.portals(self.group, export)[0]
                session = IscsiLun(
                    f"{portal.address}:{portal.port}", portal.target, portal.lun_number, HOST
                )
                sessions.append(opened.enter_context(session))
            opened.pop_all()
        return sessions

    def clear(self) -> None:
        """Remove all there is, the newest first: it may be a clone of what is older."""
        self.backend.stop(self.group)
        snapshots = self.backend.snapshots()
        for volume in reversed(self._made):
            for snapshot in snapshots:
                self.backend.delete_snapshot(snapshot, [volume])
            self.backend.delete_volume(self.group, volume)
        self._made.clear()
        assert self.backend.volumes() == {}
