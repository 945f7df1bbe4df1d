"""`atoll inventory --follow`: what changes in vCenter, as it happens, until interrupted."""

import dataclasses
import json
import sys
from collections import deque
from collections.abc import Callable

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from atoll.cli.output import moment, out, printable
from atoll.model.changes import ChangeKind, Changes, InventoryChange
from atoll.model.errors import AtollError, VCenterUnreachableError
from atoll.vsphere.client import VCenter

_PATIENCE_SECONDS = 1.0
_SHOWN_CHANGES = 10
_SAYS = {
    ChangeKind.VM_APPEARED: "VM {subject} appeared on {after}",
    ChangeKind.VM_GONE: "VM {subject} is gone from {before}",
    ChangeKind.VM_RENAMED: "VM {before} is called {after} now",
    ChangeKind.VM_MOVED_HOST: "VM {subject} moved from {before} to {after}",
    ChangeKind.VM_MOVED_DATASTORE: "VM {subject} moved from datastore {before} to {after}",
    ChangeKind.VM_POWER: "VM {subject} went from {before} to {after}",
    ChangeKind.VM_CONTACT: "vCenter's contact with VM {subject} went from {before} to {after}",
    ChangeKind.VM_DISKS: "VM {subject} has other disks: {after}",
    ChangeKind.VM_SNAPSHOT_APPEARED: "VM {subject} has a VMware snapshot {after}",
    ChangeKind.VM_SNAPSHOT_GONE: "VM {subject} lost its VMware snapshot {before}",
    ChangeKind.VM_TEMPLATE: "{subject} was a {before} and is a {after} now",
    ChangeKind.HOST_APPEARED: "host {subject} appeared",
    ChangeKind.HOST_GONE: "host {subject} is gone",
    ChangeKind.HOST_RENAMED: "host {before} is called {after} now",
    ChangeKind.HOST_INITIATOR: "host {subject} has initiator name {after}, not {before}",
    ChangeKind.LUN_APPEARED: "host {subject} sees LUN {after}",
    ChangeKind.LUN_GONE: "host {subject} sees LUN {before} no more",
    ChangeKind.DATASTORE_APPEARED: "datastore {subject} appeared on {after}",
    ChangeKind.DATASTORE_GONE: "datastore {subject} is gone from {before}",
    ChangeKind.DATASTORE_RENAMED: "datastore {before} is called {after} now",
    ChangeKind.DATASTORE_LUNS: "datastore {subject} lies on {after}, not on {before}",
    ChangeKind.VCENTER_LOST: "lost vCenter: {after}",
    ChangeKind.VCENTER_BACK: "vCenter is back; what changed meanwhile follows",
}
_MISSED = "too much changed at once; some changes are not shown"


def say(change: InventoryChange) -> str:
    """A change as people say it, with when Atoll heard of it."""
    return f"{moment(change.at)}  " + _SAYS[change.kind].format(
        subject=change.subject, before=change.before or "none", after=change.after or "none"
    )


def follow(vcenter: VCenter, draw: Callable[[], Table], *, as_json: bool) -> None:
    """Show changes until interrupted: in a table that is redrawn, or a line each.

    `draw` gives the inventory's table as it is now. Without a terminal it is
    printed once, and with `as_json` not at all. Raises as VCenter.follow does.
    """
    with vcenter.follow() as watch:
        if as_json:
            show: Callable[[Changes], None] = _print_json
        elif out.is_terminal:
            with Live(console=out, auto_refresh=False) as live:
                _tell(watch.wait_for_change, _Screen(live, draw).show)
            return
        else:
            out.print(draw())
            show = _print_lines
        _tell(watch.wait_for_change, show)


def _tell(wait: Callable[[int, float], Changes], show: Callable[[Changes], None]) -> None:
    since = 0
    try:
        while True:
            heard = wait(since, _PATIENCE_SECONDS)
            since = heard.latest
            show(heard)
    except KeyboardInterrupt:
        return  # the way to end it


class _Screen:
    """The table and the last changes under it."""

    def __init__(self, live: Live, draw: Callable[[], Table]) -> None:
        self._live = live
        self._draw = draw
        self._table: Table | None = None
        self._said: deque[str] = deque(maxlen=_SHOWN_CHANGES)

    def show(self, heard: Changes) -> None:
        """Draw anew if anything changed, or nothing was drawn yet."""
        if self._table is not None and not heard.changes:
            return
        self._said.extend([_MISSED] if heard.missed else [])
        self._said.extend(say(change) for change in heard.changes)
        try:
            self._table = self._draw()
        except AtollError as error:
            if self._table is None:
                raise
            # The last table stays. That vCenter is lost is among the changes already.
            if not isinstance(error, VCenterUnreachableError):
                self._said.append(str(error))
        lines = [Text(printable(line), style="dim") for line in self._said]
        self._live.update(Group(self._table, *lines), refresh=True)


def _print_json(heard: Changes) -> None:
    if heard.missed:
        sys.stdout.write('{"kind": "missed"}\n')
    for change in heard.changes:
        sys.stdout.write(json.dumps(dataclasses.asdict(change)) + "\n")
    sys.stdout.flush()


def _print_lines(heard: Changes) -> None:
    if heard.missed:
        out.print(_MISSED)
    for change in heard.changes:
        out.print(say(change), soft_wrap=True)
