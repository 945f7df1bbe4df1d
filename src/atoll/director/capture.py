"""Hold the guests, take one snapshot of each LUN group, let go, and prove what was held.

This is one step that is never split: a redo after a crash starts over with
guests that serve, because their leases have ended, and deletes the snapshots
the dead run may have left.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from atoll.director.barrier import Guests, Outcome, hold_and_snapshot, thaw_all
from atoll.director.order import freezing_steps
from atoll.director.policy import HoldPolicy
from atoll.director.proof import HeldGuest, prove_consistency
from atoll.guests.interface import GuestAgent
from atoll.model.consistency import ConsistencyProof
from atoll.model.errors import AtollError, HoldFailedError
from atoll.model.inventory import Placement
from atoll.model.plan import Plan, PlannedVm
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.storage.interface import StorageEngine

PlacementReader = Callable[[Sequence[str]], Mapping[str, Placement]]
"""Instance UUIDs to where vCenter says that they are at the moment of the call."""


@dataclass(frozen=True, slots=True)
class Capture:
    """The snapshots by LUN group, and the proof for each VM of the plan, by instance UUID."""

    snapshots: Mapping[str, GroupSnapshot]
    proofs: Mapping[str, ConsistencyProof]
    hold_seconds: float
    """From the first guest asked to freeze until the last one let go; guests were ready before."""


def capture(
    plan: Plan,
    agents: Mapping[str, GuestAgent],
    engine: StorageEngine,
    name: str,
    placement: PlacementReader,
    policy: HoldPolicy,
    progress: Progress,
) -> Capture:
    """Capture the plan's LUN groups as snapshots called `name`.

    `agents` are keyed by instance UUID. Raises the agent's error when a guest
    could not be held and the policy does not accept less; then no snapshot was
    taken and every guest was told to thaw. A hold that broke after it began
    still gives a point, marked with what was lost. HoldFailedError also when a
    VM is no longer what was planned, for example because another product took a
    VMware snapshot of it since.
    """
    uuids = [vm.vm.instance_uuid for vm in plan.vms]
    guests = _guests(plan, agents, policy)
    for attempt in range(policy.moves + 1):
        # Each hold has a name of its own, so a late word about one never touches the next.
        hold = hold_name(plan.run, attempt)
        progress.stage("", "prepare")
        unprepared = _prepare(guests, hold, policy)
        ready = guests.without(unprepared)
        try:
            before = placement(uuids)
            _require_as_planned(plan, before)
        except BaseException:
            thaw_all(ready, hold)
            raise
        progress.stage("", "hold")
        outcome = hold_and_snapshot(ready, hold, engine, plan.groups, name, policy, progress)
        after = placement(uuids)
        moved = [vm.vm.name for vm in plan.vms if _moved(vm, before, after)]
        if not moved or attempt == policy.moves:
            break
        progress.note("", f"{', '.join(moved)} moved during the hold; holding again")
        for group in plan.groups:
            engine.delete_snapshot(group, name)
    progress.stage("", "proof")
    proofs = {
        vm.vm.instance_uuid: prove_consistency(
            _held(vm, hold, policy, outcome, unprepared),
            [outcome.snapshots[group] for group in vm.groups],
            before.get(vm.vm.instance_uuid),
            after.get(vm.vm.instance_uuid),
        )
        for vm in plan.vms
    }
    return Capture(snapshots=outcome.snapshots, proofs=proofs, hold_seconds=outcome.seconds)


def hold_name(run: str, attempt: int) -> str:
    """What a run's hold is called to the agents; each redo has a name of its own."""
    return run if attempt == 0 else f"{run}-{attempt}"


def _guests(plan: Plan, agents: Mapping[str, GuestAgent], policy: HoldPolicy) -> Guests:
    """The VMs that run and have an agent."""
    held = [each for each in plan.vms if each.vm.powered_on and each.vm.instance_uuid in agents]
    return Guests(
        agents,
        {each.vm.instance_uuid: each.vm.name for each in held},
        freezing_steps(held, policy.orders),
    )


def _held(
    vm: PlannedVm,
    hold: str,
    policy: HoldPolicy,
    outcome: Outcome,
    unprepared: Mapping[str, AtollError],
) -> HeldGuest:
    uuid = vm.vm.instance_uuid
    return HeldGuest(
        planned=vm,
        run=hold,
        lease_seconds=policy.lease_seconds,
        frozen=outcome.frozen.get(uuid),
        release=outcome.released.get(uuid),
        failure=unprepared.get(uuid) or outcome.failures.get(uuid),
    )


def _require_as_planned(plan: Plan, placements: Mapping[str, Placement]) -> None:
    """Refuse to hold a VM whose files or power changed since the plan was made."""
    for planned in plan.vms:
        vm = planned.vm
        place = placements.get(vm.instance_uuid)
        disks = tuple(sorted((disk.key, disk.datastore, disk.path) for disk in vm.disks))
        if place is None:
            change = "is gone from vCenter"
        elif place.has_snapshot:
            change = "has a VMware snapshot now"
        elif place.disks != disks:
            change = "has other disks now, or has them elsewhere"
        elif place.powered_on != vm.powered_on:
            change = "was switched on or off"
        else:
            continue
        raise HoldFailedError(f"VM {vm.name} {change}, unlike when the run was planned; run again.")


def _moved(vm: PlannedVm, before: Mapping[str, Placement], after: Mapping[str, Placement]) -> bool:
    uuid = vm.vm.instance_uuid
    return before.get(uuid) != after.get(uuid)


def _prepare(guests: Guests, hold: str, policy: HoldPolicy) -> dict[str, AtollError]:
    """Let the agents flush and get ready while everything serves.

    Returns who could not, by instance UUID. Whatever takes a guest long belongs
    here: from the first freeze on, every guest waits for the slowest.
    """
    failures: dict[str, AtollError] = {}
    with ThreadPoolExecutor(max(1, len(guests.uuids)), thread_name_prefix="prepare") as pool:
        answers = {uuid: pool.submit(guests.agents[uuid].prepare, hold) for uuid in guests.uuids}
    for uuid, answer in answers.items():
        try:
            answer.result()
        except AtollError as error:
            failures[uuid] = error
    if failures and not policy.accept_less:
        thaw_all(guests.without(failures), hold)
        raise next(iter(failures.values()))
    return failures
