"""Faults on demand: what goes wrong, for which method, on which object, how often."""

import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from pyVmomi import VmomiSupport, vmodl

DROP = "drop"
"""The fault that is none: the connection is closed without an answer."""


class DroppedConnection(Exception):
    """Close the connection instead of answering."""


@dataclass(frozen=True)
class FaultRule:
    """What to inject.

    `method` is the WSDL name; `target` an object's id or name, None for any.
    `fault` is a vSphere fault's name (`vim.fault.FileLocked`), `drop`, or None
    for delay only. `when` is `before` the method runs, `after` it ran (the work
    is done, the answer lost), or `task`: the call succeeds, its task fails.
    """

    method: str
    target: str | None = None
    fault: str | None = None
    count: int = 1
    delay_seconds: float = 0.0
    when: str = "before"

    def __post_init__(self) -> None:
        if self.when not in ("before", "after", "task"):
            raise ValueError(f"`when` is before, after or task, not {self.when}")
        if self.fault not in (None, DROP):
            VmomiSupport.GetVmodlType(self.fault)
        if self.when == "task" and self.fault == DROP:
            raise ValueError("A task has no connection to drop")


class Faults:
    """The rules in force. A rule that fired `count` times is spent."""

    def __init__(self) -> None:
        self._rules: list[tuple[FaultRule, list[int]]] = []
        self._lock = threading.Lock()

    def inject(self, rule: FaultRule) -> None:
        """Put a rule in force."""
        with self._lock:
            self._rules.append((rule, [0]))

    def clear(self) -> None:
        """Remove every rule."""
        with self._lock:
            self._rules.clear()

    def report(self) -> list[dict[str, Any]]:
        """Every rule with how often it fired, so that tests can assert that it did."""
        with self._lock:
            return [{**asdict(rule), "fired": fired[0]} for rule, fired in self._rules]

    def strike(self, when: str, method: str, targets: tuple[str, ...]) -> None:
        """Do what the rules say at this moment: wait, raise a vSphere fault, or DroppedConnection."""
        for rule in self._take(when, method, targets):
            time.sleep(rule.delay_seconds)
            if rule.fault == DROP:
                raise DroppedConnection(method)
            if rule.fault is not None:
                raise make_fault(rule.fault)

    def _take(self, when: str, method: str, targets: tuple[str, ...]) -> list[FaultRule]:
        taken = []
        with self._lock:
            for rule, fired in self._rules:
                if (rule.when, rule.method) != (when, method) or fired[0] >= rule.count:
                    continue
                if rule.target is None or rule.target in targets:
                    fired[0] += 1
                    taken.append(rule)
        return taken


def make_fault(name: str) -> Any:
    """A vSphere fault by its dotted name, its required fields filled with what they allow."""
    fault = VmomiSupport.GetVmodlType(name)(msg=f"Injected {name}")
    for field in fault._GetPropertyList():
        optional = field.flags & VmomiSupport.F_OPTIONAL
        if optional or getattr(fault, field.name) is not None:
            continue
        if field.type is str:
            setattr(fault, field.name, "injected")
        elif issubclass(field.type, VmomiSupport.ManagedObject):
            setattr(fault, field.name, field.type("injected"))
    if not isinstance(fault, vmodl.MethodFault):
        raise TypeError(f"{name} is not a fault")
    return fault
