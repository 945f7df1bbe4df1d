"""Quiesced VMware snapshots that live for seconds: taken, removed, verified, and never forgotten."""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pyVmomi import vim, vmodl

from atoll.model.errors import (
    ConfigurationError,
    UnknownVmError,
    UnprotectableVmError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.model.vmware import LeftoverSnapshot, VmwareSnapshot
from atoll.vsphere.collector import Row, read_all, read_objects
from atoll.vsphere.session import Session
from atoll.vsphere.snapshot_state import (
    REFUSAL_PATHS,
    STATE_PATHS,
    SnapshotState,
    TreeEntry,
    epoch,
    refusals,
    snapshot_state,
    tree_entries,
)
from atoll.vsphere.tasks import TaskStillRunningError, await_task_info

NAME_PREFIX = "atoll-"
ACCOUNT_KEY = "guestinfo.atoll.account"
MAX_ACCOUNT_BYTES = 8192

_T = TypeVar("_T")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_NAME = re.compile(rf"{NAME_PREFIX}[A-Za-z0-9][A-Za-z0-9._-]{{0,71}}\Z")
# GuestQuiesceSpec.timeout is in whole minutes, 5 at least, 240 at most (vSphere API reference).
_QUIESCE_MINUTES = (5, 240)
_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 5.0


class VmwareSnapshots:
    """The VMware snapshots of one Atoll site in one vCenter; any thread may use it.

    A snapshot is the site's own when its name begins with `atoll-` and its
    description ends with the site's mark; no other is ever touched. Every call
    raises VCenterUnreachableError, AuthenticationError or
    VCenterOperationError as the session does, and UnknownVmError for a VM that
    is not there where nothing else is said.
    """

    def __init__(self, session: Session, site: str) -> None:
        """`site` tells this Atoll from others on the same vCenter and must never change.

        ConfigurationError for one that is not 1 to 64 letters, digits, dots,
        dashes and underscores.
        """
        if not _SITE.match(site):
            raise ConfigurationError(
                f"The site's name {site!r} cannot mark VMware snapshots; "
                "use up to 64 letters, digits, dots, dashes and underscores."
            )
        self._session = session
        self._before: dict[tuple[str, str], SnapshotState] = {}
        self._mark = f"[atoll site {site}]"

    def refusals(self, instance_uuids: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Why VMs cannot be held by a quiesced snapshot, by instance UUID; empty: they may be.

        Each reason is the end of a sentence about the VM. Nothing is touched.
        """

        def read(content: Any) -> Mapping[str, tuple[str, ...]]:
            known = {uuid: _look_up(content, uuid) for uuid in instance_uuids}
            morefs = {vm._moId: uuid for uuid, vm in known.items() if vm is not None}
            rows = self._rows(content, morefs, REFUSAL_PATHS)
            unknown = dict.fromkeys(known, ("vCenter does not know it any more",))
            return unknown | {morefs[row.moref]: refusals(row) for row in rows}

        return self._session.call("say which VMs can have a snapshot", read)

    def quiesced_snapshot(
        self, instance_uuid: str, name: str, text: str, deadline_seconds: float
    ) -> VmwareSnapshot:
        """Take a quiesced snapshot without memory and return when vCenter has made it.

        `name` is `atoll-` and what tells one snapshot from another; `text`
        becomes its description. Look at `quiesced`: vCenter makes a plain
        snapshot where the guest cannot be quiesced. After `deadline_seconds`
        the task is cancelled and VCenterOperationError raised.

        UnprotectableVmError when `refusals` would have told so; nothing was
        begun then. After any other error the snapshot may be there or still
        come: `remove` takes care of both.
        """
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no name for a snapshot of Atoll")
        limit = time.monotonic() + deadline_seconds
        what = f"take a quiesced snapshot of VM {instance_uuid}"
        before = self._session.call(what, lambda content: self._acceptable(content, instance_uuid))
        self._before[instance_uuid, name] = before
        vm = before.name
        what = f"take a quiesced snapshot of VM {vm}"
        description = f"{text} {self._mark}"
        task: str = self._session.call(
            what,
            lambda content: _begin(
                _find(content, instance_uuid), name, description, deadline_seconds
            ),
        )
        try:
            info = self._await(task, what, limit - time.monotonic())
        except TaskStillRunningError as error:
            self._cancel(task, what)
            raise VCenterOperationError(
                f"vCenter did not {what} within {deadline_seconds:g} s and was told to stop; "
                "see the VM's tasks in vCenter for what VMware Tools waits for."
            ) from error
        made = info["info.result"]._moId
        state = self._session.call(what, lambda content: self._state(content, instance_uuid))
        for entry in state.snapshots:
            if entry.moref == made:
                return VmwareSnapshot(
                    instance_uuid=instance_uuid,
                    vm=vm,
                    name=name,
                    moref=made,
                    quiesced=entry.quiesced,
                    created_at=entry.created_at,
                    began_at=epoch(info.get("info.startTime")),
                    ended_at=epoch(info.get("info.completeTime")),
                )
        raise VCenterOperationError(
            f"The VMware snapshot {name} of VM {vm} was gone right after vCenter had made it; "
            "see in its events who removed it."
        )

    def present(self, instance_uuid: str, name: str) -> tuple[str, ...]:
        """Morefs of this site's snapshots of that name that the VM has now."""
        state = self._session.call(
            f"look at the VMware snapshots of VM {instance_uuid}",
            lambda content: self._state(content, instance_uuid),
        )
        return tuple(each.moref for each in self._mine(state, name))

    def remove(self, instance_uuid: str, name: str, deadline_seconds: float) -> None:
        """Remove this site's snapshots of that name from a VM, and verify that nothing is left.

        Waits for one that vCenter is still making. Deltas that a removal left
        behind are consolidated, but not for those alone that were there before. What
        fails is tried again until the deadline, then VCenterOperationError says what
        is left. Absent is success, also when the whole VM is.
        """
        what = f"remove VMware snapshot {name} of VM {instance_uuid}"
        limit = time.monotonic() + deadline_seconds
        pause = _RETRY_SECONDS
        before = self._before.get((instance_uuid, name))
        while True:
            try:
                state = self._session.call(
                    what, lambda content: self._state(content, instance_uuid)
                )
                # A snapshot adds as much to the depth as to the deltas, so ours does not count.
                before = before or state
                tasks = self._running(state, what) or self._remove_next(state, before, name, what)
                if not tasks:
                    self._before.pop((instance_uuid, name), None)
                    return
                for task in tasks:
                    self._await(task, what, max(1.0, limit - time.monotonic()))
            except UnknownVmError:
                return
            except (VCenterOperationError, VCenterUnreachableError) as error:
                if time.monotonic() + pause > limit:
                    raise VCenterOperationError(
                        f"VMware snapshot {name} of VM {instance_uuid} is not wholly removed: "
                        f"{str(error).rstrip('.')}; the next start tries again, "
                        "or remove and consolidate it in vCenter."
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)

    def leftovers(self) -> tuple[LeftoverSnapshot, ...]:
        """Every snapshot of this site that exists now, on whatever VM."""
        paths = ("name", "config.instanceUuid", "snapshot")
        rows = self._session.call(
            "list the VMware snapshots",
            lambda content: read_all(
                content, {vim.VirtualMachine: paths}, self._session.page_objects
            ),
        )
        return tuple(
            LeftoverSnapshot(uuid, str(row.get("name", row.moref)), entry.name, entry.created_at)
            for row in rows
            if (uuid := row.get("config.instanceUuid"))
            for entry in tree_entries(row)
            if self._is_mine(entry, entry.name)
        )

    def account(self, instance_uuid: str) -> str | None:
        """What the agent in the guest left for us in guestinfo, unread; None when there is nothing.

        Comes from the guest: whoever is root there writes what they like. What
        is longer than MAX_ACCOUNT_BYTES counts as nothing.
        """

        def read(content: Any) -> str | None:
            moref = _find(content, instance_uuid)._moId
            [row] = self._rows(content, [moref], ("config.extraConfig",))
            for option in row.get("config.extraConfig", ()):
                if option.key == ACCOUNT_KEY and len(str(option.value)) <= MAX_ACCOUNT_BYTES:
                    return str(option.value)
            return None

        return self._session.call(f"read the guestinfo of VM {instance_uuid}", read)

    def _acceptable(self, content: Any, instance_uuid: str) -> SnapshotState:
        """The state of a VM that may have a snapshot."""
        moref = _find(content, instance_uuid)._moId
        [row] = self._rows(content, [moref], REFUSAL_PATHS)
        state = snapshot_state(row)
        reasons = refusals(row)
        if reasons:
            raise UnprotectableVmError(
                f"VM {state.name} cannot be held by a VMware snapshot: {'; '.join(reasons)}."
            )
        return state

    def _is_mine(self, entry: TreeEntry, name: str) -> bool:
        return (
            entry.name == name
            and name.startswith(NAME_PREFIX)
            and entry.description.endswith(self._mark)
        )

    def _state(self, content: Any, instance_uuid: str) -> SnapshotState:
        moref = _find(content, instance_uuid)._moId
        [row] = self._rows(content, [moref], STATE_PATHS)
        return snapshot_state(row)

    def _running(self, state: SnapshotState, what: str) -> list[str]:
        """Tasks that make, remove or consolidate snapshots of a VM right now, by moref."""
        return self._session.call(
            what,
            lambda content: [
                moref
                for task in state.recent_tasks
                if (moref := _changing_snapshots(content, task, self._session.page_objects))
            ],
        )

    def _remove_next(
        self, state: SnapshotState, before: SnapshotState, name: str, what: str
    ) -> list[str]:
        """Start the one task that is needed next, and return its moref; none when all is well."""
        mine = self._mine(state, name)

        def start(content: Any) -> list[str]:
            if mine:
                snapshot = _bound(content, vim.vm.Snapshot, mine[0].moref)
                return [snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True)._moId]
            if state.more_left_than(before):
                vm = _bound(content, vim.VirtualMachine, state.vm)
                return [vm.ConsolidateVMDisks_Task()._moId]
            return []

        return self._session.call(what, start)

    def _mine(self, state: SnapshotState, name: str) -> list[TreeEntry]:
        return [each for each in state.snapshots if self._is_mine(each, name)]

    def _await(self, task: str, what: str, seconds: float) -> Mapping[str, Any]:
        return self._session.call(
            what, lambda content: await_task_info(content, vim.Task(task), what, seconds)
        )

    def _cancel(self, task: str, what: str) -> None:
        def cancel(content: Any) -> None:
            try:
                _bound(content, vim.Task, task).CancelTask()
            except (vim.fault.InvalidState, vmodl.fault.NotSupported):
                # Over already, or beyond the point where it can be stopped.
                return

        self._session.call(f"cancel the task to {what}", cancel)

    def _rows(self, content: Any, morefs: Iterable[str], paths: Sequence[str]) -> list[Row]:
        return read_objects(content, vim.VirtualMachine, morefs, paths, self._session.page_objects)


def _begin(vm: Any, name: str, description: str, deadline_seconds: float) -> str:
    """Start the task and return its moref."""
    shortest, longest = _QUIESCE_MINUTES
    minutes = min(longest, max(shortest, math.ceil(deadline_seconds / 60)))
    try:
        task = vm.CreateSnapshotEx_Task(
            name=name,
            description=description,
            memory=False,
            quiesceSpec=vim.vm.GuestQuiesceSpec(timeout=minutes),
        )
    except (vmodl.fault.MethodNotFound, vmodl.fault.NotSupported, vmodl.fault.NotImplemented):
        # Before vSphere 6.5, and some that speak the API without it.
        task = vm.CreateSnapshot_Task(
            name=name, description=description, memory=False, quiesce=True
        )
    return str(task._moId)


def _find(content: Any, instance_uuid: str) -> Any:
    found = _look_up(content, instance_uuid)
    if found is None:
        raise UnknownVmError(
            f"vCenter knows no VM with the instance UUID {instance_uuid}; "
            "`atoll inventory` lists all VMs."
        )
    return found


def _look_up(content: Any, instance_uuid: str) -> Any:
    return content.searchIndex.FindByUuid(
        datacenter=None, uuid=instance_uuid, vmSearch=True, instanceUuid=True
    )


def _changing_snapshots(content: Any, task: str, page_objects: int) -> str | None:
    """The task's moref if it is about snapshots and has not ended."""
    paths = ("info.descriptionId", "info.state")
    try:
        [row] = read_objects(content, vim.Task, [task], paths, page_objects)
    except vmodl.fault.ManagedObjectNotFound:
        return None
    what = str(row.get("info.descriptionId", "")).lower()
    concerned = "snapshot" in what or "consolidate" in what
    return task if concerned and row.get("info.state") in {"queued", "running"} else None


def _bound(content: Any, kind: Callable[[str, Any], _T], moref: str) -> _T:
    """An object that is called over the session in use."""
    return kind(moref, content.searchIndex._stub)
