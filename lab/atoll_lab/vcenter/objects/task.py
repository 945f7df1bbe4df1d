"""A Task managed object: its info, its course, its cancelling."""

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site


class Task(Managed):
    """Queued, running, then success or error. Change it under the registry's lock."""

    kind = vim.Task

    def __init__(self, site: "Site", moid: str, entity: Managed, method: str, user: str) -> None:
        super().__init__(site, moid)
        self.cancelled = threading.Event()
        self.cancelable = True
        self._entity = entity.ref
        self._entity_name = entity.display_name
        self._method = method
        self._user = user
        self._state = "queued"
        self._result: Any = None
        self._error: Any = None
        self._queued_at = datetime.now(UTC)
        self._started_at: datetime | None = None
        self._finished_at: datetime | None = None

    def begin(self) -> None:
        """It runs now."""
        self._state, self._started_at = "running", datetime.now(UTC)

    def finish(self, result: Any, error: Any) -> None:
        """It is over, well or badly."""
        self._state = "success" if error is None else "error"
        self._result, self._error = result, error
        self._finished_at = datetime.now(UTC)
        self.cancelable = False

    @exposes("info")
    def info(self) -> Any:
        """Everything about it."""
        info = vim.TaskInfo(
            key=self.moid,
            task=self.ref,
            descriptionId=f"{self._entity.__class__.__name__}.{self._method}",
            entityName=self._entity_name,
            state=self._state,
            cancelled=self.cancelled.is_set(),
            cancelable=self.cancelable,
            error=self._error,
            progress={"queued": 0, "running": 50}.get(self._state),
            reason=vim.TaskReasonUser(userName=self._user),
            queueTime=self._queued_at,
            startTime=self._started_at,
            completeTime=self._finished_at,
            eventChainId=1,
        )
        if isinstance(self._entity, vim.ManagedEntity):
            info.entity = self._entity
        if self._result is not None:
            info.result = self._result
        return info

    @answers("CancelTask")
    def cancel(self, call: Call) -> None:
        """Stop it before it does its work."""
        if self._state in ("success", "error"):
            raise vim.fault.InvalidState(msg="The task has already finished")
        if not self.cancelable:
            raise vmodl.fault.NotSupported(msg="The task can no longer be canceled")
        self.cancelled.set()
