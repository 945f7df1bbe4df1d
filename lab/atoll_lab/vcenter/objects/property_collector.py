"""The PropertyCollector and its filters: bulk reads in pages, and waiting for changes.

After the vSphere Web Services API reference, PropertyCollector, UpdateSet and WaitOptions.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import vmodl

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.properties import Picture, Selected, advance, contents, select
from atoll_lab.vcenter.registry import Registry

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

    def __init__(
        self, site: "Site", collector: "PropertyCollector", session: str, spec: Any
    ) -> None:
        super().__init__(site, f"{collector.moid}-filter-{next(_numbers)}", session)
        self.spec = spec
        self._collector = collector

    @exposes("spec")
    def spec_property(self) -> Any:
        """What it watches."""
        return self.spec

    @answers("DestroyPropertyFilter")
    def destroy(self, call: Call) -> None:
        """Stop watching."""
        self.site.registry.remove(self.moid)


@dataclass(frozen=True)
class _Shown:
    """What a client has that was given a version: the picture of each filter by the filter's id.

    A truncated version resumes: `suspended` is what the filter it stopped at had found.
    """

    pictures: Mapping[str, Picture]
    suspended: Mapping[str, list[Selected]]

    @property
    def truncated(self) -> bool:
        return bool(self.suspended)


class _Watch:
    """One session's filters on a collector, and what its last answers showed.

    A client that lost an answer asks with the version before it, so the
    pictures of the last versions are kept.
    """

    def __init__(self) -> None:
        self.filters: list[Filter] = []
        self.versions: OrderedDict[str, _Shown] = OrderedDict()
        self.numbers = itertools.count(1)

    def shown(self, version: str, *, resumable: bool) -> _Shown:
        """What a client with this version has; vmodl InvalidCollectorVersion.

        Any call but the one that resumes it discards a suspended calculation.
        """
        for label in [each for each, shown in self.versions.items() if shown.truncated]:
            if label != version or not resumable:
                del self.versions[label]
        if not version:
            return _Shown({}, {})
        if version not in self.versions:
            raise vmodl.query.InvalidCollectorVersion(
                msg=f"Version {version} is none of this collector's last"
            )
        return self.versions[version]

    def remember(self, shown: _Shown) -> str:
        """A version for what was told just now. A truncated one before it is spent."""
        for label in [each for each, known in self.versions.items() if known.truncated]:
            del self.versions[label]
        label = str(next(self.numbers))
        self.versions[label] = shown
        while len(self.versions) > _KEPT_VERSIONS:
            self.versions.popitem(last=False)
        return label


class PropertyCollector(Managed):
    """Reads properties in bulk. The shared collector keeps each session's filters apart."""

    kind = _Q

    def __init__(self, site: "Site", moid: str, session: str | None = None) -> None:
        super().__init__(site, moid, session)
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
        collector = PropertyCollector(
            self.site, f"session-collector-{next(_numbers)}", call.session.key
        )
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
        created = Filter(self.site, self, call.session.key, spec)
        with self.site.registry.changing():
            self._watch(call).filters.append(created)
            self.site.registry.add(created)
        return created.ref

    @answers("WaitForUpdatesEx")
    def wait_for_updates(self, call: Call, version: str = "", options: Any = None) -> Any:
        """What changed since `version`, everything for an empty one.

        Waits until something changes, at most `options.maxWaitSeconds`; then
        the answer is empty. Answers with `options.maxObjectUpdates` objects at
        most and says so when there are more. vmodl InvalidCollectorVersion for a
        version that cannot be gone on from, RequestCanceled when the wait was
        cancelled or what it belongs to has ended.
        """
        options = options or _Q.WaitOptions()
        if (options.maxWaitSeconds or 0) < 0:
            raise _wrong("maxWaitSeconds")
        if options.maxObjectUpdates is not None and options.maxObjectUpdates <= 0:
            raise _wrong("maxObjectUpdates")
        limit = min(options.maxObjectUpdates or self.site.update_limit, self.site.update_limit)
        return self._wait(call, version, options.maxWaitSeconds, limit)

    @answers("WaitForUpdates")
    def wait_for_updates_old(self, call: Call, version: str = "") -> Any:
        """The same without options, as before API 4.1; never truncated."""
        return self._wait(call, version, None, None)

    @answers("CheckForUpdates")
    def check_for_updates(self, call: Call, version: str = "") -> Any:
        """The same without waiting; never truncated."""
        return self._wait(call, version, 0, None)

    @answers("CancelWaitForUpdates")
    def cancel_wait(self, call: Call) -> None:
        """End the waits of the caller's whole session; one that is still calculating goes on."""
        with self.site.registry.changing():
            call.session.cancels += 1

    def _wait(self, call: Call, version: str, wait: int | None, limit: int | None) -> Any:
        """`limit` None is a call that never truncates and does not resume what was truncated."""
        seconds = _LONGEST_WAIT_SECONDS if wait is None else float(wait)
        deadline = time.monotonic() + seconds
        registry = self.site.registry
        while True:
            with registry.reading():
                generation, cancels = registry.generation, call.session.cancels
                update = self._changes(call, version, limit)
            if update is not None:
                return update
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            changed = registry.wait_beyond(generation, left)
            if registry.closed:
                raise vmodl.fault.RequestCanceled(msg="The server is going down")
            if call.session.user is None or registry.get(self.moid) is None:
                raise vmodl.fault.RequestCanceled(msg="The session or the collector has ended")
            if call.session.cancels != cancels:
                raise vmodl.fault.RequestCanceled(msg="The wait was cancelled")
            if not changed:
                return None

    def _watch(self, call: Call) -> _Watch:
        return self._watches.setdefault(call.session.key, _Watch())

    def _changes(self, call: Call, version: str, limit: int | None) -> Any:
        registry = self.site.registry
        watch = self._watch(call)
        old = watch.shown(version, resumable=limit is not None)
        new: dict[str, Picture] = {}
        suspended: dict[str, list[Selected]] = {}
        sets = []
        watch.filters = [kept for kept in watch.filters if registry.get(kept.moid) is kept]
        for watched in watch.filters:
            before = old.pictures.get(watched.moid, {})
            if suspended:
                new[watched.moid] = before  # its turn comes when the client resumes
                continue
            seen = old.suspended.get(watched.moid)
            if seen is None:
                seen = _look(registry, watched.spec, before)
            step = advance(before, seen, call.version, limit)
            new[watched.moid] = step.picture
            if step.truncated:
                suspended[watched.moid] = seen
            if limit is not None:
                limit -= len(step.updates)
            if step.updates:
                sets.append(_Q.FilterUpdate(filter=watched.ref, objectSet=step.updates))
        if not sets:
            return None
        label = watch.remember(_Shown(new, suspended))
        return _Q.UpdateSet(version=label, filterSet=sets, truncated=bool(suspended))

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


def _look(registry: Registry, spec: Any, before: Picture) -> list[Selected]:
    try:
        return select(registry, spec, before)
    except vmodl.fault.ManagedObjectNotFound:
        return []  # what it started from is gone: everything leaves


def _wrong(field: str) -> Any:
    return vmodl.fault.InvalidArgument(
        msg=f"A specified parameter was not correct: {field}", invalidProperty=field
    )
