"""Restore points copied into another repository, which has a key and perhaps a chunk size of its own.

Points of one run are committed together, runs from the oldest to the newest, so that what is cut off
has copied whole runs and goes on with the next. Where both repositories have an earlier point of the
VM, only what changed since is read, whichever points lie between.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from atoll.model.errors import AtollError, RepositoryDamagedError, UnknownPointError
from atoll.model.extents import Extent, complement, merge, total_bytes
from atoll.model.points import DiskImage, RestorePoint
from atoll.model.progress import Progress
from atoll.model.readers import BlockReader
from atoll.repository.mirror import DamagedObject
from atoll.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class PointsReport:
    """What was copied: points, the bytes read of them and the bytes they added to the other repository.

    `damaged` names points, and objects with points or holds, that cannot be read and were not copied.
    """

    points: int
    read_bytes: int
    stored_bytes: int
    damaged: tuple[DamagedObject, ...]


class _NotCopiedError(AtollError):
    """A point cannot be copied; `damage` is None if it was forgotten meanwhile.

    `beside` says whether only what changed since earlier points was to be copied.
    """

    def __init__(
        self, point: RestorePoint, damage: RepositoryDamagedError | None, *, beside: bool
    ) -> None:
        super().__init__(str(damage))
        self.point = point
        self.damage = damage
        self.beside = beside


def copy_points(source: Repository, target: Repository, progress: Progress) -> PointsReport:
    """Copy each point that the target lacks, with its evidence and holds; nothing goes there.

    What was committed stays, wherever this is killed; the rest is copied the next time. A point that
    cannot be read whole is named, and the others are copied.
    """
    return _Copier(source, target, progress).run()


@dataclass(frozen=True, slots=True)
class _DiskWork:
    image: DiskImage
    reader: BlockReader
    extents: Sequence[Extent] | None
    parent: DiskImage | None
    bytes_to_read: int


class _Copier:
    def __init__(self, source: Repository, target: Repository, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._here = {point.id: point for point in source.points()}
        self._there = {point.id: point for point in target.points()}
        self._damaged = [
            DamagedObject(name, "which restore points it names cannot be read")
            for name in source.lost_points
        ]
        self._in_full: set[str] = set()
        self._points = self._read = self._stored = 0

    def run(self) -> PointsReport:
        runs: dict[str, list[RestorePoint]] = {}
        for point in self._here.values():  # oldest first
            if point.id not in self._there:
                runs.setdefault(point.run, []).append(point)
        for points in runs.values():
            self._copy_run(points)
        self._progress.stage("", "commit")
        self._copy_evidence()
        self._copy_holds()
        self._progress.stage("", "done")
        return PointsReport(self._points, self._read, self._stored, tuple(self._damaged))

    def _copy_run(self, points: list[RestorePoint]) -> None:
        while points:
            try:
                self._target.begin()
                made = [self._copy_point(point) for point in points]
                self._target.commit(made)
            except _NotCopiedError as error:
                # All that was stored for this run is void by now, so the others begin anew.
                self._target.abandon()
                if error.damage is not None and error.beside:
                    # What is damaged, or gone, may be the earlier point in the other repository.
                    self._in_full.add(error.point.id)
                    continue
                points = [point for point in points if point is not error.point]
                if error.damage is not None:
                    name = f"{error.point.vm}@{error.point.run}"
                    self._damaged.append(DamagedObject(name, str(error.damage)))
                continue
            except BaseException:
                self._target.abandon()
                raise
            self._there.update((point.id, point) for point in made)
            self._points += len(made)
            self._stored += sum(disk.stored_bytes for point in made for disk in point.disks)
            return

    def _copy_point(self, point: RestorePoint) -> RestorePoint:
        work: list[_DiskWork] = []
        try:
            with ExitStack() as reading:
                work += (self._work(point, disk, reading) for disk in point.disks)
                total = sum(item.bytes_to_read for item in work)
                self._progress.stage(point.vm, "copy", total)
                disks = tuple(self._copy_disk(point.vm, item) for item in work)
        except UnknownPointError as error:
            raise _NotCopiedError(point, None, beside=False) from error
        except RepositoryDamagedError as error:
            beside = any(item.parent is not None for item in work)
            raise _NotCopiedError(point, error, beside=beside) from error
        self._progress.stage(point.vm, "done")
        return replace(point, disks=disks, catalogue=self._copy_catalogue(point))

    def _copy_catalogue(self, point: RestorePoint) -> str:
        """Piece by piece, so that what points share there they share here; empty if it is damaged."""
        if not point.catalogue:
            return ""
        try:
            # Read first: once it is being written, an error voids what was copied of the disks.
            names = self._source.pieces_of(point.catalogue)
            pieces = [self._source.piece(name) for name in names]
        except RepositoryDamagedError as error:
            what = f"the catalogue of the files of {point.vm}@{point.run}"
            self._damaged.append(DamagedObject(what, str(error)))
            return ""
        return self._target.put_pieces(pieces)

    def _copy_disk(self, vm: str, work: _DiskWork) -> DiskImage:
        copied = self._target.copy_disk(
            work.reader,
            extents=work.extents,
            parent=work.parent,
            progress=lambda done: self._progress.advance(vm, done),
        )
        self._read += copied.read_bytes
        extent_map = work.image.extent_map
        if extent_map:
            extent_map = self._target.put_blob(self._source.get_blob(extent_map))
        return replace(
            work.image,
            root=copied.root,
            extent_map=extent_map,
            stored_bytes=copied.stored_bytes,
        )

    def _work(self, point: RestorePoint, disk: DiskImage, reading: ExitStack) -> _DiskWork:
        reader = self._source.open_disk(disk)
        reading.callback(reader.close)
        extents, parent = None, None
        for older, there in self._earlier(point, disk):
            extents = self._changed(older, disk)
            if extents is not None:
                parent = there
                break
        if extents is None or parent is None:
            to_read = total_bytes(complement(merge(reader.holes()), disk.size_bytes))
        else:
            to_read = self._target.bytes_to_copy(extents, parent, disk.size_bytes)
        return _DiskWork(disk, reader, extents, parent, to_read)

    def _earlier(
        self, point: RestorePoint, disk: DiskImage
    ) -> Iterator[tuple[DiskImage, DiskImage]]:
        """The same disk in earlier points that both have, here and there, newest first."""
        if point.id in self._in_full:
            return
        for older in reversed(self._here.values()):
            if older.instance_uuid != point.instance_uuid or older.id not in self._there:
                continue
            if (older.created_at, older.id) >= (point.created_at, point.id):
                continue
            yield from (
                (one, other)
                for one in older.disks
                for other in self._there[older.id].disks
                if one.key == other.key == disk.key and one.size_bytes == other.size_bytes
            )

    def _changed(self, older: DiskImage, newer: DiskImage) -> Sequence[Extent] | None:
        """What to read beside the older image; None if that was forgotten or is damaged."""
        try:
            stays = self._source.open_disk(older)
            try:
                return list(self._source.changed_extents(older, newer))
            finally:
                stays.close()
        except (UnknownPointError, RepositoryDamagedError):
            return None

    def _copy_evidence(self) -> None:
        for point in self._here.keys() & self._there.keys():
            evidence = self._source.evidence(point)
            known = self._target.evidence(point) if evidence else []
            for item in evidence:
                if item not in known:
                    with suppress(UnknownPointError):  # forgotten there meanwhile
                        self._target.add_evidence(point, item)

    def _copy_holds(self) -> None:
        holds = self._source.holds()
        self._damaged += [
            DamagedObject(name, "which point it holds cannot be read") for name in holds.damaged
        ]
        known = {hold.name for hold in self._target.holds().found}
        for hold in holds.found:
            if hold.name in known or hold.point not in self._there:
                continue
            if hold.in_force(time.time()):
                with suppress(UnknownPointError):
                    self._target.take_hold(hold)
