"""The other way to hold VMs: quiesced VMware snapshots, alive while the storage takes its own.

From the moment that vCenter has made such a snapshot, the VM's disks
stand still, be they base disks or the deltas of snapshots it had before, and the
guest writes to new delta disks. The storage snapshot is taken then, and the VMware
snapshot removed at once: readers take the disks below it, which were planned.
No network to the guest is needed.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from atoll.director.vmware_verdict import (
    NEVER_LOOKED,
    AccountLook,
    Evidence,
    Standing,
    VmwareVerdict,
    judge,
    matched,
)
from atoll.guests.account import read_account
from atoll.model.errors import (
    AtollError,
    HoldFailedError,
    UnprotectableVmError,
    VCenterUnreachableError,
)
from atoll.model.inventory import VirtualMachine
from atoll.model.progress import Progress, Silent
from atoll.model.vmware import LeftoverSnapshot, VmwareSnapshot

TEXT = "Taken by Atoll for the seconds of a storage snapshot."

_NAME_CHARACTERS = 73
_ACCOUNT_SECONDS = 10.0
_ACCOUNT_POLL_SECONDS = 0.5
_LAST_RELEASE_SECONDS = 120.0
_STANDING_SECONDS = 60.0
_ASK_AGAIN_SECONDS = 1.0
# What takes longer is told, so that nobody wonders what a run waits for.
_TELL_SECONDS = 5.0
# vCenter's own work for each host is a queue; more at once only fills it.
_WORKERS = 8


class SnapshotKeeper(Protocol):
    """What vCenter does with VMware snapshots. Thread-safe; every call raises AtollError.

    A snapshot is named by a VM's instance UUID and a name that begins with
    `atoll-`; only this site's own are ever seen or touched.
    """

    def quiesced_snapshot(
        self, instance_uuid: str, name: str, text: str, deadline_seconds: float
    ) -> VmwareSnapshot:
        """Take one. UnprotectableVmError: nothing was begun. After any other error it may be
        there or still come, which `remove` takes care of."""
        ...

    def present(self, instance_uuid: str, name: str) -> tuple[str, ...]:
        """Morefs of those of that name that exist now."""
        ...

    def remove(self, instance_uuid: str, name: str, deadline_seconds: float) -> None:
        """Remove and verify that no delta is left, waiting for one that is still being made.

        Idempotent: absent is success. An error says what is left.
        """
        ...

    def leftovers(self) -> tuple[LeftoverSnapshot, ...]:
        """All of this site's that exist now."""
        ...

    def account(self, instance_uuid: str) -> str | None:
        """What the guest's agent left in guestinfo, not to be trusted; None when nothing."""
        ...


class AccountSource(Protocol):
    """An agent that can be reached over the network and tells the same as through guestinfo."""

    def vmware_account(self) -> str | None:
        """Its account of the last hold that VMware Tools asked for, None when there was none.

        Raises AgentUnavailableError when it does not answer in time.
        """
        ...


@dataclass(frozen=True, slots=True)
class VmwareHeld:
    """A VM after `hold`: its snapshot, or why it has none."""

    instance_uuid: str
    vm: str
    snapshot: VmwareSnapshot | None
    failure: AtollError | None


@dataclass
class _Try:
    """One VM's way through the hold. `begun`: a snapshot may exist or come."""

    vm: VirtualMachine
    looks: Sequence[AccountLook]
    asked_at: float = 0.0
    begun: bool = False
    called_off: bool = False
    snapshot: VmwareSnapshot | None = None
    failure: AtollError | None = None
    standing: Standing = Standing.UNKNOWN
    leftover: str = ""


class VmwareHold:
    """The VMware snapshots of one run's hold: `prepare`, then `hold` once, then `release` once.

    As a context manager it releases at the end whatever happened in between.
    """

    def __init__(
        self,
        vcenter: SnapshotKeeper,
        run: str,
        channels: Mapping[str, AccountSource],
        account_seconds: float = _ACCOUNT_SECONDS,
        progress: Progress | None = None,
    ) -> None:
        """`run` names the hold; `channels` are the agents that can be reached, by instance UUID.

        `account_seconds` is how long `release` waits for a guest's account. `progress` is told
        what takes long.
        """
        self._vcenter = vcenter
        self._run = run
        self._name = snapshot_name(run)
        self._channels = channels
        self._account_seconds = account_seconds
        self._progress = progress or Silent()
        self._looks: dict[str, Sequence[AccountLook]] = {}
        self._tries: dict[str, _Try] = {}
        self._jobs: dict[str, Future[VmwareSnapshot]] = {}

    def prepare(self, vms: Sequence[VirtualMachine]) -> None:
        """Read what the guests' agents say now, while everything serves. Does not raise.

        What an agent says later is measured by it. An agent that does not
        answer takes its time here and not while others are held.
        """
        with _pool(len(vms), "vmware-prepare") as pool:
            uuids = [vm.instance_uuid for vm in vms]
            self._looks = dict(zip(uuids, pool.map(self._look, uuids), strict=True))

    def hold(
        self, vms: Sequence[VirtualMachine], deadline_seconds: float
    ) -> Mapping[str, VmwareHeld]:
        """Take a quiesced snapshot of each VM, by instance UUID; returns within the deadline.

        A VM that is not done by then has failed, and no other waits for it.
        Whether a snapshot is quiesced stands in it: nothing here decides
        whether that is good enough. `prepare` comes first.
        """
        limit = time.monotonic() + deadline_seconds
        pool = _pool(len(vms), "vmware-hold")
        try:
            for vm in vms:
                uuid = vm.instance_uuid
                self._tries[uuid] = attempt = _Try(vm, self._looks.get(uuid, ()))
                self._jobs[uuid] = pool.submit(self._take, attempt, limit)
            for uuid, attempt in self._tries.items():
                self._await(attempt, self._jobs[uuid], limit, deadline_seconds)
        finally:
            # Its threads go on for those that are late; `release` sees to them.
            pool.shutdown(wait=False)
        return {
            uuid: VmwareHeld(uuid, attempt.vm.name, attempt.snapshot, attempt.failure)
            for uuid, attempt in self._tries.items()
        }

    def release(
        self, deadline_seconds: float, late: Collection[str] = ()
    ) -> Mapping[str, VmwareVerdict]:
        """Remove every snapshot that was begun, and say what each VM's hold was worth.

        To be called when every guest was let go. `late` are the instance UUIDs of
        VMs whose storage snapshot was not there by then: it may still come, and
        their VMware snapshots prove nothing about it. A snapshot that cannot be
        removed is named in its verdict's `leftover` and cleared by `clear_leftovers` at the next start.
        """
        limit = time.monotonic() + deadline_seconds
        tries, self._tries = self._tries, {}
        jobs, self._jobs = self._jobs, {}
        for uuid, attempt in tries.items():
            attempt.called_off = True
            if uuid in jobs:
                jobs[uuid].cancel()
        # Those that are late come last, because they may have to be waited for.
        in_order = sorted(tries.items(), key=lambda each: each[1].snapshot is None)
        with _pool(len(tries), "vmware-release") as pool:
            done = {
                pool.submit(
                    self._let_go, attempt, jobs.get(uuid), limit, uuid in late
                ): attempt.vm.name
                for uuid, attempt in in_order
            }
            for slow in wait(done, _TELL_SECONDS).not_done:
                self._progress.note(
                    done[slow],
                    f"nobody is held any more; waiting up to {deadline_seconds:g} s for vCenter to "
                    f"remove VMware snapshot {self._name}",
                )
        for each in done:
            each.result()
        # Only now that no VM waits for it any more.
        with _pool(len(tries), "vmware-account") as pool:
            verdicts = pool.map(self._judge, tries.values())
        return dict(zip(tries, verdicts, strict=True))

    def __enter__(self) -> "VmwareHold":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release what was not released; of its verdicts the error is told what is left."""
        for verdict in self.release(_LAST_RELEASE_SECONDS).values():
            if verdict.leftover and error is not None:
                error.add_note(verdict.leftover)

    def _take(self, attempt: _Try, limit: float) -> VmwareSnapshot:
        left = limit - time.monotonic()
        if left <= 0 or attempt.called_off:
            raise HoldFailedError(
                f"There was no time left to take a VMware snapshot of VM {attempt.vm.name}; "
                "allow more, or hold fewer VMs at once."
            )
        attempt.asked_at = time.time()
        attempt.begun = True
        try:
            return self._vcenter.quiesced_snapshot(attempt.vm.instance_uuid, self._name, TEXT, left)
        except UnprotectableVmError:
            attempt.begun = False
            raise

    def _await(
        self, attempt: _Try, job: "Future[VmwareSnapshot]", limit: float, seconds: float
    ) -> None:
        """Note the snapshot or the failure. One that comes after the limit is of no use any more."""
        try:
            attempt.snapshot = job.result(max(0.0, limit - time.monotonic()))
        except AtollError as error:
            attempt.failure = error
        except FutureTimeoutError:
            attempt.failure = HoldFailedError(
                f"vCenter did not answer within {seconds:g} s when asked for a VMware snapshot "
                f"of VM {attempt.vm.name}; see whether vCenter and its host are well."
            )

    def _let_go(
        self, attempt: _Try, job: "Future[VmwareSnapshot] | None", limit: float, late: bool
    ) -> None:
        if not attempt.begun:
            return
        try:
            if late:
                attempt.standing = Standing.NO
            elif attempt.snapshot is not None:
                attempt.standing = self._standing(attempt.snapshot, limit)
            if job is not None:
                # What it still asks vCenter for must be asked for before it is removed.
                wait([job], max(0.0, limit - time.monotonic()))
        finally:
            self._remove(attempt, limit)

    def _remove(self, attempt: _Try, limit: float) -> None:
        seconds = max(1.0, limit - time.monotonic())
        try:
            self._vcenter.remove(attempt.vm.instance_uuid, self._name, seconds)
        except AtollError as error:
            attempt.leftover = str(error)

    def _judge(self, attempt: _Try) -> VmwareVerdict:
        worth_asking = attempt.snapshot is not None and attempt.snapshot.quiesced
        return judge(
            Evidence(
                vm=attempt.vm,
                run=self._run,
                snapshot=attempt.snapshot,
                failure=attempt.failure,
                standing=attempt.standing,
                looks=self._look_again(attempt) if worth_asking else (),
                asked_at=attempt.asked_at,
                read_at=time.time(),
                leftover=attempt.leftover,
            )
        )

    def _standing(self, snapshot: VmwareSnapshot, limit: float) -> Standing:
        """Asked again when vCenter is away: that it still stands later proves the same."""
        limit = min(limit, time.monotonic() + _STANDING_SECONDS)
        while True:
            try:
                present = self._vcenter.present(snapshot.instance_uuid, snapshot.name)
            except VCenterUnreachableError:
                if time.monotonic() + _ASK_AGAIN_SECONDS > limit:
                    return Standing.UNKNOWN
                time.sleep(_ASK_AGAIN_SECONDS)
            except AtollError:
                return Standing.UNKNOWN
            else:
                return Standing.YES if snapshot.moref in present else Standing.NO

    def _look(self, uuid: str) -> Sequence[AccountLook]:
        """What each source says now; one that says nothing readable says why."""
        readers: list[Callable[[], str | None]] = [lambda: self._vcenter.account(uuid)]
        if uuid in self._channels:
            readers.insert(0, self._channels[uuid].vmware_account)
        return [_read(reader) for reader in readers]

    def _look_again(self, attempt: _Try) -> Sequence[AccountLook]:
        """What each source says of this very hold, or why that is not known.

        VMware Tools thaws and runs its scripts beside vCenter's task, so an
        agent that holds may end its account a little later than the snapshot.
        """
        limit = time.monotonic() + self._account_seconds
        while True:
            now = self._look(attempt.vm.instance_uuid)
            before = attempt.looks or [NEVER_LOOKED] * len(now)
            looks = [matched(old, new) for old, new in zip(before, now, strict=True)]
            settled = any(look.good for look in looks) or not any(look.pending for look in looks)
            if settled or time.monotonic() > limit:
                return looks
            time.sleep(_ACCOUNT_POLL_SECONDS)


def snapshot_name(run: str) -> str:
    """What a run's VMware snapshots are called; vSphere takes at most 80 characters."""
    return f"atoll-{run[:_NAME_CHARACTERS]}"


def clear_leftovers(
    vcenter: SnapshotKeeper, deadline_seconds: float, alive: Callable[[], Collection[str]]
) -> Mapping[LeftoverSnapshot, AtollError | None]:
    """Remove what killed runs left; None for each that is gone.

    `alive` names the runs that are at work now, whose snapshots are theirs.
    """
    # Asked before and after: a run is recorded before it takes a snapshot, and longer than it has one.
    runs = set(alive())
    found = vcenter.leftovers()
    runs |= set(alive())
    # A hold that is redone has its number behind the run's name.
    own = {f"{snapshot_name(run)}-" for run in runs}
    leftovers = [each for each in found if not f"{each.name}-".startswith(tuple(own))]
    with _pool(len(leftovers), "vmware-clear") as pool:
        jobs = {
            leftover: pool.submit(
                vcenter.remove, leftover.instance_uuid, leftover.name, deadline_seconds
            )
            for leftover in leftovers
        }
    cleared: dict[LeftoverSnapshot, AtollError | None] = {}
    for leftover, job in jobs.items():
        error = job.exception()
        if error is not None and not isinstance(error, AtollError):
            raise error
        cleared[leftover] = error
    return cleared


def _read(reader: Callable[[], str | None]) -> AccountLook:
    try:
        text = reader()
        return AccountLook(None if text is None else read_account(text), "")
    except AtollError as error:
        return AccountLook(None, str(error))


def _pool(tasks: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, min(_WORKERS, tasks)), thread_name_prefix=name)
