"""What a hold by a quiesced VMware snapshot was worth, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from atoll.guests.account import GuestAccount, why_not_of_this_hold
from atoll.model.consistency import Consistency, Hold
from atoll.model.errors import AtollError
from atoll.model.inventory import VirtualMachine
from atoll.model.vmware import VmwareSnapshot


class Standing(Enum):
    """Whether a VMware snapshot was still there after the storage snapshot had been taken."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class AccountLook:
    """What one source said of a guest's last hold. `problem` is why that is of no use."""

    account: GuestAccount | None
    problem: str

    @property
    def good(self) -> bool:
        """Whether it is an account, and of the hold that was asked about."""
        return self.account is not None and not self.problem

    @property
    def pending(self) -> bool:
        """Whether the agent has yet to say how its hold ended."""
        return self.account is not None and self.account.ended_at is None


NEVER_LOOKED = AccountLook(None, "its agent was not asked before the hold")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the director learned of one VM around the storage snapshot.

    `looks` are those of `matched`, best source first. `asked_at` and `read_at`
    enclose the hold by the director's clock.
    """

    vm: VirtualMachine
    run: str
    snapshot: VmwareSnapshot | None
    failure: AtollError | None
    standing: Standing
    looks: Sequence[AccountLook]
    asked_at: float
    read_at: float
    leftover: str


@dataclass(frozen=True, slots=True)
class VmwareVerdict:
    """What may be claimed of a VM in the storage snapshot, provided that it did not move.

    `reasons` says what was lost; empty when all that was found in the guest was
    held. `hold` is the agent's account of this very hold, if there is one: it
    held applications alone, so it names no file systems. `stood_still`: the disks below
    it did while the storage took its snapshots, so they are of one instant.
    A disk that VMware snapshots leave out did not. `leftover` is empty, or what is
    left of the VMware snapshot.
    """

    instance_uuid: str
    vm: str
    consistency: Consistency
    reasons: tuple[str, ...]
    snapshot: VmwareSnapshot | None
    hold: Hold | None
    stood_still: bool
    leftover: str


def judge(evidence: Evidence) -> VmwareVerdict:
    """Judge one VM.

    The argument is causal: vCenter said that the snapshot was made before the
    storage was asked for its own, and it was still there afterwards, so the
    disks below it stood still between. They show the moment of the VMware snapshot,
    for which vCenter says whether the file systems were frozen and the agent
    whether its applications were held from freeze to thaw.
    """
    account = next((look.account for look in evidence.looks if look.good), None)
    consistency, reasons = _judge(evidence, account)
    return VmwareVerdict(
        instance_uuid=evidence.vm.instance_uuid,
        vm=evidence.vm.name,
        consistency=consistency,
        reasons=reasons,
        snapshot=evidence.snapshot,
        hold=_hold(evidence, account) if account is not None else None,
        stood_still=evidence.snapshot is not None
        and evidence.standing is Standing.YES
        and not _left_out(evidence.vm),
        leftover=evidence.leftover,
    )


def matched(before: AccountLook, after: AccountLook) -> AccountLook:
    """The later look, with the problem of not knowing whether it is of the hold in between."""
    if after.problem:
        return after
    if after.account is None or after.account == before.account:
        return AccountLook(None, "no agent in it has said anything of this hold")
    # A source that could not be read then says nothing about how many holds there were since.
    problem = before.problem or why_not_of_this_hold(before.account, after.account)
    if not problem and after.account.ended_at is None:
        problem = "its agent has not said how its hold ended"
    return AccountLook(after.account, problem)


def _judge(evidence: Evidence, account: GuestAccount | None) -> tuple[Consistency, tuple[str, ...]]:
    snapshot = evidence.snapshot
    if snapshot is None:
        return Consistency.CRASH, (str(evidence.failure or "the hold was called off"),)
    if evidence.standing is not Standing.YES:
        return Consistency.CRASH, (
            "its VMware snapshot was removed before the storage snapshot was taken"
            if evidence.standing is Standing.NO
            else "vCenter could not say whether its VMware snapshot was still there",
        )
    left_out = _left_out(evidence.vm)
    if left_out:
        # The others show the moment of the VMware snapshot, these that of the storage's, later.
        every = len(left_out) == len(evidence.vm.disks)
        return Consistency.CRASH if every else Consistency.NONE, (
            f"VMware snapshots leave out {', '.join(left_out)}, which the guest wrote to meanwhile",
        )
    if not snapshot.quiesced:
        return Consistency.CRASH, ("vCenter says that the guest was not quiesced",)
    if any(look.account and look.account.filesystems_thawed for look in evidence.looks):
        return Consistency.CRASH, ("VMware Tools did not thaw the guest, so its agent had to",)
    if account is None:
        problems = [look.problem for look in evidence.looks if look.problem]
        return Consistency.FILESYSTEM, tuple(problems[:1])
    if not account.held:
        return Consistency.FILESYSTEM, (account.reason or "the hold of applications was broken",)
    refused = tuple(
        f"{application.kind} {application.name} was not held: {application.detail}"
        for application in account.applications
        if not application.held
    )
    if refused or not account.applications:
        return Consistency.FILESYSTEM, refused
    return Consistency.APP, ()


def _left_out(vm: VirtualMachine) -> list[str]:
    """Labels of disks that went on being written to below a VMware snapshot."""
    return [disk.label for disk in vm.disks if disk.left_out_by_vmware]


def _hold(evidence: Evidence, account: GuestAccount) -> Hold:
    # The guest's hold lies between two moments of our clock, which is how its own clock is bounded.
    ended_at = account.ended_at if account.ended_at is not None else account.began_at
    fastest, slowest = account.began_at - evidence.asked_at, ended_at - evidence.read_at
    return Hold(
        run=evidence.run,
        began_at=account.began_at,
        frozen_at=account.held_at if account.held_at is not None else ended_at,
        thawed_at=ended_at,
        lease_seconds=account.lease_seconds,
        unbroken=account.held,
        reason=account.reason,
        applications=account.applications,
        filesystems=(),
        clock_offset_seconds=(fastest + slowest) / 2,
        clock_error_seconds=abs(fastest - slowest) / 2,
    )
