"""The main job: from live VMs through one hold and its snapshots to committed restore points."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from atoll.director.capture import Capture
from atoll.director.policy import Way
from atoll.model.errors import AtollError, RunConflictError
from atoll.model.plan import Bystander
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.repository.repository import Repository
from atoll.service.cataloguing import note_filters
from atoll.service.copy_run import copy_run
from atoll.service.holding import PreparedRun, prepared
from atoll.service.interrupted import read_by
from atoll.service.journal import CopyOrder
from atoll.service.resuming import kept_note, may_pass, resume_runs_of, waiting_runs
from atoll.service.retire import clean_up, own_prefix, points_of_known_vms, retire_snapshots
from atoll.service.site import Site


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What a run made.

    `cleaned` is what earlier runs had left, `leftovers` what this one could not tidy, a
    sentence each.
    """

    run: str
    points: tuple[RestorePoint, ...]
    bystanders: tuple[Bystander, ...]
    snapshots: tuple[GroupSnapshot, ...]
    hold_seconds: float
    copy_seconds: float
    retired_snapshots: int
    cleaned: tuple[str, ...]
    leftovers: tuple[str, ...]


def back_up(
    site: Site, names: Sequence[str], progress: Progress, *, full: bool = False
) -> BackupResult:
    """Back up the named VMs as one run, which snapshots every LUN group they lie in.

    Runs of these VMs that were cut off while they copied are finished first. Where the site wants
    it, the points have catalogues of their files. Nothing is held before the plan is sound, the
    agents are known and the repository is open. Raises AtollError; then no guest is held, and
    neither a restore point nor a snapshot of the run remains, unless it can be gone on with: its
    copy had begun, and it was interrupted or the error's cause may pass.
    """
    repository = site.repository()
    resumed = [said for each in resume_runs_of(site, names, progress) for said in each.said]
    with prepared(site, names, repository.points, progress) as run:
        repository.begin()
        snapshot = run.prefix + run.name
        order = None
        try:
            with ExitStack() as reading:
                parents = {} if full else _parents(run, repository, reading)
                held = run.hold(snapshot, progress)
                started = time.monotonic()
                copies = _order(run, snapshot, held, parents, site.copy)
                run.copies(copies)
                order = copies  # recorded: from here on another process could go on with it
                made = copy_run(site, order, held.snapshots, parents, progress)
            progress.stage("", "commit")
            repository.commit(made)
        except BaseException as error:
            if order is not None and site.resume_seconds and may_pass(error):
                repository.abandon()
                error.add_note(kept_note(run.name))
            else:
                _undo(run, repository, snapshot, error)
            raise
        copy_seconds = time.monotonic() - started
        progress.stage("", "retire")
        cleaned = [*resumed, *run.cleaned]
        try:
            repository.drop_draft(run.name)
            with run.journal.tidying():
                others = [each for each in run.journal.copying() if each.run != run.name]
                kept = read_by(others)
                # Other runs may have committed meanwhile, and those who tidy next see this one's.
                known = points_of_known_vms(repository.points(), run.inventory)
                retired = retire_snapshots(run.engine, run.prefix, known, run.pins, kept)
            run.journal.end(run.name)
        except AtollError as error:
            # The points are there; what could not be tidied the next run tidies.
            retired = 0
            cleaned.append(f"Old snapshots could not be deleted yet: {error}")
    note_filters(repository, made)
    progress.stage("", "done")
    return BackupResult(
        run=run.name,
        points=tuple(made),
        bystanders=run.plan.bystanders,
        snapshots=tuple(held.snapshots.values()),
        hold_seconds=held.hold_seconds,
        copy_seconds=copy_seconds,
        retired_snapshots=retired,
        cleaned=tuple(cleaned),
        leftovers=held.leftovers,
    )


def _undo(run: PreparedRun, repository: Repository, snapshot: str, cause: BaseException) -> None:
    """Leave nothing of a run that failed."""
    repository.abandon()
    try:
        # Cut off inside the commit, the points may be there all the same, and need their snapshots.
        committed = any(point.run == run.name for point in repository.points())
        repository.drop_draft(run.name)
        if committed:
            run.journal.end(run.name)
    except AtollError as error:
        cause.add_note(f"Clearing up after it failed too: {error}")
        return
    if not committed:
        run.undo(snapshot, cause)


def _parents(
    run: PreparedRun, repository: Repository, reading: ExitStack
) -> Mapping[str, RestorePoint]:
    """Each VM's newest point by instance UUID, its snapshots pinned until `reading` is closed.

    Asked before the hold: a point that others commit later may be newer than this run's snapshot. One
    whose snapshots another run is deleting just now is no parent: its VM is read in full.
    """
    uuids = {vm.vm.instance_uuid for vm in run.plan.vms}
    points = repository.points()
    newest = {point.instance_uuid: point for point in points if point.instance_uuid in uuids}
    parents = {}
    for uuid, point in newest.items():
        snapshots = [(group, point.snapshot) for group in point.groups]
        with suppress(RunConflictError):
            reading.enter_context(run.pins.reading(snapshots))
            parents[uuid] = point
    return parents


def _order(
    run: PreparedRun,
    snapshot: str,
    held: Capture,
    parents: Mapping[str, RestorePoint],
    copy: str | None,
) -> CopyOrder:
    own = [(group, snapshot) for group in run.plan.groups]
    older = [(group, point.snapshot) for point in parents.values() for group in point.groups]
    return CopyOrder(
        plan=run.plan,
        snapshot=snapshot,
        proofs=dict(held.proofs),
        parents={uuid: point.id for uuid, point in parents.items()},
        reads=tuple(dict.fromkeys((*own, *older))),
        copy=copy,
    )


def clean_site(site: Site, *, drop_interrupted: bool = False) -> list[str]:
    """Clear what dead runs left, without starting a new one.

    With `drop_interrupted` those too that were cut off while they copied and could be gone on with.
    """
    identity = site.identity()
    vmware = None
    if Way.VMWARE in site.hold.ways:
        vmware = site.vcenter().snapshots(identity)
    interrupted = site.interrupted(drop=drop_interrupted)
    done = clean_up(
        site.engine(),
        site.journal(),
        site.agents(),
        own_prefix(identity),
        site.repository().points if site.has_repository else None,
        site.pins(),
        vmware,
        interrupted,
    )
    return [*done, *waiting_runs(site)]
