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
from atoll.model.errors import AtollError
from atoll.model.plan import Plan, PlannedVm
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.storage.interface import StorageEngine

PlacementReader = Callable[[Sequence[str]], Mapping[str, tuple[str, tuple[str, ...]]]]
"""Instance UUIDs to (host, datastores) as vCenter says at the moment of the call."""


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
    """From the first guest asked to freeze until the last one let go."""


def capture(
    plan: Plan,
    agents: Mapping[str, GuestAgent],
    engine: StorageEngine,
    placement: PlacementReader,
    policy: HoldPolicy,
    progress: Progress,
) -> Capture:
    """Capture the plan's LUN group as `atoll-<run>`.

    `agents` are keyed by instance UUID. Raises the agent's error when a guest
    could not be held and the policy does not accept less; then no snapshot was
    taken and every guest was told to thaw. A hold that broke after it began
    still gives a point, marked with what was lost.
    """
    progress.stage("", "prepare")
    failures = _prepare(plan, agents, policy)
    uuids = [vm.vm.instance_uuid for vm in plan.vms]
    name = snapshot_name(plan.run)
    for attempt in range(policy.moves + 1):
        before = placement(uuids)
        progress.stage("", "hold")
        # Each hold has a name of its own, so a late word about one never touches the next.
        hold = plan.run if attempt == 0 else f"{plan.run}-{attempt}"
        held, snapshot, group_seconds = _hold_and_snapshot(
            plan, hold, agents, engine, name, policy, dict(failures), progress
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


def snapshot_name(run: str) -> str:
    """What the storage snapshot of a run is called."""
    return f"atoll-{run}"


def _moved(
    vm: PlannedVm,
    before: Mapping[str, tuple[str, tuple[str, ...]]],
    after: Mapping[str, tuple[str, tuple[str, ...]]],
) -> bool:
    uuid = vm.vm.instance_uuid
    return before.get(uuid) != after.get(uuid)


def _prepare(
    plan: Plan, agents: Mapping[str, GuestAgent], policy: HoldPolicy
) -> dict[str, AtollError]:
    """Let the agents flush while everything serves; returns who could not, by instance UUID."""
    failures: dict[str, AtollError] = {}
    asked = [vm for vm in plan.vms if vm.vm.powered_on and vm.vm.instance_uuid in agents]
    if asked:
        with ThreadPoolExecutor(max_workers=len(asked), thread_name_prefix="prepare") as pool:
            answers = {
                vm.vm.instance_uuid: pool.submit(agents[vm.vm.instance_uuid].prepare, plan.run)
                for vm in asked
            }
        for uuid, answer in answers.items():
            error = answer.exception()
            if isinstance(error, AtollError):
                failures[uuid] = error
            elif error is not None:
                raise error
    if failures and not policy.accept_less:
        raise next(iter(failures.values()))
    return failures


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
    asked = [
        vm
        for vm in plan.vms
        if vm.vm.powered_on
        and vm.vm.instance_uuid in agents
        and vm.vm.instance_uuid not in failures
    ]
    frozen: dict[str, Frozen] = {}
    released: dict[str, Release] = {}
    snapshot: GroupSnapshot | None = None
    with ThreadPoolExecutor(max_workers=max(1, len(asked)), thread_name_prefix="hold") as pool:
        started = time.monotonic()
        try:
            answers = {
                vm.vm.instance_uuid: pool.submit(
                    agents[vm.vm.instance_uuid].freeze,
                    hold,
                    policy.lease_seconds,
                    policy.budget_seconds,
                )
                for vm in asked
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
            progress.stage("", "release")
            thaws = {
                vm.vm.instance_uuid: pool.submit(agents[vm.vm.instance_uuid].thaw, hold)
                for vm in asked
            }
            for uuid, thaw in thaws.items():
                try:
                    released[uuid] = Release(thawed=thaw.result(), failure=None)
                except AtollError as error:
                    # The guest's own lease thaws it; the point must not claim the hold.
                    released[uuid] = Release(thawed=None, failure=error)
            group_seconds = time.monotonic() - started
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
