"""Holds applications from VMware Tools' freeze to its thaw, and thaws in its place if it never does.

VMware Tools runs scripts with `freeze`, freezes the file systems itself, has
the host make the snapshot, thaws, and runs the scripts with `thaw`; with
`freezeFail` when it could not freeze. A thaw that the host never sends leaves
the guest frozen (open-vm-tools issue 27): applications are let go when the
lease ends, and file systems when the dead man's time is over.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from atoll_agent import freezing
from atoll_agent.clock import Deadline
from atoll_agent.errors import AgentError
from atoll_agent.hold import Held, Released
from atoll_agent.keeper import Keeper
from atoll_agent.mounts import Mount
from atoll_agent.protocol import FreezeRequest
from atoll_agent.syncing import sync_filesystem
from atoll_agent.vmware.account import Account
from atoll_agent.vmware.ledger import Ledger, UnderWay, boot_id
from atoll_agent.vmware.times import VmwareTimes

RESTARTED = "the agent was started again during the hold"
_SNAPSHOT_FAILED = "VMware Tools could not quiesce the guest"


@dataclass
class _Current:
    """The hold under way: what came of it so far, and what the dead man needs.

    `descriptors` are the mount points, opened before anything is frozen.
    """

    under_way: UnderWay
    held: Held | None = None
    failure: str = ""
    descriptors: list[int] = field(default_factory=list)
    dead_man: threading.Timer | None = None


class VmwareHolding:
    """One hold at a time, asked for by VMware Tools. Thread-safe.

    `keeper` holds applications alone: the file systems are VMware Tools'.
    `find_mounts` gives all that it may freeze, in the order in which to freeze.
    """

    def __init__(
        self,
        keeper: Keeper,
        find_mounts: Callable[[], Sequence[Mount]],
        times: VmwareTimes,
        ledger: Ledger,
        publish: Callable[[str], None],
        on_dead_man: Callable[[], None] = lambda: None,
    ) -> None:
        self._keeper = keeper
        self._find_mounts = find_mounts
        self._times = times
        self._ledger = ledger
        self._publish = publish
        self._on_dead_man = on_dead_man
        self._lock = threading.Lock()
        self._current: _Current | None = None

    def freeze(self) -> str:
        """Flush, then hold applications; returns the account so far, as does a hold that failed.

        Returns at the latest after the times for both, with all held or nothing.
        """
        with self._lock:
            if self._current is not None:
                self._end("VMware Tools began another freeze", False)
            limit = Deadline(self._times.freeze_seconds)
            under_way = self._ledger.begin(time.time(), self._times.dead_man_seconds)
            current = self._current = _Current(under_way)
            # While files can still be written: vCenter learns that an agent takes part.
            account = self._account(current, "the hold has not ended", None)
            self._ledger.note(account.text())
            self._publish(account.text())
            mounts = self._find_mounts()
            self._open_mounts(current, mounts)
            self._arm_dead_man(current, self._times.dead_man_seconds)
            _flush(mounts)
            try:
                with suppress(AgentError):
                    # What it does not get done the freeze does, in its own time.
                    self._keeper.prepare(_run(under_way), self._times.prepare_seconds)
                current.held = self._keeper.freeze(
                    FreezeRequest(
                        run=_run(under_way),
                        lease_seconds=self._times.lease_seconds,
                        budget_seconds=self._times.budget_seconds,
                    )
                )
            except AgentError as error:
                current.failure = str(error)
            if limit.passed and not current.failure:
                # VMware Tools may freeze file systems by now, and so before this was held.
                self._keeper.thaw(_run(under_way))
                current.failure = f"holding took more than {self._times.freeze_seconds:g} s"
            return self._account(current, current.failure or "the hold has not ended", None).text()

    def thaw(self, failed: bool) -> str | None:
        """Let go, and tell. None when nothing is under way, which leaves the last account as it is.

        `failed`: VMware Tools says that it could not freeze.
        """
        with self._lock:
            under_way = self._ledger.under_way()
            if self._current is None and under_way is not None:
                # Begun by an agent that is gone, and its sessions with it.
                self._current = _Current(under_way, failure=RESTARTED)
            if self._current is None:
                return None
            return self._end(_SNAPSHOT_FAILED if failed else "", False)

    def resume(self) -> bool:
        """Take over the dead man's duty for a hold that an agent before this one left under way.

        Returns whether there is one; then file systems may rightly be frozen now.
        """
        with self._lock:
            under_way = self._ledger.under_way()
            if under_way is None or under_way.dead_man_remaining == 0:
                return False
            self._current = _Current(under_way, failure=RESTARTED)
            self._open_mounts(self._current, self._find_mounts())
            self._arm_dead_man(self._current, under_way.dead_man_remaining)
            return True

    @property
    def under_way(self) -> bool:
        """Whether VMware Tools may have frozen file systems, so that nothing should be written."""
        return self._current is not None

    def account(self) -> str | None:
        """The last account, whoever gave it; None when there is none."""
        return self._ledger.account()

    def stop(self) -> None:
        """Let go because the process ends.

        The hold stays noted as under way: the next agent must not take file
        systems that VMware Tools froze for leftovers.
        """
        with self._lock:
            if self._current is not None:
                self._drop(self._current)
                self._current = None

    def _end(self, reason: str, filesystems_thawed: bool) -> str:
        current, self._current = self._current, None
        assert current is not None
        released = self._drop(current)
        reason = reason or current.failure or ("" if released.held else released.reason)
        text = self._account(current, reason, released.thawed_at, filesystems_thawed).text()
        self._ledger.end(text)
        self._publish(text)
        return text

    def _drop(self, current: _Current) -> Released:
        if current.dead_man is not None:
            current.dead_man.cancel()
        for descriptor in current.descriptors:
            os.close(descriptor)
        return self._keeper.thaw(_run(current.under_way))

    def _account(
        self,
        current: _Current,
        reason: str,
        ended_at: float | None,
        filesystems_thawed: bool = False,
    ) -> Account:
        held = current.held
        return Account(
            boot=boot_id(),
            number=current.under_way.number,
            held=held is not None and ended_at is not None and not reason,
            reason=reason,
            began_at=held.began_at if held else current.under_way.began_at,
            held_at=held.frozen_at if held else None,
            ended_at=ended_at,
            lease_seconds=self._times.lease_seconds,
            filesystems_thawed=filesystems_thawed,
            applications=held.applications if held else (),
        )

    def _open_mounts(self, current: _Current, mounts: Sequence[Mount]) -> None:
        for mount in mounts:
            # Gone since it was listed: there is nothing to flush or to thaw.
            with suppress(OSError):
                current.descriptors.append(
                    os.open(mount.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                )

    def _arm_dead_man(self, current: _Current, seconds: float) -> None:
        current.dead_man = threading.Timer(seconds, self._dead_man, (current,))
        current.dead_man.daemon = True
        current.dead_man.start()

    def _dead_man(self, current: _Current) -> None:
        with self._lock:
            if self._current is not current:
                return
            thawed = [not freezing.thaw(each) for each in reversed(current.descriptors)]
            self._end("VMware Tools never asked for the thaw", any(thawed))
        self._on_dead_man()


def _flush(mounts: Sequence[Mount]) -> None:
    """Flush file systems, so that the freeze has little left to wait for."""
    for mount in mounts:
        with suppress(OSError):
            sync_filesystem(mount.mountpoint)


def _run(under_way: UnderWay) -> str:
    return f"vmware-{under_way.number}"
