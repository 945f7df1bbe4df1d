"""The main job: from live VMs through one hold and its snapshots to committed restore points."""

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from atoll.director.capture import Capture, Means, capture, hold_name
from atoll.director.certificate import certificate
from atoll.director.plan import make_plan
from atoll.director.policy import HoldPolicy, Way
from atoll.director.snapshots import delete_snapshots
from atoll.director.ways import wayless
from atoll.guests.interface import GuestAgent
from atoll.island.copy import copy_vm, opened
from atoll.model.errors import AgentUnavailableError, AtollError
from atoll.model.plan import Bystander, Plan
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.repository.repository import Repository
from atoll.service.journal import Journal, RunRecord
from atoll.service.retire import clean_up, own_prefix, points_of_known_vms, retire_snapshots
from atoll.service.site import Site
from atoll.storage.interface import StorageEngine

_UNDO_SECONDS = 60.0
"""For the storage to delete the snapshots of a run that failed; else the next start does."""


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


def new_run() -> str:
    """A run's name: sorts by time, unique, and fit for storage and agents."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def back_up(
    site: Site, names: Sequence[str], progress: Progress, *, full: bool = False
) -> BackupResult:
    """Back up the named VMs as one run, which snapshots every LUN group they lie in.

    Nothing is held before the plan is sound, the agents are known and the
    repository is open. Raises AtollError; then no guest is held, and neither a
    restore point nor a snapshot of the run remains.
    """
    progress.stage("", "plan")
    repository = site.repository()
    engine = site.engine()
    agents = site.agents()
    vcenter = site.vcenter()
    journal = site.journal()
    run = new_run()
    with journal.exclusive(), ExitStack() as following:
        points = repository.points()
        prefix = own_prefix(repository.key_id)
        vmware = vcenter.snapshots(repository.key_id[:8])
        means = Means(agents, engine, vcenter.placement, vmware)
        allowed = Way.VMWARE in site.hold.ways
        pins = site.pins()
        cleaned = clean_up(
            engine, journal, agents, prefix, points, pins, vmware if allowed else None
        )
        cleaned += site.renew_agents()
        # What moves until the snapshot is there is then noticed without reading everything again.
        following.enter_context(vcenter.follow())
        inventory = vcenter.inventory()
        plan = make_plan(run, names, inventory, engine.groups(), agents.keys())
        if not site.hold.accept_less:
            _require_ways(plan, agents, site.hold)
        for group in plan.groups:
            engine.require_room(group)
        repository.begin()
        snapshot = prefix + run
        journal.begin(
            RunRecord(
                run=run,
                vms=tuple(vm.vm.instance_uuid for vm in plan.vms),
                holds=tuple(hold_name(run, number) for number in range(site.hold.holds)),
            )
        )
        try:
            held = capture(plan, snapshot, means, site.hold, progress)
            following.close()
            words = certificate(plan, held.proofs)
            for group in plan.groups:
                engine.annotate_snapshot(group, snapshot, words)
            started = time.monotonic()
            parents = {} if full else _parents(plan, points)
            made = _copy(plan, held, engine, repository, parents, progress)
            progress.stage("", "commit")
            repository.commit(made)
        except BaseException as error:
            _undo(engine, journal, repository, plan.groups, snapshot, run, error)
            raise
        copy_seconds = time.monotonic() - started
        progress.stage("", "retire")
        try:
            known = points_of_known_vms([*points, *made], inventory)
            retired = retire_snapshots(engine, prefix, known, pins)
            journal.end(run)
        except AtollError as error:
            # The points are there; what could not be tidied the next run tidies.
            retired = 0
            cleaned.append(f"Old snapshots could not be deleted yet: {error}")
    progress.stage("", "done")
    return BackupResult(
        run=run,
        points=tuple(made),
        bystanders=plan.bystanders,
        snapshots=tuple(held.snapshots.values()),
        hold_seconds=held.hold_seconds,
        copy_seconds=copy_seconds,
        retired_snapshots=retired,
        cleaned=tuple(cleaned),
        leftovers=held.leftovers,
    )


def _undo(
    engine: StorageEngine,
    journal: Journal,
    repository: Repository,
    groups: Sequence[str],
    snapshot: str,
    run: str,
    cause: BaseException,
) -> None:
    """Leave nothing of a run that failed; what cannot be undone now the next start clears."""
    repository.abandon()
    try:
        # Cut off inside the commit, the points may be there all the same, and need their snapshots.
        if not any(point.run == run for point in repository.points()):
            delete_snapshots(engine, groups, snapshot, _UNDO_SECONDS)
        journal.end(run)
    except AtollError as error:
        cause.add_note(f"Clearing up after it failed too: {error}")


def _require_ways(plan: Plan, agents: Mapping[str, GuestAgent], policy: HoldPolicy) -> None:
    bare = wayless(plan, agents.keys(), policy)
    if bare:
        raise AgentUnavailableError(
            f"No agent is enrolled for {', '.join(bare)}, so the point would be crash-consistent "
            "only; enrol one, let VMware snapshots hold VMs without one (`ways` in [director]), or "
            "run again with --accept-less."
        )


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
