"""The main job: from live VMs through one hold and its snapshots to committed restore points."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from atoll.director.capture import Capture
from atoll.director.policy import Way
from atoll.island.copy import copy_vm, opened
from atoll.model.errors import AtollError, RunConflictError
from atoll.model.plan import Bystander, PlannedDisk
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.repository.repository import Repository
from atoll.service.holding import PreparedRun, prepared
from atoll.service.retire import clean_up, own_prefix, points_of_known_vms, retire_snapshots
from atoll.service.site import Site
from atoll.service.slots import Slots
from atoll.storage.federation import system_with


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

    Nothing is held before the plan is sound, the agents are known and the
    repository is open. Raises AtollError; then no guest is held, and neither a
    restore point nor a snapshot of the run remains.
    """
    repository = site.repository()
    with prepared(site, names, repository.points, progress) as run:
        repository.begin()
        snapshot = run.prefix + run.name
        try:
            with ExitStack() as reading:
                parents = {} if full else _parents(run, repository, reading)
                held = run.hold(snapshot, progress)
                started = time.monotonic()
                made = _copy(run, repository, held, parents, site.slots(), progress)
            progress.stage("", "commit")
            repository.commit(made)
        except BaseException as error:
            _undo(run, repository, snapshot, error)
            raise
        copy_seconds = time.monotonic() - started
        progress.stage("", "retire")
        cleaned = list(run.cleaned)
        try:
            with run.journal.tidying():
                # Other runs may have committed meanwhile, and those who tidy next see this one's.
                known = points_of_known_vms(repository.points(), run.inventory)
                retired = retire_snapshots(run.engine, run.prefix, known, run.pins)
            run.journal.end(run.name)
        except AtollError as error:
            # The points are there; what could not be tidied the next run tidies.
            retired = 0
            cleaned.append(f"Old snapshots could not be deleted yet: {error}")
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


def _copy(
    run: PreparedRun,
    repository: Repository,
    held: Capture,
    parents: Mapping[str, RestorePoint],
    slots: Slots,
    progress: Progress,
) -> list[RestorePoint]:
    plan, engine = run.plan, run.engine
    progress.stage("", "map")

    def turn(vm: str, disk: PlannedDisk) -> AbstractContextManager[None]:
        system = system_with(engine, disk.group)
        return slots.copying(system, disk.disk.datastore, partial(progress.note, vm))

    with ExitStack() as stack:
        views = {
            group: stack.enter_context(
                opened(engine, snapshot, plan.luns(group), plan.raw_luns(group))
            )
            for group, snapshot in held.snapshots.items()
        }
        progress.stage("", "copy")
        return [
            copy_vm(
                vm,
                views,
                held.proofs[vm.vm.instance_uuid],
                plan.run,
                repository,
                parents.get(vm.vm.instance_uuid),
                progress,
                partial(turn, vm.vm.name),
            )
            for vm in plan.vms
        ]


def clean_site(site: Site) -> list[str]:
    """Clear what dead runs left, without starting a new one."""
    identity = site.identity()
    vmware = None
    if Way.VMWARE in site.hold.ways:
        vmware = site.vcenter().snapshots(identity)
    return clean_up(
        site.engine(),
        site.journal(),
        site.agents(),
        own_prefix(identity),
        site.repository().points if site.has_repository else None,
        site.pins(),
        vmware,
    )
