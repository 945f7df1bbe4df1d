"""Tasks: each takes its time in a thread of its own, can be watched and cancelled."""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from pyVmomi import vmodl

from atoll_lab.vcenter.faults import Faults
from atoll_lab.vcenter.objects.base import Managed
from atoll_lab.vcenter.objects.task import Task
from atoll_lab.vcenter.registry import Registry

_log = logging.getLogger(__name__)
_KEPT = 500
_RECENT = 10
_DEFAULT_SECONDS = 0.05


class Tasks:
    """Starts tasks. `seconds` by method name say how long one takes before it does its work."""

    def __init__(self, registry: Registry, faults: Faults) -> None:
        self._registry = registry
        self._faults = faults
        self._numbers = itertools.count(1)
        self._finished: deque[str] = deque()
        self._lock = threading.Lock()
        self._recent: dict[str, deque[str]] = {}
        self.seconds: dict[str, float] = {}

    def start(self, entity: Managed, method: str, user: str, work: Callable[[], Any]) -> Any:
        """Begin a task on `entity` and return its reference.

        `work` runs after the task's duration and gives its result; a vSphere
        fault it raises becomes the task's error. Cancelling works until then.
        """
        task = Task(entity.site, f"task-{next(self._numbers)}", entity, method, user)
        self._registry.add(task)
        with self._lock:
            self._recent.setdefault(entity.moid, deque(maxlen=_RECENT)).append(task.moid)
        threading.Thread(
            target=self._run, args=(task, entity, method, work), name=task.moid, daemon=True
        ).start()
        return task.ref

    def recent(self, moid: str) -> tuple[str, ...]:
        """The tasks of late on an object, oldest first."""
        with self._lock:
            return tuple(self._recent.get(moid, ()))

    def _run(self, task: Task, entity: Managed, method: str, work: Callable[[], Any]) -> None:
        with self._registry.changing():
            task.begin()
        if task.cancelled.wait(self.seconds.get(method, _DEFAULT_SECONDS)):
            self._finish(task, error=vmodl.fault.RequestCanceled(msg="The task was canceled"))
            return
        with self._registry.changing():
            task.cancelable = False
        try:
            self._faults.strike("task", method, (entity.moid, entity.display_name))
            result = work()
        except vmodl.MethodFault as fault:
            self._finish(task, error=fault)
        except Exception as error:  # noqa: BLE001 - the task's client must hear of it
            _log.exception("task %s failed inside the simulator", method)
            self._finish(task, error=vmodl.fault.SystemError(msg=str(error), reason=repr(error)))
        else:
            self._finish(task, result=result)

    def _finish(self, task: Task, result: Any = None, error: Any = None) -> None:
        with self._registry.changing():
            task.finish(result, error)
        with self._lock:
            self._finished.append(task.moid)
            expired = self._finished.popleft() if len(self._finished) > _KEPT else None
        if expired:
            self._registry.remove(expired)
