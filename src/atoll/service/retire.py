"""Snapshots that no longer serve the next increment, and what dead runs left behind."""

from collections.abc import Iterable, Mapping

from atoll.guests.interface import GuestAgent
from atoll.model.errors import AtollError
from atoll.model.points import RestorePoint
from atoll.service.journal import Journal
from atoll.storage.interface import StorageEngine

OWN_PREFIX = "atoll-"


def needed_snapshots(points: Iterable[RestorePoint]) -> set[tuple[str, str]]:
    """(group, snapshot) of each VM's newest point: the next increment is measured from it."""
    newest: dict[str, RestorePoint] = {}
    for point in points:
        known = newest.get(point.instance_uuid)
        if known is None or point.created_at >= known.created_at:
            newest[point.instance_uuid] = point
    return {(point.group, point.snapshot) for point in newest.values()}


def retire_snapshots(engine: StorageEngine, group: str, points: Iterable[RestorePoint]) -> int:
    """Delete this product's snapshots of a group that no newest point needs; returns how many."""
    needed = needed_snapshots(points)
    retired = 0
    for snapshot in engine.snapshots(group):
        if snapshot.name.startswith(OWN_PREFIX) and (group, snapshot.name) not in needed:
            engine.delete_snapshot(group, snapshot.name)
            retired += 1
    return retired


def clean_up(
    engine: StorageEngine,
    journal: Journal,
    agents: Mapping[str, GuestAgent],
    points: Iterable[RestorePoint],
) -> list[str]:
    """Bring the site in order after runs that died; one sentence for each thing done.

    Guests are told to thaw, although their leases have done so by now. Every
    snapshot and clone of ours that no committed point needs goes. Call it while
    holding the journal's lock, so that no live run loses what it works on.
    """
    done = list(engine.reconcile())
    needed = needed_snapshots(points)
    for record in journal.unfinished():
        for uuid in record.vms:
            if uuid in agents:
                try:
                    agents[uuid].thaw(record.run)
                except AtollError as error:
                    done.append(f"A guest of run {record.run} did not answer: {error}")
        if (record.group, record.snapshot) not in needed:
            engine.delete_snapshot(record.group, record.snapshot)
        journal.end(record.run)
        done.append(f"Cleared what run {record.run} left when it died.")
    for group in engine.groups():
        if group.clone_of is not None and group.name.startswith(OWN_PREFIX):
            engine.delete_clone(group.name)
            done.append(f"Removed clone {group.name}, which no run uses.")
    return done
