"""An HttpNfcLease of an import: waited for, kept alive, completed or aborted.

While a lease is held its VM is there and half made. `HttpNfcLeaseAbort` takes the VM away, and so
does vCenter by itself when nobody has reported progress for the lease's time-out: that is what
clears away after a process that was killed. Source: vSphere Web Services API, HttpNfcLease.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from atoll.model.errors import AtollError, VCenterOperationError, VCenterUnreachableError
from atoll.vsphere.collector import read_objects
from atoll.vsphere.folders import bound
from atoll.vsphere.session import Session

_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.1, 2.0
_LONGEST_SILENCE_SECONDS = 20.0
_SIGNS_IN_A_TIMEOUT = 4
_LAST_CALL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DeviceUrl:
    """Where a disk is to be sent. `device` is what a lease calls it: `ParaVirtualSCSIController0:1`."""

    device: str
    url: str
    thumbprint: str


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """What a ready lease says: its VM, where disks go, and how long it lives unless kept."""

    vm: str
    urls: tuple[DeviceUrl, ...]
    timeout_seconds: float


class Lease:
    """A lease that ImportVApp gave. `what` completes "vCenter could not …"."""

    def __init__(self, session: Session, moref: str, what: str) -> None:
        self._session = session
        self._moref = moref
        self._what = what

    def wait_ready(self, deadline_seconds: float) -> LeaseInfo:
        """Wait while vCenter makes the VM; its own fault when it cannot. VCenterOperationError."""
        deadline = time.monotonic() + deadline_seconds
        pause = _FIRST_LOOK_SECONDS
        while True:
            state, error = self._state()
            if state == "ready":
                return self._session.call(self._what, self._read_info)
            if state != "initializing":
                raise self._failed(state, error)
            if time.monotonic() > deadline:
                raise VCenterOperationError(
                    f"vCenter did not {self._what} within {deadline_seconds:g} s: its lease is still "
                    "being made ready; look at the task in vCenter before trying again."
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)

    @contextmanager
    def kept(self, info: LeaseInfo, percent: Callable[[], int]) -> Iterator[Callable[[], None]]:
        """Report progress from a thread while the block lasts.

        Gives a function that raises what ended the lease, if it has ended: whoever sends calls
        it, so that nothing is sent for nothing.
        """
        ended: list[AtollError] = []
        over = threading.Event()
        silence = min(info.timeout_seconds / _SIGNS_IN_A_TIMEOUT, _LONGEST_SILENCE_SECONDS)

        def report() -> None:
            while not over.wait(silence):
                try:
                    self._call(lambda lease: lease.HttpNfcLeaseProgress(percent()))
                except VCenterUnreachableError:
                    continue  # the lease lives for a while; the next sign may come through
                except AtollError as error:
                    ended.append(error)
                    return

        def check() -> None:
            if ended:
                raise ended[0]

        thread = threading.Thread(target=report, name="nfc lease", daemon=True)
        thread.start()
        try:
            yield check
        finally:
            over.set()
            # A call to a vCenter that is gone may last; it does no harm beside what comes now.
            thread.join(_LAST_CALL_SECONDS)

    def complete(self) -> None:
        """Let the VM be whole. A lost answer is looked after: done is done."""
        try:
            self._call(lambda lease: lease.HttpNfcLeaseComplete())
        except VCenterUnreachableError:
            if self._state()[0] != "done":
                raise

    def abort(self, reason: str) -> None:
        """Let vCenter take the VM away."""
        fault = vmodl.fault.SystemError(msg=reason, reason=reason)
        self._call(lambda lease: lease.HttpNfcLeaseAbort(fault))

    def error(self) -> str:
        """What vCenter says ended the lease, empty while it has not ended badly."""
        state, error = self._state()
        return str(getattr(error, "msg", "") or type(error).__name__) if state == "error" else ""

    def _call(self, work: Callable[[Any], None]) -> None:
        self._session.call(
            self._what, lambda content: work(bound(content, vim.HttpNfcLease, self._moref))
        )

    def _state(self) -> tuple[str, Any]:
        def read(content: Any) -> tuple[str, Any]:
            rows = read_objects(content, vim.HttpNfcLease, [self._moref], ("state", "error"), 1)
            return str(rows[0].get("state", "")), rows[0].get("error")

        return self._session.call(self._what, read)

    def _read_info(self, content: Any) -> LeaseInfo:
        (row,) = read_objects(content, vim.HttpNfcLease, [self._moref], ("info",), 1)
        info = row.get("info")
        return LeaseInfo(
            vm=str(info.entity._moId),
            urls=tuple(
                DeviceUrl(
                    # /NAME/ParaVirtualSCSIController0:1, and a name may have a slash.
                    device=str(each.importKey or each.key).rpartition("/")[2],
                    url=str(each.url),
                    thumbprint=str(each.sslThumbprint or ""),
                )
                for each in info.deviceUrl
                if each.disk is not False  # others are files such as NVRAM, which ESX makes anew
            ),
            timeout_seconds=float(info.leaseTimeout or 300),
        )

    def _failed(self, state: str, error: Any) -> VCenterOperationError:
        said = str(getattr(error, "msg", "") or (type(error).__name__ if error else "no reason"))
        return VCenterOperationError(
            f"vCenter could not {self._what}: {said.rstrip('.')} (its lease is {state})."
        )
