"""Snapshots that no longer serve the next increment, and what dead runs left behind."""

from collections.abc import Callable, Collection, Iterable, Mapping, Set

from atoll.director.vmware_hold import SnapshotKeeper, clear_leftovers
from atoll.guests.interface import GuestAgent
from atoll.model.errors import AtollError
from atoll.model.inventory import Inventory
from atoll.model.points import RestorePoint
from atoll.model.storage import LunGroup
from atoll.service.interrupted import InterruptedRuns, read_by
from atoll.service.journal import Journal, RunRecord
from atoll.service.pins import Pins
from atoll.storage.interface import StorageEngine

_CLEAR_SECONDS = 600.0


def own_prefix(site: str) -> str:
    """How this site's snapshots begin; those of another are none of our business."""
    return f"atoll-{site}-"


def capture_prefix(prefix: str) -> str:
    """How the snapshots of captures begin, which no restore point stands on."""
    return f"capture-{prefix}"


def cloned_snapshots(groups: Iterable[LunGroup]) -> set[tuple[str, str]]:
    """(group, snapshot) of those that a clone stands on."""
    found = set()
    for group in groups:
        if group.clone_of is not None:
            origin, _, snapshot = group.clone_of.partition("@")
            found.add((origin, snapshot))
    return found


def needed_snapshots(points: Iterable[RestorePoint]) -> set[tuple[str, str]]:
    """(group, snapshot) of each VM's newest point: the next increment is measured from it."""
    newest: dict[str, RestorePoint] = {}
    for point in points:
        known = newest.get(point.instance_uuid)
        if known is None or point.created_at >= known.created_at:
            newest[point.instance_uuid] = point
    return {(group, point.snapshot) for point in newest.values() for group in point.groups}


def points_of_known_vms(points: Iterable[RestorePoint], inventory: Inventory) -> list[RestorePoint]:
    """The points whose VM vCenter has: one that is gone would only let its snapshot grow.

    A VM that is left out for the moment may be back at the next run.
    """
    uuids = {vm.instance_uuid for vm in inventory.vms}
    names = {vm.name for vm in inventory.left_out}
    return [point for point in points if point.instance_uuid in uuids or point.vm in names]


def retire_snapshots(
    engine: StorageEngine,
    prefix: str,
    points: Iterable[RestorePoint],
    pins: Pins,
    kept: Set[tuple[str, str]] = frozenset(),
) -> int:
    """Delete our snapshots, of every group, that no VM's newest point needs; returns how many.

    One that somebody reads, or that a clone stands on, stays until a later run. Those that are `kept`
    (group, snapshot), for runs to go on with, were asked for before the points.
    """
    groups = engine.groups()
    needed = needed_snapshots(points) | cloned_snapshots(groups) | kept
    retired = 0
    for group in groups:
        for snapshot in engine.snapshots(group.name):
            if snapshot.name.startswith(prefix) and (group.name, snapshot.name) not in needed:
                with pins.deleting(group.name, snapshot.name) as free:
                    if free:
                        engine.delete_snapshot(group.name, snapshot.name)
                        retired += 1
    return retired


def clean_up(
    engine: StorageEngine,
    journal: Journal,
    agents: Mapping[str, GuestAgent],
    prefix: str,
    points: Callable[[], Iterable[RestorePoint]] | None,
    pins: Pins,
    vmware: SnapshotKeeper | None,
    interrupted: InterruptedRuns | None = None,
) -> list[str]:
    """Bring the site in order after runs that died; one sentence for each thing done.

    Guests first: they are told to thaw, although their leases have done so by
    now. Then our VMware snapshots, where runs may take some. Then every snapshot
    of ours goes that no committed point needs and no live run has pinned; without `points`,
    at a site that has no repository, none does. Runs that are `interrupted` and can be gone on with
    keep theirs.
    """
    done: list[str] = []
    goes_on = interrupted.goes_on if interrupted else _nobody
    with journal.dead(goes_on) as records:
        whys = {
            record.run: f" {interrupted.why_not(record)}" if interrupted and record.copying else ""
            for record in records
        }
        for record in records:
            done += _thaw(record, agents)
        if vmware is not None:
            ours = {record.run for record in records}
            done += _clear_vmware(vmware, lambda: journal.alive() - ours)
        with journal.tidying():
            done += engine.reconcile()
            done += [
                f"Deleted snapshot {name}, whose time was over."
                for name in engine.expire_snapshots()
            ]
            ours = {record.run for record in records}
            kept = read_by([each for each in journal.copying() if each.run not in ours])
            # Read now: what was committed until here needs its snapshots.
            retired = retire_snapshots(engine, prefix, points(), pins, kept) if points else 0
            for record in records:
                # One whose certificate was written may be on the island already; the next capture
                # retires it.
                delete_unread(engine, capture_prefix(prefix) + record.run, pins)
        for record in records:
            if interrupted is not None:
                interrupted.drop_draft(record)
            journal.end(record.run)
            done.append(f"Cleared what run {record.run} left when it died.{whys[record.run]}")
    if retired:
        done.append(f"Deleted {retired} snapshots that no restore point needs.")
    return done


def _nobody(record: RunRecord) -> bool:
    return False


def delete_unread(engine: StorageEngine, name: str, pins: Pins) -> None:
    """Delete the snapshots of that name, of all groups, but for those that somebody reads or clones."""
    groups = engine.groups()
    cloned = cloned_snapshots(groups)
    for group in groups:
        if (group.name, name) in cloned:
            continue
        with pins.deleting(group.name, name) as free:
            if free:
                engine.delete_snapshot(group.name, name)


def _clear_vmware(vmware: SnapshotKeeper, alive: Callable[[], Collection[str]]) -> list[str]:
    try:
        cleared = clear_leftovers(vmware, _CLEAR_SECONDS, alive)
    except AtollError as error:
        return [f"VMware snapshots that a run may have left could not be looked for: {error}"]
    return [
        f"Removed VMware snapshot {left.name} of VM {left.vm}, which a run left when it died."
        if error is None
        else f"VMware snapshot {left.name} of VM {left.vm} could not be removed: {error}"
        for left, error in cleared.items()
    ]


def _thaw(record: RunRecord, agents: Mapping[str, GuestAgent]) -> list[str]:
    silent = []
    for uuid in record.vms:
        if uuid not in agents:
            continue
        try:
            for hold in record.holds:
                agents[uuid].thaw(hold)
        except AtollError as error:
            silent.append(f"A guest of run {record.run} did not answer: {error}")
    return silent
