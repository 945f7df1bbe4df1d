"""The main job: from live VMs through one hold and its snapshots to committed restore points."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from atoll.director.capture import Capture
from atoll.director.policy import Way
from atoll.guests.interface import GuestAgent
from atoll.island.copy import copy_vm, opened
from atoll.model.errors import AtollError
from atoll.model.plan import Bystander, Plan
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.repository.repository import Repository
from atoll.service.holding import PreparedRun, prepared
from atoll.service.retire import clean_up, own_prefix, points_of_known_vms, retire_snapshots
from atoll.service.site import Site
from atoll.storage.interface import StorageEngine


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
    with prepared(site, names, progress) as run:
        run.repository.begin()
        snapshot = run.prefix + run.name
        try:
            held = run.hold(snapshot, progress)
            started = time.monotonic()
            parents = {} if full else _parents(run.plan, run.points)
            made = _copy(run.plan, held, run.engine, run.repository, parents, progress)
            progress.stage("", "commit")
            run.repository.commit(made)
        except BaseException as error:
            _undo(run, snapshot, error)
            raise
        copy_seconds = time.monotonic() - started
        progress.stage("", "retire")
        cleaned = list(run.cleaned)
        try:
            known = points_of_known_vms([*run.points, *made], run.inventory)
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


def _undo(run: PreparedRun, snapshot: str, cause: BaseException) -> None:
    """Leave nothing of a run that failed."""
    run.repository.abandon()
    try:
        # Cut off inside the commit, the points may be there all the same, and need their snapshots.
        committed = any(point.run == run.name for point in run.repository.points())
        if committed:
            run.journal.end(run.name)
    except AtollError as error:
        cause.add_note(f"Clearing up after it failed too: {error}")
        return
    if not committed:
        run.undo(snapshot, cause)


def _parents(plan: Plan, points: Sequence[RestorePoint]) -> Mapping[str, RestorePoint]:
    """Each VM's newest point, whose snapshots are kept for the next increment, by instance UUID."""
    uuids = {vm.vm.instance_uuid for vm in plan.vms}
    return {point.instance_uuid: point for point in points if point.instance_uuid in uuids}


def _copy(
    plan: Plan,
    held: Capture,
    engine: StorageEngine,
    repository: Repository,
    parents: Mapping[str, RestorePoint],
    progress: Progress,
) -> list[RestorePoint]:
    progress.stage("", "map")
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
            )
            for vm in plan.vms
        ]


def clean_site(site: Site) -> list[str]:
    """Clear what dead runs left, without starting a new one."""
    agents: Mapping[str, GuestAgent] = site.agents()
    journal = site.journal()
    with journal.exclusive():
        repository = site.repository()
        vmware = None
        if Way.VMWARE in site.hold.ways:
            vmware = site.vcenter().snapshots(repository.key_id[:8])
        prefix = own_prefix(repository.key_id)
        points, pins = repository.points(), site.pins()
        return clean_up(site.engine(), journal, agents, prefix, points, pins, vmware)
