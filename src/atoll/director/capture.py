"""Hold the guests, take one snapshot of each LUN group, let go, and prove what was held.

This is one step that is never split: a redo after a crash starts over with
guests that serve, because their leases have ended, and deletes the snapshots
the dead run may have left.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from atoll.director.barrier import Guests, Outcome, hold_and_snapshot, thaw_all
from atoll.director.order import freezing_steps
from atoll.director.policy import HoldPolicy, Way
from atoll.director.proof import HeldGuest, prove_consistency
from atoll.director.snapshots import AskedSnapshots
from atoll.director.vmware_hold import SnapshotKeeper, VmwareHold
from atoll.director.vmware_verdict import VmwareVerdict
from atoll.director.ways import Ways
from atoll.guests.interface import GuestAgent
from atoll.model.consistency import ConsistencyProof
from atoll.model.errors import AtollError, HoldFailedError, VCenterUnreachableError
from atoll.model.inventory import Placement
from atoll.model.plan import Plan, PlannedVm
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.storage.interface import StorageEngine

_RELEASE_SECONDS = 300.0
"""For vCenter to remove the VMware snapshots and to put their seconds of changes into the disks."""

_LATE_STORAGE_SECONDS = 300.0
"""For the storage to say what became of its snapshots, once nobody is held for them any more."""

_AWAY_SECONDS = 300.0
"""For a vCenter that restarts to come back and say where the VMs are after the snapshot."""
_ASK_AGAIN_SECONDS = 1.0

PlacementReader = Callable[[Sequence[str]], Mapping[str, Placement]]
"""Instance UUIDs to where vCenter says that they are at the moment of the call."""


@dataclass(frozen=True, slots=True)
class Capture:
    """The snapshots by LUN group, and the proof for each VM of the plan, by instance UUID.

    `leftovers` says what could not be tidied, a sentence each.
    """

    snapshots: Mapping[str, GroupSnapshot]
    proofs: Mapping[str, ConsistencyProof]
    hold_seconds: float
    """From the first guest asked to freeze until the last one let go; guests were ready before."""
    leftovers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Means:
    """What a capture works with.

    `agents` are keyed by instance UUID. `vmware` takes VMware snapshots, when the
    policy allows it.
    """

    agents: Mapping[str, GuestAgent]
    engine: StorageEngine
    placement: PlacementReader
    vmware: SnapshotKeeper


def capture(plan: Plan, name: str, means: Means, policy: HoldPolicy, progress: Progress) -> Capture:
    """Capture the plan's LUN groups as snapshots called `name`.

    Raises the error of a guest that could not be held in any of the policy's
    ways, unless the policy accepts less; then no snapshot was taken and every
    guest was told to thaw. A hold that broke after it began still gives a
    point, marked with what was lost. HoldFailedError also when a VM is no longer
    what was planned, for example because another product took a VMware snapshot
    of it since.
    """
    director = _Director(plan, name, means, policy, progress)
    moves = 0
    tried = None
    for number in range(policy.holds):
        # Each hold has a name of its own, so a late word about one never touches the next.
        tried = director.hold(hold_name(plan.run, number), final=number == policy.holds - 1)
        if tried is None:
            continue
        moved = [vm.vm.name for vm in plan.vms if tried.moved(vm)]
        if not moved or moves == policy.moves:
            break
        moves += 1
        progress.note("", f"{', '.join(moved)} moved during the hold; holding again")
        for group in plan.groups:
            means.engine.delete_snapshot(group, name)
    assert tried is not None, "the final hold is never given up for another"
    progress.stage("", "proof")
    return Capture(
        snapshots=tried.snapshots,
        proofs={vm.vm.instance_uuid: director.proof(vm, tried) for vm in plan.vms},
        hold_seconds=tried.outcome.seconds,
        leftovers=tuple(each.leftover for each in tried.verdicts.values() if each.leftover),
    )


def hold_name(run: str, number: int) -> str:
    """What a run's hold is called to the agents; each redo has a name of its own."""
    return run if number == 0 else f"{run}-{number}"


@dataclass(frozen=True, slots=True)
class _Hold:
    """A hold with its snapshots taken, and where vCenter said that VMs were around it."""

    name: str
    outcome: Outcome
    snapshots: Mapping[str, GroupSnapshot]
    verdicts: Mapping[str, VmwareVerdict]
    before: Mapping[str, Placement]
    after: Mapping[str, Placement]

    def moved(self, vm: PlannedVm) -> bool:
        uuid = vm.vm.instance_uuid
        return self.before.get(uuid) != self.placed_after(uuid)

    def placed_after(self, uuid: str) -> Placement | None:
        """As vCenter said, but for a VMware snapshot of ours that is still there."""
        before, after = self.before.get(uuid), self.after.get(uuid)
        verdict = self.verdicts.get(uuid)
        if verdict is None or not verdict.leftover or before is None or after is None:
            return after
        return replace(after, disks=before.disks, has_snapshot=before.has_snapshot)


class _Director:
    """One capture: the holds it takes, and which way each VM goes."""

    def __init__(
        self, plan: Plan, name: str, means: Means, policy: HoldPolicy, progress: Progress
    ) -> None:
        self._plan = plan
        self._name = name
        self._means = means
        self._policy = policy
        self._progress = progress
        self._ways = Ways(plan, means.agents.keys(), policy)
        self._uuids = [vm.vm.instance_uuid for vm in plan.vms]

    def hold(self, name: str, *, final: bool) -> _Hold | None:
        """Hold once; None when a VM failed that has another way, and all were let go.

        In the `final` hold no VM is given another way.
        """
        self._progress.stage("", "prepare")
        guests = self._prepare(name)
        with self._vmware_hold(name) as vmware:
            try:
                snapped = [vm.vm for vm in self._ways.going(Way.VMWARE)]
                vmware.prepare(snapped)
                before = self._means.placement(self._uuids)
                _require_as_planned(self._plan, before)
                self._progress.stage("", "hold")
                held = vmware.hold(snapped, self._policy.vmware_seconds) if snapped else {}
                again = self._go_on_without(
                    {
                        uuid: each.failure or _not_quiesced(each.vm)
                        for uuid, each in held.items()
                        if each.failure or not (each.snapshot and each.snapshot.quiesced)
                    },
                    final=final,
                )
            except BaseException:
                thaw_all(guests, name)
                raise
            if again:
                thaw_all(guests, name)
                return None
            dispensable = self._dispensable(final=final)
            outcome = hold_and_snapshot(
                guests,
                name,
                self._means.engine,
                self._plan.groups,
                self._name,
                self._policy,
                dispensable,
                self._progress,
            )
            if outcome.asked is None:
                needed = {
                    uuid: error
                    for uuid, error in outcome.failures.items()
                    if uuid not in dispensable
                }
                self._go_on_without(needed, final=final)
                return None
            late = {vm.vm.instance_uuid for vm in self._plan.vms if not _in_time(vm, outcome)}
            verdicts = vmware.release(_RELEASE_SECONDS, late)
        try:
            snapshots = self._late_answers(outcome.asked)
            after = self._placement_after()
        except AtollError as error:
            for verdict in verdicts.values():
                if verdict.leftover:
                    error.add_note(verdict.leftover)
            raise
        return _Hold(name, outcome, snapshots, verdicts, before, after)

    def proof(self, vm: PlannedVm, hold: _Hold) -> ConsistencyProof:
        """What a VM's point may be called after this hold."""
        uuid = vm.vm.instance_uuid
        before = self._ways.failures(uuid)
        failure = hold.outcome.failures.get(uuid)
        way = self._ways.way(uuid)
        if failure is None and way is None and before:
            failure, before = before[-1], before[:-1]
        return prove_consistency(
            HeldGuest(
                planned=vm,
                run=hold.name,
                lease_seconds=self._policy.lease_seconds,
                in_time=_in_time(vm, hold.outcome),
                frozen=hold.outcome.frozen.get(uuid),
                release=hold.outcome.released.get(uuid),
                failure=failure,
                way=way,
                fell_back=tuple(str(each) for each in before),
                verdict=hold.verdicts.get(uuid),
            ),
            [hold.snapshots[group] for group in vm.groups],
            hold.before.get(uuid),
            hold.placed_after(uuid),
        )

    def _prepare(self, hold: str) -> Guests:
        """Let the agents flush and get ready while everything serves; those that could.

        Whatever takes a guest long belongs here: from the first freeze on, every
        guest waits for the slowest.
        """
        guests = self._guests()
        failures: dict[str, AtollError] = {}
        with ThreadPoolExecutor(max(1, len(guests.uuids)), thread_name_prefix="prepare") as pool:
            answers = {
                uuid: pool.submit(guests.agents[uuid].prepare, hold) for uuid in guests.uuids
            }
        for uuid, answer in answers.items():
            try:
                answer.result()
            except AtollError as error:
                failures[uuid] = error
        ready = guests.without(failures)
        try:
            # The next way begins in this very hold, if there is one.
            self._go_on_without(failures, final=False)
        except BaseException:
            thaw_all(ready, hold)
            raise
        return ready

    def _late_answers(self, asked: AskedSnapshots) -> Mapping[str, GroupSnapshot]:
        """All snapshots, waited for, should the storage be late: nobody is held for it any more."""
        if asked.silent:
            self._progress.note(
                "",
                f"nobody is held any more; waiting up to {_LATE_STORAGE_SECONDS:g} s for the "
                f"storage's snapshots of {', '.join(asked.silent)}",
            )
        return asked.results(_LATE_STORAGE_SECONDS)

    def _placement_after(self) -> Mapping[str, Placement]:
        """Where the VMs are now: asked for until vCenter answers, because nobody is held for it."""
        limit = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                return self._means.placement(self._uuids)
            except VCenterUnreachableError:
                if time.monotonic() + _ASK_AGAIN_SECONDS > limit:
                    raise
                time.sleep(_ASK_AGAIN_SECONDS)

    def _guests(self) -> Guests:
        vms = self._ways.going(Way.DIRECT)
        names = {vm.vm.instance_uuid: vm.vm.name for vm in vms}
        return Guests(self._means.agents, names, freezing_steps(vms, self._policy.orders))

    def _vmware_hold(self, hold: str) -> VmwareHold:
        return VmwareHold(self._means.vmware, hold, self._means.agents, progress=self._progress)

    def _go_on_without(self, failures: Mapping[str, AtollError], *, final: bool) -> bool:
        """Send those whose way failed another; whether one has one, so that all must hold again.

        Raises the failure of the first that has none, unless less is accepted.
        """
        again = False
        for uuid, error in failures.items():
            if self._ways.fail(uuid, error) and not final:
                again = True
                self._progress.note(
                    self._name_of(uuid), f"is held the {self._ways.way(uuid)} way: {error}"
                )
            elif not self._policy.accept_less:
                raise error
        return again

    def _name_of(self, uuid: str) -> str:
        return next(vm.vm.name for vm in self._plan.vms if vm.vm.instance_uuid == uuid)

    def _dispensable(self, *, final: bool) -> set[str]:
        """Who may fail without calling off the hold."""
        if not self._policy.accept_less:
            return set()
        return set(self._uuids) if final else self._ways.last


def _in_time(vm: PlannedVm, outcome: Outcome) -> bool:
    """Whether the snapshots of a VM's LUN groups were there before anybody was let go."""
    return outcome.taken.issuperset(vm.groups)


def _not_quiesced(vm: str) -> HoldFailedError:
    return HoldFailedError(
        f"VMware Tools did not quiesce VM {vm}, so its VMware snapshot is of no use; see whether "
        "Tools run in it."
    )


def _require_as_planned(plan: Plan, placements: Mapping[str, Placement]) -> None:
    """Refuse to hold a VM whose files or power changed since the plan was made."""
    for planned in plan.vms:
        vm = planned.vm
        place = placements.get(vm.instance_uuid)
        disks = tuple(sorted((disk.key, disk.datastore, disk.path) for disk in vm.disks))
        raw_luns = tuple(sorted((disk.key, disk.lun_uuid) for disk in vm.disks if disk.lun_uuid))
        if place is None:
            change = "is gone from vCenter, or vCenter has lost contact with its host"
        elif place.has_snapshot and not vm.has_snapshot:
            change = "has a VMware snapshot now"
        elif place.disks != disks or place.raw_luns != raw_luns:
            change = "has other disks now, or has them elsewhere"
        elif place.powered_on != vm.powered_on:
            change = "was switched on or off"
        else:
            continue
        raise HoldFailedError(f"VM {vm.name} {change}, unlike when the run was planned; run again.")
