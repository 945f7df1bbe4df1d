"""What a restore point may be called, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.director.policy import Way
from atoll.director.vmware_verdict import VmwareVerdict
from atoll.guests.interface import Frozen, Thawed
from atoll.model.consistency import Consistency, ConsistencyProof, GroupInstant, Hold
from atoll.model.errors import AtollError
from atoll.model.inventory import Placement
from atoll.model.plan import PlannedDisk, PlannedVm
from atoll.model.storage import GroupSnapshot

POWERED_OFF = "powered off"
"""How the reason begins for a VM that was not running, which no agent could have held."""

_ANOTHER_HOLD = "the hold broke, and what was thawed is another one of the same run"
_TOO_LATE = "the storage snapshot was not there when the hold ended"


@dataclass(frozen=True, slots=True)
class Release:
    """What came of asking a guest to thaw."""

    thawed: Thawed | None
    failure: AtollError | None


@dataclass(frozen=True, slots=True)
class HeldGuest:
    """Everything the director learned of one guest around the snapshot.

    `in_time` is whether the snapshots of its LUN groups were there before it was
    asked to thaw. `frozen` and `release` are None when its agent was never asked; `failure`
    is why it could not be held. `way` is how it was, `fell_back` why no better
    way. `verdict` is on its VMware snapshot, if one was tried.
    """

    planned: PlannedVm
    run: str
    lease_seconds: float
    in_time: bool
    frozen: Frozen | None
    release: Release | None
    failure: AtollError | None
    way: Way | None
    fell_back: tuple[str, ...]
    verdict: VmwareVerdict | None


def prove_consistency(
    guest: HeldGuest,
    snapshots: Sequence[GroupSnapshot],
    before: Placement | None,
    after: Placement | None,
) -> ConsistencyProof:
    """Judge one guest. `snapshots` are those of the LUN groups its disks lie in.

    The argument is causal and needs no clock: the snapshot was asked for after
    the guest said that it was held, and the guest was asked to thaw after the
    storage said that the snapshot was there. If the agent then says that the
    hold was unbroken, and it is the hold it had announced, the snapshot lies
    inside it. Clock times are recorded beside it for people. A hold by a VMware
    snapshot has a verdict of its own.
    """
    planned = guest.planned
    consistency, reasons = _judge(guest)
    forgetful = [disk.disk.label for disk in planned.disks if disk.disk.forgets]
    if planned.vm.powered_on and forgetful:
        consistency = _at_most_crash(consistency)
        reasons = (*reasons, _forgotten(forgetful))
    shared = [disk for disk in planned.disks if disk.shared_with]
    if shared:
        consistency = _at_most_crash(consistency)
        reasons = (*reasons, *map(_shared, shared))
    if before != after:
        consistency = _at_most_crash(consistency)
        reasons = (*reasons, _change(before, after))
    stood_still = guest.verdict is not None and guest.verdict.stood_still
    wrote = before != after or bool(shared) or (planned.vm.powered_on and not stood_still)
    if consistency is Consistency.CRASH and len(snapshots) > 1 and wrote:
        # What is held writes nowhere; else only one group's snapshot is one instant by itself.
        consistency = Consistency.NONE
        reasons = (*reasons, _torn(snapshots))
    first = snapshots[0]
    return ConsistencyProof(
        vm=planned.vm.name,
        consistency=consistency,
        reasons=reasons,
        hold=_hold(guest),
        group=first.group,
        snapshot=first.name,
        snapshot_started_at=min(each.started_at for each in snapshots),
        snapshot_finished_at=max(each.finished_at for each in snapshots),
        host_before=_where(before),
        host_after=_where(after),
        instants=tuple(
            GroupInstant(each.group, each.started_at, each.finished_at, each.pause_seconds)
            for each in snapshots
        ),
        way=guest.way or "",
        fell_back=guest.fell_back,
        vmware=guest.verdict.snapshot if guest.verdict else None,
    )


def _at_most_crash(consistency: Consistency) -> Consistency:
    return consistency if consistency is Consistency.NONE else Consistency.CRASH


def _judge(guest: HeldGuest) -> tuple[Consistency, tuple[str, ...]]:
    if guest.planned.vm.suspended:
        return Consistency.CRASH, ("suspended: what was in its memory is not on its disks",)
    if not guest.planned.vm.powered_on:
        return Consistency.CRASH, (f"{POWERED_OFF}: its disks are as clean as it was shut down",)
    if guest.failure is not None:
        return Consistency.CRASH, (str(guest.failure),)
    if guest.way is Way.VMWARE and guest.verdict is not None:
        return guest.verdict.consistency, guest.verdict.reasons
    if guest.frozen is None or guest.release is None:
        return Consistency.CRASH, ("no agent is enrolled for this VM",)
    if guest.release.thawed is None:
        return Consistency.CRASH, (f"the thaw was not confirmed: {guest.release.failure}",)
    if not guest.release.thawed.held:
        return Consistency.CRASH, (guest.release.thawed.reason or "the hold was broken",)
    if not _same_hold(guest.frozen, guest.release.thawed):
        return Consistency.CRASH, (_ANOTHER_HOLD,)
    if not guest.in_time:
        return Consistency.CRASH, (_TOO_LATE,)
    if not guest.frozen.filesystems:
        return Consistency.CRASH, ("the agent found no file system that it can freeze",)
    refused = tuple(
        f"{application.kind} {application.name} was not held: {application.detail}"
        for application in guest.frozen.applications
        if not application.held
    )
    if refused:
        return Consistency.FILESYSTEM, refused
    if not guest.frozen.applications:
        return Consistency.FILESYSTEM, ()
    return Consistency.APP, ()


def _hold(guest: HeldGuest) -> Hold | None:
    if guest.way is Way.VMWARE and guest.verdict is not None:
        return guest.verdict.hold
    frozen = guest.frozen
    if frozen is None:
        return None
    thawed = guest.release.thawed if guest.release else None
    unbroken = thawed is not None and thawed.held and _same_hold(frozen, thawed)
    return Hold(
        run=guest.run,
        began_at=frozen.began_at,
        frozen_at=frozen.frozen_at,
        thawed_at=thawed.thawed_at if thawed else frozen.frozen_at + guest.lease_seconds,
        lease_seconds=guest.lease_seconds,
        unbroken=unbroken,
        reason=_broken(thawed) if not unbroken else "",
        applications=frozen.applications,
        filesystems=frozen.filesystems,
        clock_offset_seconds=frozen.clock_offset_seconds,
        clock_error_seconds=frozen.clock_error_seconds,
        freeze_seconds=frozen.freeze_seconds,
    )


def _same_hold(frozen: Frozen, thawed: Thawed) -> bool:
    """Whether the agent speaks of the hold that it announced.

    A run can be held twice, when its hold broke and a repeated request came
    late. The time is no measure here but that hold's mark.
    """
    return thawed.frozen_at == frozen.frozen_at


def _broken(thawed: Thawed | None) -> str:
    if thawed is None:
        return "the thaw was not confirmed"
    return _ANOTHER_HOLD if thawed.held else thawed.reason


def _change(before: Placement | None, after: Placement | None) -> str:
    if before is None or after is None or before.host != after.host:
        return f"moved from {_where(before)} to {_where(after)} while the snapshot was taken"
    if before.datastores != after.datastores:
        return "moved to other datastores while the snapshot was taken"
    if before.powered_on != after.powered_on:
        return "was switched on or off while the snapshot was taken"
    return "got a VMware snapshot or other disks while the snapshot was taken"


def _forgotten(labels: Sequence[str]) -> str:
    return (
        f"{', '.join(labels)} {'is' if len(labels) == 1 else 'are'} non-persistent: the point has "
        "what was there when the VM was switched on"
    )


def _shared(disk: PlannedDisk) -> str:
    return (
        f"{disk.disk.label} is attached to {', '.join(disk.shared_with)} too, which ran and may have "
        "written to it"
    )


def _torn(snapshots: Sequence[GroupSnapshot]) -> str:
    groups = ", ".join(each.group for each in snapshots)
    return (
        f"its disks lie in the LUN groups {groups}, which were snapshot one after the other while "
        "it was not held, so they are not of one instant"
    )


def _where(place: Placement | None) -> str:
    return place.host if place else "nowhere"
