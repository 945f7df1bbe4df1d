"""A second copy of the repository: a mirror of its objects, or its points in a repository of another key."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

from atoll.model.errors import ConfigurationError, RepositoryDamagedError
from atoll.model.progress import Progress
from atoll.repository.inspection import by_form
from atoll.repository.mirror import DamagedObject, Kind, MirrorReport, mirror
from atoll.repository.repository import Repository
from atoll.repository.store import ObjectStore
from atoll.service.copying_points import copy_points


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """Where a copy is to be. `repository` opens it with a key of its own, and is None if it has none."""

    name: str
    location: str
    store: Callable[[], ObjectStore]
    repository: Callable[[], Repository] | None


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied to a place; of a mirror, objects count, else points. Bytes are those written there.

    `slots_there` are key slots that the copy has and the repository has no longer.
    """

    copy: str
    location: str
    way: Literal["mirror", "points"]
    objects: int
    points: int
    moved_bytes: int
    seconds: float
    damaged: tuple[DamagedObject, ...]
    slots_there: tuple[str, ...]

    def raise_if_damaged(self) -> None:
        """RepositoryDamagedError if something was not copied, or not as it was."""
        if self.damaged:
            raise RepositoryDamagedError(
                f"{len(self.damaged)} objects or points of the repository are damaged and named above, "
                f"and {self.copy} has what is whole; run `atoll repo repair`, then copy again."
            )


def copy_repository(source: Repository, place: CopyPlace, progress: Progress) -> CopyReport:
    """Copy to a place: by objects if there is nothing or a mirror, by points into another repository.

    ConfigurationError if the place's key, or that it has none, does not fit what is there.
    """
    started = time.monotonic()
    with closing(place.store()) as store:
        kind = source.kind_of(store)
        if kind is not Kind.OTHER:
            if kind is Kind.NOTHING and place.repository is not None:
                raise ConfigurationError(
                    f"There is no repository at {place.location} that the key named for it could "
                    "open; make one with `atoll --copy NAME repo init`, or name no key and have a "
                    "mirror."
                )
            progress.stage("", "look")
            begin = partial(progress.stage, "", "mirror")
            report = source.mirror_to(store, begin=begin, progress=partial(progress.advance, ""))
            progress.stage("", "done")
            return _mirrored(place, report, started)
    if place.repository is None:
        raise ConfigurationError(
            f"{place.location} holds another repository, so points can be copied into it but no "
            "mirror can be made there; name its key_file, or choose an empty place."
        )
    with place.repository() as target:
        copied = copy_points(source, target, progress)
    return CopyReport(
        copy=place.name,
        location=place.location,
        way="points",
        objects=0,
        points=copied.points,
        moved_bytes=copied.stored_bytes,
        seconds=time.monotonic() - started,
        damaged=copied.damaged,
        slots_there=(),
    )


def mirror_without_key(source: ObjectStore, place: CopyPlace, progress: Progress) -> CopyReport:
    """A mirror by a machine that has no key: content is not checked, only form."""
    started = time.monotonic()
    with closing(place.store()) as store:
        progress.stage("", "look")
        report = mirror(
            source,
            store,
            by_form,
            begin=partial(progress.stage, "", "mirror"),
            progress=partial(progress.advance, ""),
        )
    progress.stage("", "done")
    return _mirrored(place, report, started)


def _mirrored(place: CopyPlace, report: MirrorReport, started: float) -> CopyReport:
    return CopyReport(
        copy=place.name,
        location=place.location,
        way="mirror",
        objects=report.objects,
        points=0,
        moved_bytes=report.moved_bytes,
        seconds=time.monotonic() - started,
        damaged=report.damaged,
        slots_there=report.slots_there,
    )
