"""One tgtd for one LUN group: started on demand, kept to what the records say, stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.embedded.identity import Identity
from atoll.storage.drivers.embedded.process import TargetProcess, find_process
from atoll.storage.drivers.embedded.tgt_socket import (
    Mode,
    Operation,
    Refusal,
    Session,
    TargetView,
    TgtRefusedError,
    TgtSocket,
    shown_size,
)

Durability = Literal["cache", "disk"]

_PATIENCE_SECONDS = 20.0
_POLL_SECONDS = 0.005
_GONE = (Refusal.NO_TARGET, Refusal.NO_SESSION, Refusal.NO_CONNECTION)

_NO_WRITE_CACHE = "mode_page=8:0:18:0x10:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0"
"""Caching mode page (SBC-3, 6.4.5) with WCE clear: tgtd then syncs each write before it answers."""


@dataclass(frozen=True, slots=True)
class Export:
    """A LUN as it is to be served: LUN 1 of a target of its own."""

    target: str
    identity: Identity
    image: Path
    size_bytes: int
    initiators: tuple[str, ...]


class GroupDaemon:
    """The tgtd of one group. Callers hold the group's lock."""

    def __init__(self, run: Path, group: str, address: str, durability: Durability) -> None:
        self._group = group
        self._address = address
        self._durability = durability
        self._log = run / f"{group}.log"
        self._socket = TgtSocket(run / f"{group}.tgt")
        self._child: subprocess.Popen[bytes] | None = None

    def process(self) -> TargetProcess | None:
        """The process, or None when it does not run. The caller closes it."""
        return find_process(self._socket)

    def release(self) -> bool:
        """Let it run again if somebody died holding it still; whether that was needed."""
        process = self.process()
        if process is None:
            return False
        with process:
            if not process.partly_stopped():
                return False
            process.signal(signal.SIGCONT)
            return True

    def start(self, port: int) -> bool:
        """Start it unless it serves that port, and wait until it answers; whether it was started.

        StorageUnreachableError when it ends or cannot listen, as when the port is
        taken; the end of its log is then quoted. StorageConflictError when it
        serves another address: hosts may be using that one.
        """
        portal = f"{self._address}:{port}"
        if self._answers_soon():
            served = self._socket.portals()
            if portal in served:
                return False
            elsewhere = [each for each in served if each.endswith(f":{port}")]
            if elsewhere:
                raise StorageConflictError(
                    f"LUNs are served at {elsewhere[0]} and the settings say {portal}; correct "
                    "portal_address, or withdraw the LUNs before you move them."
                )
        self.stop()
        self._child = self._spawn(portal)
        if not self._answers_soon():
            ended = self._child.poll() is not None
            self._child.kill()
            self._child.wait()
            late = f"did not answer within {_PATIENCE_SECONDS:g} s"
            raise self._not_started(portal, "ended at once" if ended else late)
        if portal not in self._socket.portals():
            # It does not mind, and would listen on every address instead.
            self.stop()
            raise self._not_started(portal, "cannot listen")
        return True

    def apply(self, exports: Iterable[Export]) -> list[str]:
        """Serve exactly these; returns the targets that had to be touched."""
        wanted = {export.target: export for export in exports}
        touched = []
        present = {view.name: view for view in self._socket.targets()}
        for name, view in present.items():
            if name not in wanted:
                self._delete(view)
                touched.append(name)
        for name, export in wanted.items():
            if self._converge(present.get(name), export):
                touched.append(name)
        return touched

    def stop(self) -> bool:
        """End it and every session; whether it ran. It restarts on the same port."""
        process = self.process()
        if process is None:
            return False
        with process:
            process.signal(signal.SIGCONT)
            try:
                for view in self._socket.targets():
                    self._delete(view)
                self._socket.call(Operation.DELETE, Mode.SYSTEM)
            except StorageUnreachableError:
                # It no longer listens to reason. What it acknowledged is in the page cache or on
                # disk, not in the process, so nothing is lost by killing it.
                process.signal(signal.SIGKILL)
            if not process.ended(_PATIENCE_SECONDS):
                process.signal(signal.SIGKILL)
                if not process.ended(_PATIENCE_SECONDS):
                    raise StorageUnreachableError(
                        f"The iSCSI daemon of LUN group {self._group} (process {process.pid}) "
                        "cannot be ended; it waits for the pool's disk, see to that first."
                    )
        if self._child is not None:
            self._child.wait()
            self._child = None
        self._socket.path.unlink(missing_ok=True)
        return True

    def _answers_soon(self) -> bool:
        """Whether it runs and takes requests, which a new one does after a moment."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            process = self.process()
            if process is None and (self._child is None or self._child.poll() is not None):
                return False
            if process is not None:
                with process, suppress(StorageUnreachableError):
                    self._socket.portals()
                    return True
            time.sleep(_POLL_SECONDS)
        return False

    def _spawn(self, portal: str) -> "subprocess.Popen[bytes]":
        # Descriptor 0 must refuse both reads and writes: tgtd names it for an instant while it
        # opens an image again, and a write that fails is better than one that vanishes.
        with Path("/dev/null").open("rb") as nothing, self._log.open("wb") as output:
            return subprocess.Popen(
                ["tgtd", "-f", "-C", "0", "--iscsi", f"portal={portal}"],
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "TGT_IPC_SOCKET": str(self._socket.base),
                },
                stdin=nothing,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )

    def _not_started(self, portal: str, what: str) -> StorageUnreachableError:
        said = self._log.read_text(errors="replace").strip().splitlines()
        return StorageUnreachableError(
            f"The iSCSI daemon of LUN group {self._group} {what} on {portal} "
            f"({said[-1] if said else 'it said nothing'}); free the port if another program uses "
            f"it, or see {self._log}."
        )

    def _converge(self, view: TargetView | None, export: Export) -> bool:
        if view is not None and (
            not view.initiators
            or view.path != str(export.image)
            or view.id != export.identity.target_id
        ):
            # Initiators are let in last, so a target without any was left half-made.
            self._delete(view)
            view = None
        if view is None:
            self._create(export)
            return True
        touched = self._admit(view, export.initiators)
        if not view.ready or not view.online or view.size != shown_size(export.size_bytes):
            self._reopen(view, export)
            touched = True
        return touched

    def _create(self, export: Export) -> None:
        identity = export.identity
        self._call(Operation.NEW, Mode.TARGET, identity, f"targetname={export.target}")
        self._call(
            Operation.NEW, Mode.LOGICAL_UNIT, identity, f"path={export.image},bstype=rdwr", lun=1
        )
        for setting in (
            f"scsi_id={identity.naa},scsi_sn={identity.serial},vendor_id=ATOLL,product_id=LUN",
            "thin_provisioning=1",
            *((_NO_WRITE_CACHE,) if self._durability == "disk" else ()),
        ):
            self._call(Operation.UPDATE, Mode.LOGICAL_UNIT, identity, setting, lun=1)
        for initiator in export.initiators:
            self._call(Operation.BIND, Mode.TARGET, identity, f"initiator-name={initiator}")

    def _admit(self, view: TargetView, initiators: tuple[str, ...]) -> bool:
        come = [name for name in initiators if name not in view.initiators]
        gone = [name for name in view.initiators if name not in initiators]
        for name in come:
            self._socket.call(
                Operation.BIND, Mode.TARGET, target=view.id, parameters=f"initiator-name={name}"
            )
        for name in gone:
            self._socket.call(
                Operation.UNBIND, Mode.TARGET, target=view.id, parameters=f"initiator-name={name}"
            )
        if gone:
            current = self._view(view.id)
            self._disconnect(
                view.id, [one for one in current.sessions if one.initiator not in initiators]
            )
        return bool(come or gone)

    def _reopen(self, view: TargetView, export: Export) -> None:
        """Make tgtd see the image's new size.

        tgtd closes and opens the image, and its workers must not be using it. So
        the target takes no commands until those it has are done. Commands that
        arrive meanwhile are never answered; the sessions are dropped in the end,
        upon which initiators log in again and repeat them.
        """
        self._set_state(view.id, "offline")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._socket.commands_in_flight(view.id):
            if time.monotonic() > deadline:
                self._set_state(view.id, "ready")
                self._disconnect(view.id, self._view(view.id).sessions)
                raise StorageUnreachableError(
                    f"The commands under way on {view.name} did not end, so the LUN still shows "
                    "its old size; repeat the call when the pool's disks are less busy."
                )
            time.sleep(_POLL_SECONDS)
        for step in ("online=0", f"path={export.image}", "online=1"):
            self._socket.call(
                Operation.UPDATE, Mode.LOGICAL_UNIT, target=view.id, lun=1, parameters=step
            )
        self._set_state(view.id, "ready")
        self._disconnect(view.id, self._view(view.id).sessions)

    def _set_state(self, target: int, state: str) -> None:
        self._socket.call(Operation.UPDATE, Mode.TARGET, target=target, parameters=f"state={state}")

    def _disconnect(self, target: int, sessions: Iterable[Session]) -> None:
        for session in sessions:
            for connection in session.connections:
                try:
                    self._socket.call(
                        Operation.DELETE, Mode.CONNECTION, target=target, session=session.id,
                        connection=connection,
                    )  # fmt: skip
                except TgtRefusedError as error:
                    if error.reason not in _GONE:
                        raise

    def _delete(self, view: TargetView) -> None:
        """Remove a target; a forced delete is refused as long as commands are under way."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self._socket.call(Operation.DELETE, Mode.TARGET, target=view.id, force=True)
            except TgtRefusedError as error:
                if error.reason in _GONE:
                    return
                if error.reason not in (Refusal.TARGET_ACTIVE, Refusal.LUN_ACTIVE):
                    raise
                if time.monotonic() > deadline:
                    raise
            else:
                return
            time.sleep(_POLL_SECONDS)

    def _view(self, target: int) -> TargetView:
        for view in self._socket.targets():
            if view.id == target:
                return view
        raise StorageUnreachableError(
            f"Target {target} vanished from the iSCSI daemon of LUN group {self._group}; "
            "reconcile serves it again."
        )

    def _call(
        self, operation: Operation, mode: Mode, identity: Identity, parameters: str,
        lun: int | None = None,
    ) -> None:  # fmt: skip
        if lun is None:
            self._socket.call(operation, mode, target=identity.target_id, parameters=parameters)
        else:
            self._socket.call(
                operation, mode, target=identity.target_id, lun=lun, parameters=parameters
            )
