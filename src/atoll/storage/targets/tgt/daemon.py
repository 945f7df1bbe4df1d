"""One tgtd for one LUN group: started on demand, kept to what is wanted, stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.backend import Export
from atoll.storage.identity import target_id
from atoll.storage.targets.tgt.accounts import Accounts, check
from atoll.storage.targets.tgt.leftovers import dismiss_dead_callers
from atoll.storage.targets.tgt.lull import WORKERS, NoLullError, lull
from atoll.storage.targets.tgt.process import TargetProcess, find_process
from atoll.storage.targets.tgt.tgt_socket import (
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
class BackingStore:
    """Where a volume's bytes are, in tgt's words: its `bstype`, path and `bsopts`.

    `parameters` of the logical unit, as `key=value`, come after all others.
    """

    kind: str
    path: str
    options: str = ""
    parameters: tuple[str, ...] = ()


class GroupDaemon:
    """The tgtd of one group. Callers hold the group's lock."""

    def __init__(
        self, run: Path, group: str, addresses: Sequence[str], durability: Durability
    ) -> None:
        self._group = group
        self._addresses = tuple(addresses)
        self._durability = durability
        self._log = run / f"{group}.log"
        self._socket = TgtSocket(run / f"{group}.tgt")
        self._accounts = Accounts(self._socket)
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
        wanted = {_listening(address, port) for address in self._addresses}
        if self._answers_soon():
            self._free_of_leftovers()
            served = set(self._socket.portals())
            if served == wanted:
                return False
            if elsewhere := sorted(served - wanted):
                raise StorageConflictError(
                    f"LUNs are served at {elsewhere[0]} and the settings say "
                    f"{', '.join(sorted(wanted))}; correct portal_addresses, or withdraw the LUNs "
                    "before you move them."
                )
            for portal in sorted(wanted - served):
                self._socket.call(Operation.NEW, Mode.PORTAL, parameters=f"portal={portal}")
            return True
        self.stop()
        portals = sorted(wanted)
        self._child = self._spawn(portals[0])
        if not self._answers_soon():
            ended = self._child.poll() is not None
            self._child.kill()
            self._child.wait()
            late = f"did not answer within {_PATIENCE_SECONDS:g} s"
            raise self._not_started(portals[0], "ended at once" if ended else late)
        for portal in portals[1:]:
            with suppress(TgtRefusedError):  # said below, in its own words
                self._socket.call(Operation.NEW, Mode.PORTAL, parameters=f"portal={portal}")
        if missing := sorted(wanted - set(self._socket.portals())):
            # It does not mind, and would listen on every address instead.
            self.stop()
            raise self._not_started(missing[0], "cannot listen")
        return True

    def apply(self, wanted: Iterable[tuple[Export, BackingStore]]) -> list[str]:
        """Serve exactly these; returns the targets that had to be touched.

        StorageConflictError when their CHAP accounts do not go together.
        """
        exports = {export.target: (export, store) for export, store in wanted}
        check([export for export, _ in exports.values()])
        touched = []
        for stranger in self._socket.targets():
            if stranger.name not in exports:
                self._delete(stranger)
                touched.append(stranger.name)
        changed = self._accounts.apply(
            [export for export, _ in exports.values()],
            lambda view: self._disconnect(view.id, self._view(view.id).sessions),
        )
        present = {view.name: view for view in self._socket.targets()}
        grown = []
        for name, (export, store) in exports.items():
            view = self._usable(present.get(name), export, store)
            if view is None:
                self._create(export, store)
                touched.append(name)
                continue
            if not view.ready or not view.online or view.size != shown_size(export.size_bytes):
                grown.append((view, store))
            if self._admit(view, export.initiators) or name in changed or (view, store) in grown:
                touched.append(name)
        if grown:
            self._reopen(grown)
        return touched

    def stop(self) -> bool:
        """End it and every session; whether it ran. It restarts on the same port."""
        process = self.process()
        if process is None:
            # One that was killed has left its socket, and so has who was killed while ending it.
            self._socket.path.unlink(missing_ok=True)
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
                ["tgtd", "-f", "-C", "0", "-t", str(WORKERS), "--iscsi", f"portal={portal}"],
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

    def _free_of_leftovers(self) -> None:
        process = self.process()
        if process is not None:
            with process:
                dismiss_dead_callers(process)

    def _usable(
        self, view: TargetView | None, export: Export, store: BackingStore
    ) -> TargetView | None:
        """The target itself if it can become what is wanted; else it is removed."""
        if view is not None and (
            not view.initiators  # let in last, so a target without any was left half-made
            or view.path != store.path
            or view.id != target_id(export.volume)
            or view.read_only != export.read_only
        ):
            self._delete(view)
            return None
        return view

    def _create(self, export: Export, store: BackingStore) -> None:
        number, identity = target_id(export.volume), export.identity
        self._socket.call(
            Operation.NEW, Mode.TARGET, target=number, parameters=f"targetname={export.target}"
        )
        options = f",bsopts={store.options}" if store.options else ""
        self._socket.call(
            Operation.NEW, Mode.LOGICAL_UNIT, target=number, lun=1,
            parameters=f"path={store.path},bstype={store.kind}{options}",
        )  # fmt: skip
        for setting in (
            f"scsi_id={identity.naa},scsi_sn={identity.serial},"
            f"vendor_id={identity.vendor},product_id={identity.product}",
            "thin_provisioning=1",
            *(("readonly=1",) if export.read_only else ()),
            *((_NO_WRITE_CACHE,) if self._durability == "disk" else ()),
            *store.parameters,
        ):
            self._socket.call(
                Operation.UPDATE, Mode.LOGICAL_UNIT, target=number, lun=1, parameters=setting
            )
        self._accounts.bind(export)
        for initiator in export.initiators:
            self._socket.call(
                Operation.BIND, Mode.TARGET, target=number,
                parameters=f"initiator-name={initiator}",
            )  # fmt: skip

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

    def _reopen(self, grown: list[tuple[TargetView, BackingStore]]) -> None:
        """Make tgtd see the images' new sizes, for which it opens them again.

        Its workers must not be using them then. In a lull initiators notice nothing;
        where there can be none, sessions are dropped once.
        """
        process = self.process()
        if process is None:
            raise StorageUnreachableError(
                f"The iSCSI daemon of LUN group {self._group} is gone; reconcile starts it again."
            )
        # A target that takes no commands has some it will never answer.
        dull = [(view, store) for view, store in grown if not view.ready]
        well = [(view, store) for view, store in grown if view.ready]
        luns = sum(view.path != "" for view in self._socket.targets())
        with process:
            try:
                with lull(process, luns):
                    for view, store in well:
                        self._open_again(view, store)
            except NoLullError:
                dull = grown
        for view, store in dull:
            self._reopen_dropping_sessions(view, store)

    def _open_again(self, view: TargetView, store: BackingStore) -> None:
        # Nothing after the path: tgtd reports the last item only, and this puts it online.
        self._socket.call(
            Operation.UPDATE, Mode.LOGICAL_UNIT, target=view.id, lun=1,
            parameters=f"online=0,path={store.path}",
        )  # fmt: skip

    def _reopen_dropping_sessions(self, view: TargetView, store: BackingStore) -> None:
        """The way without a lull.

        The target takes no commands until those it has are done. What arrives
        meanwhile is never answered; so the sessions are dropped in the end, upon
        which initiators log in again and repeat it.
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
        self._open_again(view, store)
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


def _listening(address: str, port: int) -> str:
    """A portal as tgtd shows it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
