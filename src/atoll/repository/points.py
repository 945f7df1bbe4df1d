"""Restore points in the store: one sealed object a commit, which is the only commit there is."""

import json
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from atoll.model.errors import RepositoryDamagedError, UnknownPointError
from atoll.model.points import Evidence, RestorePoint
from atoll.repository.keys import MasterKey
from atoll.repository.records import from_json, to_json
from atoll.repository.sealing import halves, new_name, seal, twice, unseal
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

POINTS, POINTS_KIND = "points/", "PTS"
EVIDENCE, EVIDENCE_KIND = "evidence/", "EVD"
T = TypeVar("T")
_LISTINGS = 5
"""How often points are listed while others write them anew; a store may list what is long gone."""


@dataclass(frozen=True, slots=True)
class PointEvidence:
    """Evidence and the id of the point it is for."""

    point: str
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Reading:
    """What an object says; `damaged_copies` counts the copies (of 2) that are not as written."""

    object: str
    points: tuple[RestorePoint, ...]
    evidence: tuple[PointEvidence, ...]
    damaged_copies: int


class PointLog:
    """Restore points and evidence. Objects never change, so each is read once."""

    def __init__(self, store: ObjectStore, master: MasterKey) -> None:
        self._store = store
        self._master = master
        self._read: dict[str, Reading] = {}
        self.lost: tuple[str, ...] = ()

    def append(self, points: Sequence[RestorePoint]) -> str:
        """Make the points visible, all at once or none; the name of the object that holds them."""
        name = new_name()
        plain = json.dumps({"points": [to_json(point) for point in points]}).encode()
        sealed = seal(self._master, POINTS_KIND, name, plain)
        self._store.put(POINTS + name, [twice(sealed)])
        return POINTS + name

    def attach(self, point: str, evidence: Evidence) -> None:
        """Add evidence for a point, in an object of its own."""
        name = new_name()
        plain = json.dumps(to_json(PointEvidence(point, evidence))).encode()
        sealed = seal(self._master, EVIDENCE_KIND, name, plain)
        self._store.put(f"{EVIDENCE}{self._folder(point)}/{name}", [twice(sealed)])

    def points(self) -> list[RestorePoint]:
        """All points that can be read, oldest first; `lost` then names the objects that cannot."""
        for _ in range(_LISTINGS):
            readings, lost, vanished = self._read_all()
            if not vanished:
                break  # else one was written anew, without a forgotten point, since it was listed
        self.lost = tuple(lost)
        found = {point.id: point for reading in readings for point in reading.points}
        return sorted(found.values(), key=lambda point: (point.created_at, point.id))

    def _read_all(self) -> tuple[list[Reading], list[str], bool]:
        """All that can be read, what cannot, and whether some of what was listed is gone."""
        readings: list[Reading] = []
        lost: list[str] = []
        vanished = False
        for name in self._names(POINTS):
            try:
                readings.append(self.read(name))
            except MissingObjectError:
                vanished = True
            except RepositoryDamagedError:
                lost.append(name)
        return readings, lost, vanished

    def forget(self, ids: Set[str]) -> list[RestorePoint]:
        """Remove points and their evidence; returns those that were there.

        The caller holds the maintenance lock. What is left of an object is written before the object
        goes, so that no other point is missing at any time; what an earlier call that was cut short
        wrote by then is not written again.
        """
        held = {name: self.read(name).points for name in self._names(POINTS)}
        going = {
            name: points
            for name, points in held.items()
            if any(point.id in ids for point in points)
        }
        kept = {point.id: point for name in held.keys() - going.keys() for point in held[name]}
        if going and kept:
            self._store.settle(POINTS)  # who wrote them may have been killed before they were safe
        gone: dict[str, RestorePoint] = {}
        for name, points in going.items():
            rest = {point.id: point for point in points if point.id not in ids}
            lacking = [point for point in rest.values() if kept.get(point.id) != point]
            if lacking:
                self.append(lacking)
                kept |= rest
            self._store.delete(name)
            gone.update((point.id, point) for point in points if point.id in ids)
        for point in ids:
            for name in self._names(self.folder_of(point)):
                self._store.delete(name)
        self._store.settle(POINTS)  # what another forgot who was killed before it was for good
        return sorted(gone.values(), key=lambda point: (point.created_at, point.id))

    def drop_orphans(self) -> int:
        """Remove evidence of points that are gone, and return its bytes.

        It is left by a `forget` that was killed, or by a restore test of a point that was forgotten
        meanwhile. The caller holds the maintenance lock.
        """
        there = list(own_objects(self._store, EVIDENCE))  # first: points come before their evidence
        folders = tuple(self.folder_of(point.id) for point in self.every_point())
        orphans = [info for info in there if not info.name.startswith(folders)]
        for info in orphans:
            self._store.delete(info.name)
        return sum(info.size_bytes for info in orphans)

    def every_point(self) -> list[RestorePoint]:
        """All points, for whoever may not miss one; RepositoryDamagedError if one cannot be read."""
        points = self.points()
        if self.lost:
            raise RepositoryDamagedError(
                f"{self.lost[0]} is damaged, and which restore points it names is not known; restore "
                "that object from a copy of the repository."
            )
        return points

    def evidence(self, point: str) -> list[Evidence]:
        """A point's evidence, oldest first; what of it is damaged counts as never given."""
        found: list[Evidence] = []
        for name in self._names(f"{EVIDENCE}{self._folder(point)}/"):
            with suppress(RepositoryDamagedError):
                found += [item.evidence for item in self.read(name).evidence if item.point == point]
        return sorted(found, key=lambda item: item.proven_at)

    def read(self, name: str) -> Reading:
        """One object of either kind; RepositoryDamagedError if neither copy is whole."""
        if name not in self._read:
            self._read[name] = self.read_again(name)
        return self._read[name]

    def read_again(self, name: str) -> Reading:
        """The same, from the store even if it was read before."""
        if name.startswith(POINTS):
            return self._reading(name, POINTS_KIND, _decode_points)
        return self._reading(name, EVIDENCE_KIND, _decode_evidence)

    def names(self) -> Iterator[str]:
        """Every object this log consists of."""
        yield from self._names(POINTS)
        yield from self._names(EVIDENCE)

    def folder_of(self, point: str) -> str:
        """Where a point's evidence lies."""
        return f"{EVIDENCE}{self._folder(point)}/"

    def _names(self, prefix: str) -> list[str]:
        return sorted(info.name for info in own_objects(self._store, prefix))

    def _folder(self, point: str) -> str:
        """A point's id tells the VM's name, so the folder is a keyed hash of it."""
        return self._master.derive("evidence folder", point.encode())[:16].hex()

    def _reading(
        self,
        name: str,
        kind: str,
        decode: Callable[[Any], tuple[tuple[RestorePoint, ...], tuple[PointEvidence, ...]]],
    ) -> Reading:
        damaged = 0
        whole: bytes | None = None
        for copy in halves(self._store.get(name)):
            try:
                whole = unseal(self._master, kind, name.rpartition("/")[2], copy)
            except RepositoryDamagedError:
                damaged += 1
        if whole is None:
            raise RepositoryDamagedError(
                f"Both copies of {name} are damaged, and with them what it says of restore "
                "points; restore that object from a copy of the repository."
            )
        try:
            points, evidence = decode(json.loads(whole))
        except (ValueError, KeyError, TypeError) as error:
            raise RepositoryDamagedError(
                f"{name} is sealed rightly but says something else than expected ({error}); it "
                "may be from a newer Atoll."
            ) from error
        return Reading(name, points, evidence, damaged)


def find_point(points: Sequence[RestorePoint], reference: str) -> RestorePoint:
    """`VM`, `VM@latest`, `VM@ID`, or an id or the beginning of one; UnknownPointError else."""
    vm, at, which = reference.rpartition("@")
    if not at or any(point.vm == reference for point in points):
        vm, which = reference, "latest"
    of_vm = [point for point in points if point.vm == vm]
    if of_vm:
        if which == "latest":
            return of_vm[-1]
        candidates = [point for point in of_vm if point.id.startswith(which)]
    else:
        candidates = [point for point in points if point.id.startswith(reference)]
    exact = [point for point in candidates if point.id in (which, reference)]
    if len(exact or candidates) == 1:
        return (exact or candidates)[0]
    raise UnknownPointError(_advice(points, of_vm, candidates, reference))


def _advice(
    points: Sequence[RestorePoint],
    of_vm: Sequence[RestorePoint],
    candidates: Sequence[RestorePoint],
    reference: str,
) -> str:
    if candidates:
        return f"{reference!r} could be any of {_some([p.id for p in candidates])}; write more."
    if of_vm:
        return f"{reference!r} names no restore point; that VM has {_some([p.id for p in of_vm])}."
    if not points:
        return f"{reference!r} names no restore point; the repository has none yet."
    vms = sorted({point.vm for point in points})
    return f"{reference!r} names no restore point; there are points of {_some(vms)}."


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[-8:])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} older"


def _decode_points(
    document: Any,
) -> tuple[tuple[RestorePoint, ...], tuple[PointEvidence, ...]]:
    return tuple(from_json(RestorePoint, item) for item in document["points"]), ()


def _decode_evidence(
    document: Any,
) -> tuple[tuple[RestorePoint, ...], tuple[PointEvidence, ...]]:
    return (), (from_json(PointEvidence, document),)
