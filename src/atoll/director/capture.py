"""Hold the guests, take one group snapshot, let go, and prove what was held.

This is one step that is never split: a redo after a crash starts over with
guests that serve, because their leases have ended, and deletes the snapshot
the dead run may have left.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from atoll.director.proof import HeldGuest, Release, prove_consistency
from atoll.guests.interface import Frozen, GuestAgent
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
class HoldPolicy:
    """How long guests may be held and what is accepted when they cannot be.

    `lease_seconds` is when a guest thaws by itself; `budget_seconds` is how
    long an agent may take to freeze. With `accept_less` a guest that cannot be
    held gives a lesser point that says why, else the run fails and leaves
    nothing behind. `moves` is how often the hold is redone when a VM moved meanwhile.
    """

    lease_seconds: float = 10.0
    budget_seconds: float = 5.0
    accept_less: bool = False
    moves: int = 2


@dataclass(frozen=True, slots=True)
class Capture:
    """A group snapshot and the proof for each VM of the plan, keyed by instance UUID."""

    snapshot: GroupSnapshot
    proofs: Mapping[str, ConsistencyProof]
    group_hold_seconds: float
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
    """Capture the plan's LUN group as the snapshot `name`.

    `agents` are keyed by instance UUID. Raises the agent's error when a guest
    could not be held and the policy does not accept less; then no snapshot was
    taken and every guest was told to thaw. A hold that broke after it began
    still gives a point, marked with what was lost. HoldFailedError also when a
    VM is no longer what was planned, for example because another product took a
    VMware snapshot of it since.
    """
    uuids = [vm.vm.instance_uuid for vm in plan.vms]
    for attempt in range(policy.moves + 1):
        # Each hold has a name of its own, so a late word about one never touches the next.
        hold = hold_name(plan.run, attempt)
        progress.stage("", "prepare")
        failures = _prepare(plan, hold, agents, policy)
        try:
            before = placement(uuids)
            _require_as_planned(plan, before)
        except BaseException:
            _thaw(_asked(plan, agents, failures), hold, agents)
            raise
        progress.stage("", "hold")
        held, snapshot, group_seconds = _hold_and_snapshot(
            plan, hold, agents, engine, name, policy, failures, progress
        )
        after = placement(uuids)
        moved = [vm.vm.name for vm in plan.vms if _moved(vm, before, after)]
        if not moved or attempt == policy.moves:
            break
        progress.note("", f"{', '.join(moved)} moved during the hold; holding again")
        engine.delete_snapshot(plan.group, name)
    progress.stage("", "proof")
    proofs = {
        guest.planned.vm.instance_uuid: prove_consistency(
            guest,
            snapshot,
            before.get(guest.planned.vm.instance_uuid),
            after.get(guest.planned.vm.instance_uuid),
        )
        for guest in held
    }
    return Capture(snapshot=snapshot, proofs=proofs, group_hold_seconds=group_seconds)


def hold_name(run: str, attempt: int) -> str:
    """What a run's hold is called to the agents; each redo has a name of its own."""
    return run if attempt == 0 else f"{run}-{attempt}"


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


def _asked(
    plan: Plan, agents: Mapping[str, GuestAgent], failures: Mapping[str, AtollError]
) -> list[str]:
    """The instance UUIDs of the VMs that run, have an agent, and have not failed."""
    uuids = [vm.vm.instance_uuid for vm in plan.vms if vm.vm.powered_on]
    return [uuid for uuid in uuids if uuid in agents and uuid not in failures]


def _prepare(
    plan: Plan, hold: str, agents: Mapping[str, GuestAgent], policy: HoldPolicy
) -> dict[str, AtollError]:
    """Let the agents flush and get ready while everything serves.

    Returns who could not, by instance UUID. Whatever takes a guest long belongs
    here: from the first freeze on, every guest waits for the slowest.
    """
    asked = _asked(plan, agents, {})
    failures: dict[str, AtollError] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(asked)), thread_name_prefix="prepare") as pool:
        answers = {uuid: pool.submit(agents[uuid].prepare, hold) for uuid in asked}
    for uuid, answer in answers.items():
        error = answer.exception()
        if isinstance(error, AtollError):
            failures[uuid] = error
        elif error is not None:
            raise error
    if failures and not policy.accept_less:
        _thaw(_asked(plan, agents, failures), hold, agents)
        raise next(iter(failures.values()))
    return failures


def _thaw(uuids: Sequence[str], hold: str, agents: Mapping[str, GuestAgent]) -> dict[str, Release]:
    """Let all of them go at once, and say what each answered."""
    released: dict[str, Release] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(uuids)), thread_name_prefix="thaw") as pool:
        answers = {uuid: pool.submit(agents[uuid].thaw, hold) for uuid in uuids}
    for uuid, answer in answers.items():
        try:
            released[uuid] = Release(thawed=answer.result(), failure=None)
        except AtollError as error:
            # The guest's own lease thaws it; the point must not claim the hold.
            released[uuid] = Release(thawed=None, failure=error)
    return released


def _hold_and_snapshot(
    plan: Plan,
    hold: str,
    agents: Mapping[str, GuestAgent],
    engine: StorageEngine,
    name: str,
    policy: HoldPolicy,
    failures: dict[str, AtollError],
    progress: Progress,
) -> tuple[list[HeldGuest], GroupSnapshot, float]:
    """Freeze all, snapshot, thaw all. Whatever happens, every guest asked to freeze is thawed."""
    asked = _asked(plan, agents, failures)
    frozen: dict[str, Frozen] = {}
    released: dict[str, Release] = {}
    snapshot: GroupSnapshot | None = None
    with ThreadPoolExecutor(max_workers=max(1, len(asked)), thread_name_prefix="hold") as pool:
        started = time.monotonic()
        try:
            answers = {
                uuid: pool.submit(
                    agents[uuid].freeze, hold, policy.lease_seconds, policy.budget_seconds
                )
                for uuid in asked
            }
            for uuid, answer in answers.items():
                try:
                    frozen[uuid] = answer.result()
                except AtollError as error:
                    failures[uuid] = error
            if failures and not policy.accept_less:
                raise next(iter(failures.values()))
            progress.stage("", "snapshot")
            snapshot = engine.snapshot_group(plan.group, name)
        finally:
            # Nothing, not even telling the watcher, comes before the guests.
            released = _thaw(asked, hold, agents)
            group_seconds = time.monotonic() - started
            progress.stage("", "release")
    held = [
        HeldGuest(
            planned=vm,
            run=hold,
            lease_seconds=policy.lease_seconds,
            frozen=frozen.get(vm.vm.instance_uuid),
            release=released.get(vm.vm.instance_uuid),
            failure=failures.get(vm.vm.instance_uuid),
        )
        for vm in plan.vms
    ]
    return held, snapshot, group_seconds
