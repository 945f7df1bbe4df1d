"""The PropertyCollector and its filters: bulk reads in pages, and waiting for changes."""

import itertools
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pyVmomi import vmodl

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.properties import EMPTY, Picture, contents, picture, select, updates

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

_Q = vmodl.query.PropertyCollector
_numbers = itertools.count(1)
_LONGEST_WAIT_SECONDS = 600.0
_KEPT_VERSIONS = 2
_KEPT_PAGES = 50


class Filter(Managed):
    """A FilterSpec that a collector watches."""

    kind = _Q.Filter

    def __init__(self, site: "Site", collector: "PropertyCollector", owner: str, spec: Any) -> None:
        super().__init__(site, f"{owner}-filter-{next(_numbers)}")
        self.spec = spec
        self._collector = collector

    @exposes("spec")
    def spec_property(self) -> Any:
        """What it watches."""
        return self.spec

    @answers("DestroyPropertyFilter")
    def destroy(self, call: Call) -> None:
        """Stop watching."""
        self._collector.drop(self)
        self.site.registry.remove(self.moid)


class _Watch:
    """One session's filters on a collector, and what its last answers showed.

    A client that lost an answer asks with the version before it, so the
    pictures of the last versions are kept.
    """

    def __init__(self) -> None:
        self.filters: list[Filter] = []
        self.versions: OrderedDict[str, dict[str, Picture]] = OrderedDict()
        self.numbers = itertools.count(1)


class PropertyCollector(Managed):
    """Reads properties in bulk. The shared collector keeps each session's filters apart."""

    kind = _Q

    def __init__(self, site: "Site", moid: str) -> None:
        super().__init__(site, moid)
        self._watches: dict[str, _Watch] = {}
        self._pages: OrderedDict[str, list[Any]] = OrderedDict()

    @answers("RetrievePropertiesEx")
    def retrieve(self, call: Call, specSet: list[Any], options: Any) -> Any:
        """A page of ObjectContent; a token when there is more, nothing when nothing matched."""
        found = [item for spec in specSet for item in contents(select(self.site.registry, spec))]
        limit = min(options.maxObjects or self.site.page_size, self.site.page_size)
        return self._page(found, limit) if found else None

    @answers("RetrieveProperties")
    def retrieve_all(self, call: Call, specSet: list[Any]) -> list[Any]:
        """Everything at once, as before API 4.1."""
        return [item for spec in specSet for item in contents(select(self.site.registry, spec))]

    @answers("ContinueRetrievePropertiesEx")
    def more(self, call: Call, token: str) -> Any:
        """The page after; vmodl InvalidProperty for a token that is not open."""
        rest = self._take(token)
        return self._page(rest, self.site.page_size)

    @answers("CancelRetrievePropertiesEx")
    def cancel_retrieve(self, call: Call, token: str) -> None:
        """Forget the pages left."""
        self._take(token)

    @answers("CreatePropertyCollector")
    def create_collector(self, call: Call) -> Any:
        """A collector for one thread's own filters."""
        collector = PropertyCollector(self.site, f"session-collector-{next(_numbers)}")
        self.site.registry.add(collector)
        return collector.ref

    @answers("DestroyPropertyCollector")
    def destroy(self, call: Call) -> None:
        """Forget the collector and its filters."""
        for watch in self._watches.values():
            for watched in watch.filters:
                self.site.registry.remove(watched.moid)
        self.site.registry.remove(self.moid)

    @answers("CreateFilter")
    def create_filter(self, call: Call, spec: Any, partialUpdates: bool) -> Any:
        """Watch a FilterSpec; a wrong path or a start object that is gone is refused here."""
        select(self.site.registry, spec)
        created = Filter(self.site, self, self.moid, spec)
        with self.site.registry.changing():
            self._watch(call).filters.append(created)
            self.site.registry.add(created)
        return created.ref

    @answers("WaitForUpdatesEx")
    def wait_for_updates(self, call: Call, version: str = "", options: Any = None) -> Any:
        """What changed since `version`, everything for an empty one.

        Waits until something changes, at most `options.maxWaitSeconds`; then
        the answer is empty. vmodl InvalidCollectorVersion for a version that is
        none of the last two.
        """
        wait = None if options is None else options.maxWaitSeconds
        seconds = _LONGEST_WAIT_SECONDS if wait is None else float(wait)
        deadline = time.monotonic() + seconds
        registry = self.site.registry
        while True:
            generation = registry.generation
            update = self._changes(call, version)
            if update is not None:
                return update
            left = deadline - time.monotonic()
            if left <= 0 or not registry.wait_beyond(generation, left):
                if registry.closed:
                    raise vmodl.fault.RequestCanceled(msg="The server is going down")
                if time.monotonic() >= deadline:
                    return None
            if call.session.user is None:
                raise vmodl.fault.RequestCanceled(msg="The session has ended")

    @answers("WaitForUpdates")
    def wait_for_updates_old(self, call: Call, version: str = "") -> Any:
        """The same without options, as before API 4.1."""
        return self.wait_for_updates(call, version)

    @answers("CheckForUpdates")
    def check_for_updates(self, call: Call, version: str = "") -> Any:
        """The same without waiting."""
        return self.wait_for_updates(call, version, _Q.WaitOptions(maxWaitSeconds=0))

    def drop(self, gone: Filter) -> None:
        """Stop watching a filter."""
        with self.site.registry.changing():
            for watch in self._watches.values():
                watch.filters = [kept for kept in watch.filters if kept is not gone]

    def _watch(self, call: Call) -> _Watch:
        return self._watches.setdefault(call.session.key, _Watch())

    def _changes(self, call: Call, version: str) -> Any:
        with self.site.registry.reading():
            watch = self._watch(call)
            if version and version not in watch.versions:
                raise vmodl.query.InvalidCollectorVersion(
                    msg=f"Version {version} is none of this collector's last"
                )
            old = watch.versions.get(version, {})
            new: dict[str, Picture] = {}
            sets = []
            for watched in watch.filters:
                try:
                    seen = select(self.site.registry, watched.spec)
                except vmodl.fault.ManagedObjectNotFound:
                    seen = []  # what it started from is gone: everything leaves
                now = picture(seen, call.version)
                new[watched.moid] = now
                changed = updates(old.get(watched.moid, EMPTY), now)
                if changed:
                    sets.append(_Q.FilterUpdate(filter=watched.ref, objectSet=changed))
            if not sets:
                return None
            label = str(next(watch.numbers))
            watch.versions[label] = new
            while len(watch.versions) > _KEPT_VERSIONS:
                watch.versions.popitem(last=False)
            return _Q.UpdateSet(version=label, filterSet=sets, truncated=False)

    def _page(self, found: list[Any], limit: int) -> Any:
        page, rest = found[:limit], found[limit:]
        token = None
        if rest:
            token = f"{self.moid}-page-{next(_numbers)}"
            with self.site.registry.reading():
                self._pages[token] = rest
                while len(self._pages) > _KEPT_PAGES:
                    self._pages.popitem(last=False)
        return _Q.RetrieveResult(token=token, objects=page)

    def _take(self, token: str) -> list[Any]:
        with self.site.registry.reading():
            rest = self._pages.pop(token, None)
        if rest is None:
            raise vmodl.query.InvalidProperty(
                msg=f"No retrieval is open under {token}", name="token"
            )
        return rest
