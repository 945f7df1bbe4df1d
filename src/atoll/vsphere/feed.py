"""A property filter over everything the inventory needs, and the updates vCenter tells of it.

Semantics after the vSphere Web Services API reference, PropertyCollector:
WaitForUpdatesEx, UpdateSet.truncated, CreateFilter.
"""

import http.client
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from atoll.vsphere.collector import Row, read_objects
from atoll.vsphere.facts import KINDS, Kind

_Q = vmodl.query.PropertyCollector
_GONE = (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError)
"""How a call fails when the server, the session or the object is gone already."""


class Interrupted(Exception):
    """The wait was cancelled before anything was told; asking again loses nothing."""


@dataclass(frozen=True, slots=True)
class Updates:
    """ObjectUpdates in the order told. Not `complete`: they make sense with the next ones only."""

    objects: tuple[Any, ...]
    complete: bool


class Feed:
    """A view, a collector and a filter of one session; they end with it.

    The collector must be the only one in its session that anybody waits on:
    CancelWaitForUpdates acts on a whole session, and concurrent waits in one
    may make vCenter forget updates it held back.
    """

    def __init__(self, content: Any, page_objects: int) -> None:
        self.content = content
        self._page_objects = page_objects
        self._version = ""
        with ExitStack() as made:
            view = content.viewManager.CreateContainerView(
                content.rootFolder, [kind.managed for kind in KINDS], True
            )
            made.callback(_if_it_is_there, view.DestroyView)
            self._collector = content.propertyCollector.CreatePropertyCollector()
            made.callback(_if_it_is_there, self._collector.DestroyPropertyCollector)
            # Without partial updates a change of a device is told as the whole list of devices.
            self._collector.CreateFilter(_everything_in(view), False)
            self._made = made.pop_all()

    def next(self, seconds: int) -> Updates:
        """What changed since the last call, at first everything; waits for it up to `seconds`.

        Nothing changed is a complete answer without objects. Interrupted when
        `interrupt` was called meanwhile. After any other error the feed is of no
        use: the version of an incomplete answer can be asked with only once.
        """
        options = _Q.WaitOptions(maxWaitSeconds=seconds, maxObjectUpdates=self._page_objects)
        try:
            update = self._collector.WaitForUpdatesEx(self._version, options)
        except vmodl.fault.RequestCanceled as fault:
            raise Interrupted from fault
        if update is None:
            return Updates((), complete=True)
        self._version = update.version
        return Updates(
            tuple(item for each in update.filterSet for item in each.objectSet),
            complete=not update.truncated,
        )

    def reread(self, kind: Kind[Any], morefs: Iterable[str]) -> list[Row]:
        """Objects as they are now; those that are gone are left out."""
        rows: list[Row] = []
        for moref in morefs:
            with suppress(vmodl.fault.ManagedObjectNotFound):  # its leaving will be told
                rows += read_objects(
                    self.content, kind.managed, [moref], kind.paths, self._page_objects
                )
        return rows

    def interrupt(self) -> None:
        """Let a waiting `next` of another thread end; may have no effect, then repeat it."""
        _if_it_is_there(self._collector.CancelWaitForUpdates)

    def close(self) -> None:
        """Remove collector, filter and view from vCenter."""
        self._made.close()


def _everything_in(view: Any) -> Any:
    """A FilterSpec for all that Atoll knows of, as the view has it."""
    walk = _Q.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
    return _Q.FilterSpec(
        objectSet=[_Q.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
        propSet=[_Q.PropertySpec(type=kind.managed, pathSet=list(kind.paths)) for kind in KINDS],
    )


def _if_it_is_there(call: Callable[[], object]) -> None:
    with suppress(*_GONE):
        call()
