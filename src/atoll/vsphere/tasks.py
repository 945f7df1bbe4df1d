"""Waiting for a vSphere task, with an end."""

import time
from collections.abc import Mapping
from typing import Any

from pyVmomi import vim, vmodl

from atoll.model.errors import VCenterOperationError

_Q = vmodl.query.PropertyCollector
_PATHS = ["info.state", "info.error", "info.result", "info.startTime", "info.completeTime"]
_LONGEST_WAIT_SECONDS = 20


class TaskStillRunningError(VCenterOperationError):
    """The task did not end in time and goes on in vCenter."""


def await_task(content: Any, task: Any, what: str, deadline_seconds: float) -> Any:
    """Wait until a task ended and return its result.

    Raises the task's own vSphere fault when it failed, TaskStillRunningError
    when it did not end within `deadline_seconds`.
    """
    return await_task_info(content, task, what, deadline_seconds).get("info.result")


def await_task_info(
    content: Any, task: Any, what: str, deadline_seconds: float
) -> Mapping[str, Any]:
    """The same, but everything that was learned of it: its result and times by property path.

    Uses a collector of its own, so threads do not wake each other. Waits in
    whole seconds, so a deadline may be overrun by up to one.
    """
    collector = content.propertyCollector.CreatePropertyCollector()
    try:
        collector.CreateFilter(
            _Q.FilterSpec(
                objectSet=[_Q.ObjectSpec(obj=task, skip=False)],
                propSet=[_Q.PropertySpec(type=vim.Task, pathSet=_PATHS)],
            ),
            True,
        )
        values = _watch(collector, what, time.monotonic() + deadline_seconds, deadline_seconds)
    finally:
        collector.DestroyPropertyCollector()
    if values["info.state"] == "error":
        raise values["info.error"]
    return values


def _watch(collector: Any, what: str, deadline: float, seconds: float) -> dict[str, Any]:
    values: dict[str, Any] = {}
    version = ""
    while values.get("info.state") not in ("success", "error"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TaskStillRunningError(
                f"vCenter did not {what} within {seconds:g} s; the task goes on, "
                "look at it in vCenter before trying again."
            )
        # The wait is in whole seconds and must not be 0, which would answer at once, over and over.
        wait = max(1, min(_LONGEST_WAIT_SECONDS, int(left)))
        update = collector.WaitForUpdatesEx(version, _Q.WaitOptions(maxWaitSeconds=wait))
        if update is None:
            continue
        version = update.version
        for changed in (
            change
            for each in update.filterSet
            for item in each.objectSet
            for change in item.changeSet
        ):
            values[changed.name] = changed.val
    return values
