"""Volumes and their snapshots: thin devices by number, and the book that says whose they are.

A number is an orphan in the book before the kernel hears of it, and again before it is deleted. So
whatever a killed helper leaves belongs to somebody or is an orphan, and the next call that changes
anything deletes the orphans.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from atoll.model.errors import AtollError, StorageConflictError
from atoll.model.extents import Extent, complement
from atoll.storage.drivers.san.helper import dm, lvm
from atoll.storage.drivers.san.helper.failures import warn
from atoll.storage.drivers.san.helper.hold import release, while_held
from atoll.storage.drivers.san.helper.ledger import Book, Ledger, Snapshot, Thin, Volume
from atoll.storage.drivers.san.helper.pool import ThinPool, clipped

PREFIX = "atoll-"
"""Begins the name of every mapped device of ours."""

_ROOM_SECONDS = 10.0
_GROW_SHARE, _GROW_BY = 0.70, 0.20
"""When so much of the pool is used it gets so much more, while the volume group has it."""


class Volumes:
    """One pool's volumes. Whoever calls a method that changes something holds the helper's lock."""

    def __init__(self, volume_group: str, pool: str) -> None:
        self.pool = ThinPool(volume_group, pool)
        self.ledger = Ledger(self.pool.book_path)
        self._asked: tuple[int, float, lvm.Group] | None = None

    def room(self) -> tuple[int, int]:
        """Total and free bytes, what the pool can still be given included; gives it some."""
        usage = self.pool.usage()
        group = self._group_room(usage.total_bytes)
        if usage.used_bytes > _GROW_SHARE * usage.total_bytes and group.free_bytes:
            extra = min(int(usage.total_bytes * _GROW_BY), group.free_bytes)
            extra = extra // group.extent_bytes * group.extent_bytes
            if extra:
                lvm.grow_pool(self.pool.volume_group, self.pool.pool, extra)
                usage = self.pool.usage()
                group = self._group_room(usage.total_bytes)
        total = usage.total_bytes + group.free_bytes
        free = total - usage.used_bytes
        # Without metadata there is no room, however much data there could be.
        return total, min(free, int(total * (1 - usage.metadata_used_share)))

    def name(self, volume: str) -> str:
        """The mapped device of a volume."""
        return f"{PREFIX}{self.pool.id}-{volume}"

    def snapshot_name(self, snapshot: str, volume: str) -> str:
        """The mapped device of a volume in a snapshot, there only while it is read."""
        return f"{PREFIX}{self.pool.id}-{snapshot}-{volume}"

    def create(self, group: str, volume: str, size_bytes: int, label: str) -> None:
        """An empty volume."""
        with self._changing() as book:
            if volume not in book.volumes:
                number = book.number()
                self.ledger.write(book)
                self.pool.create(number)
                book.volumes[volume] = Volume(group, Thin(number, size_bytes), label, book.unit())
                book.orphans.remove(number)
                self.ledger.write(book)

    def grow(self, volume: str, size_bytes: int) -> None:
        """Make a volume larger, also under those who use it."""
        with self._changing() as book:
            found = self._volume(book, volume)
            if found.thin.size_bytes < size_bytes:
                thin = replace(found.thin, size_bytes=size_bytes)
                book.volumes[volume] = replace(found, thin=thin)
                self.ledger.write(book)
            if dm.find(self.name(volume)) is not None:
                self.activate(volume)

    def move(self, volume: str, group: str) -> None:
        """Put a volume into another group."""
        with self._changing() as book:
            if self._volume(book, volume).group != group:
                book.move(volume, group)
                self.ledger.write(book)

    def delete(self, volume: str) -> None:
        """Remove a volume that nobody uses."""
        with self._changing() as book:
            if volume in book.volumes:
                dm.remove(self.name(volume))
                book.orphans.append(book.volumes.pop(volume).thin.number)
                self.ledger.write(book)
                self._tidied()

    def take(self, snapshot: str, volumes: Sequence[str]) -> Snapshot:
        """Snapshot these volumes at one instant; one that is there already is right."""
        with self._changing() as book:
            if snapshot in book.snapshots:
                return book.snapshots[snapshot]
            origins = {volume: self._volume(book, volume).thin for volume in volumes}
            numbers = {volume: book.number() for volume in volumes}
            self.ledger.write(book)
            devices = [name for name in map(self.name, volumes) if dm.find(name) is not None]

            def action() -> None:
                for volume in volumes:
                    self.pool.snapshot(numbers[volume], origins[volume].number)

            try:
                times = while_held(devices, action)
            except (AtollError, OSError):
                self._tidied()
                raise
            thins = {
                volume: Thin(numbers[volume], origin.size_bytes)
                for volume, origin in origins.items()
            }
            book.snapshots[snapshot] = Snapshot(thins, *times)
            for number in numbers.values():
                book.orphans.remove(number)
            self.ledger.write(book)
            return book.snapshots[snapshot]

    def delete_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot that nobody reads."""
        with self._changing() as book:
            if snapshot in book.snapshots:
                thins = book.snapshots[snapshot].volumes
                for volume in thins:
                    dm.remove(self.snapshot_name(snapshot, volume))
                del book.snapshots[snapshot]
                book.orphans += [thin.number for thin in thins.values()]
                self.ledger.write(book)
                self._tidied()

    def clone(
        self,
        snapshot: str,
        group: str,
        volumes: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> None:
        """Volumes that begin as a snapshot's: origin to new."""
        with self._changing() as book:
            wanted = {origin: new for origin, new in volumes.items() if new not in book.volumes}
            origins = {origin: self._snapped(book, snapshot, origin) for origin in wanted}
            numbers = {origin: book.number() for origin in wanted}
            self.ledger.write(book)
            for origin, new in wanted.items():
                number = numbers[origin]
                self.pool.snapshot(number, origins[origin].number)
                thin = Thin(number, origins[origin].size_bytes)
                book.volumes[new] = Volume(group, thin, labels[new], book.unit())
                book.orphans.remove(number)
            self.ledger.write(book)

    def revert(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Make these volumes, which nobody uses, what they were in the snapshot."""
        with self._changing() as book:
            origins = {volume: self._snapped(book, snapshot, volume) for volume in volumes}
            numbers = {volume: book.number() for volume in volumes}
            self.ledger.write(book)
            for volume in volumes:
                dm.remove(self.name(volume))
                self.pool.snapshot(numbers[volume], origins[volume].number)
            for volume in volumes:
                found = self._volume(book, volume)
                thin = Thin(numbers[volume], origins[volume].size_bytes)
                book.volumes[volume] = replace(found, thin=thin)
                book.orphans.remove(numbers[volume])
                book.orphans.append(found.thin.number)
            self.ledger.write(book)
            self._tidied()

    def note_served(self, group: str, served: Mapping[str, Any] | None) -> None:
        """Remember what a group is served as, for after a restart of the server; None is nothing."""
        with self._changing() as book:
            if book.served.get(group) != served:
                book.served.pop(group, None)
                if served is not None:
                    book.served[group] = served
                self.ledger.write(book)

    def activate(self, volume: str) -> dm.Device:
        """The volume's mapped device, with its present size."""
        thin = self._volume(self.ledger.read(), volume).thin
        return self._ensure(self.name(volume), thin)

    def deactivate(self, volume: str) -> None:
        """Take the volume's mapped device away; absent is success."""
        dm.remove(self.name(volume))

    def activate_snapshot(self, snapshot: str, volume: str) -> dm.Device:
        """A read-only mapped device of a volume in a snapshot."""
        thin = self._snapped(self.ledger.read(), snapshot, volume)
        return self._ensure(self.snapshot_name(snapshot, volume), thin, read_only=True)

    def deactivate_snapshot(self, snapshot: str, volume: str) -> None:
        """Take that device away, unless somebody else reads it; absent is success."""
        found = dm.find(self.snapshot_name(snapshot, volume))
        if found is not None and not found.open_count:
            dm.remove(found.name)

    def holes(self, snapshot: str, volume: str) -> Iterator[Extent]:
        """What of a volume in a snapshot reads as zeros because nothing is there."""
        thin = self._snapped(self.ledger.read(), snapshot, volume)
        mapped = clipped(self.pool.mapped(thin.number), thin.size_bytes)
        return complement(mapped, thin.size_bytes)

    def changed(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """Ranges of a volume that two snapshots do not share, to the pool's chunk."""
        book = self.ledger.read()
        before, after = (self._snapped(book, each, volume) for each in (older, newer))
        return clipped(self.pool.differences(before.number, after.number), after.size_bytes)

    def release(self, group: str) -> bool:
        """Let writes of a group go on that were held; whether they were."""
        book = self.ledger.read()
        names = [
            self.name(volume) for volume, found in book.volumes.items() if found.group == group
        ]
        return bool(release(names))

    def _ensure(self, name: str, thin: Thin, *, read_only: bool = False) -> dm.Device:
        target = self.pool.target(thin.number, thin.size_bytes)
        uuid = f"ATOLL-{name.removeprefix(PREFIX)}"
        return dm.ensure(name, uuid, target, read_only=read_only)

    def _group_room(self, pool_bytes: int) -> lvm.Group:
        """The volume group's room. Asking LVM takes a while, so what it said holds for a moment."""
        now = time.monotonic()
        if (
            self._asked is None
            or self._asked[0] != pool_bytes
            or self._asked[1] + _ROOM_SECONDS < now
        ):
            self._asked = pool_bytes, now, lvm.group(self.pool.volume_group)
        return self._asked[2]

    @contextmanager
    def _changing(self) -> Iterator[Book]:
        """The book to change and write; what was changed and not written is forgotten."""
        try:
            yield self._tidied()
        except BaseException:
            self.ledger.forget()
            raise

    def _tidied(self) -> Book:
        """The book, with no orphans left but those that cannot be deleted now."""
        book = self.ledger.read()
        if book.orphans:
            left = []
            for number in book.orphans:
                try:
                    self.pool.delete(number)
                except OSError as error:
                    warn(f"Thin device {number} cannot be deleted yet: {error.strerror}.")
                    left.append(number)
            book.orphans = left
            self.ledger.write(book)
        return book

    def _volume(self, book: Book, volume: str) -> Volume:
        if volume not in book.volumes:
            raise StorageConflictError(
                f"The SAN server knows no volume {volume}; see `atoll storage list` and reconcile."
            )
        return book.volumes[volume]

    def _snapped(self, book: Book, snapshot: str, volume: str) -> Thin:
        if snapshot not in book.snapshots or volume not in book.snapshots[snapshot].volumes:
            raise StorageConflictError(
                f"The SAN server has no snapshot {snapshot} of volume {volume}; it was deleted or "
                "never taken."
            )
        return book.snapshots[snapshot].volumes[volume]


def sweep_readers() -> None:
    """Take away mapped devices of snapshots that nobody reads any more."""
    for name in dm.names():
        if name.startswith(PREFIX) and name.count("-") == 3:
            found = dm.find(name)
            if found is not None and not found.open_count:
                dm.remove(name)
