"""Files over restore points and runs: found by name, in their versions, and compared."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from atoll.catalogue.catalogue import Catalogue
from atoll.catalogue.comparing import Change, compare
from atoll.catalogue.entries import CatalogueEntry
from atoll.catalogue.patterns import Bounds, Pattern
from atoll.catalogue.search import Search, Searched
from atoll.model.errors import (
    NotFoundInPointError,
    RepositoryDamagedError,
    UnknownPointError,
)
from atoll.model.points import RestorePoint
from atoll.repository.repository import Repository
from atoll.service.cataloguing import catalogue_now, catalogue_of, open_filters
from atoll.service.serving import serving
from atoll.service.site import Site


@dataclass(frozen=True, slots=True)
class Scope:
    """Which points are searched: of VMs by name or instance UUID, taken in a time, newest alone."""

    vms: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    newest: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A search that can begin. `without` are points in its scope that have no catalogue."""

    search: Search
    catalogues: Sequence[Searched]
    without: tuple[RestorePoint, ...]
    repository: Repository | None = None

    def damaged(self) -> list[tuple[str, RepositoryDamagedError]]:
        """Points, by VM@RUN, whose catalogues could not be read; those that went meanwhile left out."""
        found = self.search.damaged
        if found and self.repository is not None:
            there = {f"{point.vm}@{point.run}" for point in self.repository.points()}
            return [(name, error) for name, error in found if name in there]
        return found


def prepare_search(site: Site, pattern: Pattern, bounds: Bounds, scope: Scope) -> Prepared:
    """A search of the restore points in a scope, the newest first; UnknownPointError if there is none."""
    repository = site.repository()
    points = in_scope(repository, scope)
    filters = open_filters(repository)
    return Prepared(
        Search(pattern, bounds, filters),
        [
            Searched(
                point.vm,
                point.instance_uuid,
                point.run,
                point.created_at,
                partial(catalogue_of, repository, point),
            )
            for point in points
            if point.catalogue
        ],
        tuple(point for point in points if not point.catalogue),
        repository,
    )


def in_scope(repository: Repository, scope: Scope) -> list[RestorePoint]:
    """The points in a scope, newest first; UnknownPointError if there is none."""
    points = repository.points()
    for vm in scope.vms:
        if all(vm not in (point.vm, point.instance_uuid) for point in points):
            known = ", ".join(sorted({point.vm for point in points})) or "none"
            raise UnknownPointError(f"There is no restore point of {vm}; the VMs are: {known}.")
    found: list[RestorePoint] = []
    met: set[str] = set()
    for point in reversed(points):
        if scope.vms and not {point.vm, point.instance_uuid} & set(scope.vms):
            continue
        if scope.since is not None and point.created_at < scope.since:
            continue
        if scope.until is not None and point.created_at >= scope.until:
            continue
        if scope.newest and point.instance_uuid in met:
            continue
        met.add(point.instance_uuid)
        found.append(point)
    if not points:
        raise UnknownPointError("There is no restore point yet; make one with `atoll backup`.")
    if not found:
        raise UnknownPointError(
            "No restore point was taken in that time; `atoll points` lists those that there are."
        )
    return found


@contextmanager
def looking_into(
    site: Site, reference: str, pattern: Pattern, bounds: Bounds, vms: Sequence[str] = ()
) -> Iterator[Prepared]:
    """A search of one restore point or of a run, by catalogues made now where there are none.

    A run may be one that was captured and never copied: it is read from its storage snapshots, which
    are kept meanwhile.
    """
    with serving(site, reference) as served, ExitStack() as stack:
        chosen = [vm for vm in served if not vms or {vm.name, vm.instance_uuid} & set(vms)]
        if not chosen:
            known = ", ".join(sorted(vm.name for vm in served))
            raise NotFoundInPointError(f"There is no VM {', '.join(vms)} in it, only {known}.")

        def made(number: int) -> Catalogue:
            disks = []
            for disk in chosen[number].disks:
                reader = disk.open()
                stack.callback(reader.close)
                disks.append((disk.label, reader))
            return catalogue_now(disks)

        yield Prepared(
            Search(pattern, bounds, None),
            [
                Searched(vm.name, vm.instance_uuid, vm.run, vm.taken_at, partial(made, number))
                for number, vm in enumerate(chosen)
            ],
            (),
        )


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it was in some points in a row, by their runs; no entry where it was not there."""

    entry: CatalogueEntry | None
    first_run: str
    first_at: float
    last_run: str
    last_at: float
    points: int


def versions(repository: Repository, vm: str, path: str, scope: Scope) -> list[Version]:
    """What a path was in each point of a VM, oldest first, points in a row that agree put together.

    Points without a catalogue are passed over. NotFoundInPointError if no point ever had it.
    """
    found: list[Version] = []
    points = [p for p in in_scope(repository, replace(scope, vms=(vm,))) if p.catalogue]
    for point in reversed(points):
        try:
            entry: CatalogueEntry | None = catalogue_of(repository, point).stat(path)
        except NotFoundInPointError:
            entry = None
        last = found[-1] if found else None
        if last is not None and last.entry == entry:
            found[-1] = replace(
                last, last_run=point.run, last_at=point.created_at, points=last.points + 1
            )
        else:
            at = point.created_at
            found.append(Version(entry, point.run, at, point.run, at, 1))
    if not any(version.entry for version in found):
        raise NotFoundInPointError(
            f"No restore point of {vm} that has a catalogue ever had {path}; look for it with "
            "`atoll find`."
        )
    return found


def changes(repository: Repository, older: str, newer: str, path: str) -> Iterator[Change]:
    """What differs at and below a path between two points of one VM, whichever comes first."""
    before, after = repository.find(older), repository.find(newer)
    if before.instance_uuid != after.instance_uuid:
        raise UnknownPointError(
            f"{before.vm}@{before.run} is of another VM than {after.vm}@{after.run}; name two points "
            "of one VM to learn what changed."
        )
    yield from compare(catalogue_of(repository, before), catalogue_of(repository, after), path)
