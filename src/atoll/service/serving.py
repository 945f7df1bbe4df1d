"""What `atoll mount` and its kin name: a run or a restore point, as VMs that can be read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from atoll.island.runs import find_run, run_vms
from atoll.island.served import ServedVm, point_vm
from atoll.model.errors import ConfigurationError, UnknownPointError
from atoll.model.points import RestorePoint
from atoll.repository.repository import Repository
from atoll.service.site import Site


@contextmanager
def serving(site: Site, reference: str, since: str | None = None) -> Iterator[tuple[ServedVm, ...]]:
    """The VMs that a reference means, readable while the block lasts; one of those that [limits] allows.

    `VM@RUN`, or a VM alone for its newest, is one restore point. `RUN`, the beginning of one, or
    `latest` is all VMs of a run; a run's name begins with a digit. They are read from its storage
    snapshots, which are kept meanwhile, and when those are gone from the repository. With `since`,
    an older one of the same kind, their disks know what changed; two runs come both from the
    storage or both from the repository. UnknownPointError when there is no such thing,
    RunConflictError when this machine serves as many as it may.
    """
    with site.slots().serving(), _opened(site, reference, since) as vms:
        yield vms


@contextmanager
def _opened(site: Site, reference: str, since: str | None) -> Iterator[tuple[ServedVm, ...]]:
    if "@" in reference or not _names_a_run(reference):
        repository = site.repository()
        older = _older_point(repository, reference, since) if since else None
        yield (point_vm(repository, repository.find(reference), older),)
        return
    engine = site.engine()
    try:
        runs = [find_run(engine, reference)]
        reference = runs[0].name  # `latest` is this one in the repository, too
        runs += [find_run(engine, since)] if since else []
    except UnknownPointError as error:
        yield _points(site, reference, since, error)
        return
    if runs[-1].taken_at > runs[0].taken_at:
        # What storage systems say then is not what has to be copied.
        raise UnknownPointError(
            f"Run {runs[-1].name} is newer than {reference}; name an older one to learn what changed"
            " since."
        )
    snapshots = [(taken.group, taken.name) for run in runs for taken in run.snapshots]
    # Found again under the pins: they may have been deleted meanwhile.
    with (
        site.pins().reading(list(dict.fromkeys(snapshots))),
        run_vms(engine, *(find_run(engine, run.name) for run in runs)) as vms,
    ):
        yield vms


def _names_a_run(reference: str) -> bool:
    return reference == "latest" or reference[:1].isdigit()


def _older_point(repository: Repository, reference: str, since: str) -> RestorePoint:
    point, older = repository.find(reference), repository.find(since)
    if older.instance_uuid != point.instance_uuid:
        raise UnknownPointError(
            f"{older.vm}@{older.run} is of another VM than {point.vm}@{point.run}; name two points of "
            "one VM to learn what changed."
        )
    return older


def _points(
    site: Site, reference: str, since: str | None, error: UnknownPointError
) -> tuple[ServedVm, ...]:
    """All points of the run; the error as it was when there is no repository that has any."""
    try:
        repository = site.repository()
    except ConfigurationError:  # most likely a site that captures only
        raise error from None
    points = repository.points()
    own = _of_run(points, reference, error)
    if since is None:
        return tuple(point_vm(repository, point) for point in own)
    before = {point.instance_uuid: point for point in _of_run(points, since, error)}
    run = next(iter(before.values())).run
    return tuple(
        # A VM that the older run did not have had no disks then.
        point_vm(
            repository,
            point,
            before.get(point.instance_uuid, replace(point, run=run, disks=())),
        )
        for point in own
    )


def _of_run(
    points: Sequence[RestorePoint], reference: str, error: UnknownPointError
) -> list[RestorePoint]:
    """The points of the one run that is meant, at least one; else UnknownPointError."""
    runs = sorted({point.run for point in points if point.run.startswith(reference)})
    if reference == "latest":
        runs = sorted({point.run for point in points})[-1:]
    if reference in runs:
        runs = [reference]
    if len(runs) > 1:
        raise UnknownPointError(
            f"{reference!r} fits several runs, {', '.join(runs[-5:])}; write more of the name."
        ) from error
    if not runs:
        raise error
    return [point for point in points if point.run == runs[0]]
