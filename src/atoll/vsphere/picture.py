"""The rows of all VMs, hosts and datastores, kept current from updates."""

from collections.abc import Iterable, Mapping
from typing import Any

from pyVmomi import vim

from atoll.vsphere.collector import Row
from atoll.vsphere.facts import Facts, Kind, kind_of

_PLAIN = ("assign", "remove", "indirectRemove")


class Picture:
    """What a feed told so far. Not for several threads.

    `refused` names the objects of which the user may not read everything:
    their rows must not be taken for what they are, a path left out looks unset.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Facts] = {}
        self._refused: dict[str, set[str]] = {}
        self._touched: set[str] = set()
        self._unclear: dict[str, Kind[Any]] = {}

    def apply(self, updates: Iterable[Any]) -> None:
        """Take ObjectUpdates in."""
        for update in updates:
            moref = str(update.obj._moId)
            self._touched.add(moref)
            if update.kind == "leave":
                self._forget(moref)
            else:
                self._take(moref, kind_of(update.obj), update)

    def unclear(self) -> Mapping[Kind[Any], list[str]]:
        """Morefs of objects that must be read, because a change was told that does not fit a row."""
        found: dict[Kind[Any], list[str]] = {}
        for moref, kind in self._unclear.items():
            found.setdefault(kind, []).append(moref)
        return found

    def replace(self, kind: Kind[Any], rows: Iterable[Row]) -> None:
        """Take in what unclear objects were found to be."""
        for row in rows:
            self.rows[row.moref] = kind.read(row.moref, row.values)
            self._refused.pop(row.moref, None)

    def touched(self) -> frozenset[str]:
        """Morefs of what came, went or changed since the last call; none is unclear any more."""
        touched = frozenset(self._touched)
        self._touched.clear()
        self._unclear.clear()
        return touched

    @property
    def refused(self) -> frozenset[str]:
        """Morefs of objects with a path the user may not read."""
        return frozenset(self._refused)

    def _forget(self, moref: str) -> None:
        self.rows.pop(moref, None)
        self._refused.pop(moref, None)
        self._unclear.pop(moref, None)

    def _take(self, moref: str, kind: Kind[Any], update: Any) -> None:
        values: dict[str, Any] = {}
        for change in update.changeSet:
            if change.name in kind.fields and change.op in _PLAIN:
                values[change.name] = change.val if change.op == "assign" else None
            else:
                # A part of a path (`config.hardware.device[4000]`), or more than a path.
                self._unclear[moref] = kind
        row = self.rows.get(moref)
        refused = (
            set() if row is None or update.kind == "enter" else self._refused.get(moref, set())
        )
        refused -= values.keys()
        for missing in update.missingSet:
            values[missing.path] = None
            if isinstance(missing.fault, vim.fault.NoPermission):
                refused.add(missing.path)
        self._refused.pop(moref, None)
        if refused:
            self._refused[moref] = refused
        values = {path: value for path, value in values.items() if path in kind.fields}
        if update.kind == "enter" or row is None:
            if update.kind != "enter":
                self._unclear[moref] = kind
            self.rows[moref] = kind.read(moref, values)
        else:
            self.rows[moref] = kind.change(row, values)
