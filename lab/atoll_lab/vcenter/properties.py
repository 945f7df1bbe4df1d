"""The property collector's arithmetic: which objects a filter selects, what they say, what changed.

After the vSphere Web Services SDK Programming Guide, "PropertyCollector":
object specs with traversals select, property specs say which paths to read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import VmomiSupport, vmodl

from atoll_lab.vcenter.objects.base import Managed
from atoll_lab.vcenter.registry import Registry
from atoll_lab.vcenter.soap import fingerprint

Q = vmodl.query.PropertyCollector


@dataclass(frozen=True)
class Selected:
    """An object a filter selects, with the value of each path that is set."""

    ref: Any
    values: Mapping[str, Any]


def select(registry: Registry, spec: Any) -> list[Selected]:
    """Evaluate a FilterSpec; vmodl ManagedObjectNotFound for a start object that is gone."""
    found: dict[str, Selected] = {}
    with registry.reading():
        for managed in _walk_all(registry, spec):
            if managed.moid in found:
                continue
            values: dict[str, Any] = {}
            matched = False
            for wanted in spec.propSet:
                if issubclass(managed.kind, wanted.type):
                    matched = True
                    values.update(_values(managed, wanted))
            if matched:
                found[managed.moid] = Selected(managed.ref, values)
    return list(found.values())


def value_at(managed: Managed, path: str) -> Any:
    """The value of a dotted path, None when unset; vmodl InvalidProperty for an unknown path."""
    head = path.partition(".")[0]
    return _below(managed, path, managed.read(head))


def _below(managed: Managed, path: str, value: Any) -> Any:
    """The same, where `value` is that of the path's first name."""
    head, *rest = path.split(".")
    info = managed.kind._GetPropertyInfo(head)
    for name in rest:
        if value is None:
            return None
        # A path ends at a reference: what is beyond it takes a traversal.
        if not isinstance(value, VmomiSupport.DataObject):
            raise _no_such(managed, path)
        try:
            info = type(value)._GetPropertyInfo(name)
        except AttributeError as error:
            raise _no_such(managed, path) from error
        value = getattr(value, info.name)
    if isinstance(value, list) and not isinstance(value, VmomiSupport.Array):
        # Only a typed array says on the wire what it is an array of.
        if not value and info.flags & VmomiSupport.F_OPTIONAL:
            return None
        value = info.type(value)
    return value


def _no_such(managed: Managed, path: str) -> Any:
    return vmodl.query.InvalidProperty(
        msg=f"{managed.kind.__name__} has no property {path}", name=path
    )


def contents(selected: list[Selected]) -> list[Any]:
    """ObjectContent for RetrievePropertiesEx."""
    return [
        Q.ObjectContent(
            obj=item.ref, propSet=[_named(path, item.values[path]) for path in sorted(item.values)]
        )
        for item in selected
    ]


@dataclass(frozen=True)
class Picture:
    """What a filter saw at one moment, comparable."""

    objects: Mapping[str, Selected]
    fingerprints: Mapping[str, Mapping[str, str]]


EMPTY = Picture({}, {})


def picture(selected: list[Selected], version: str) -> Picture:
    """Make what was selected comparable."""
    return Picture(
        {item.ref._moId: item for item in selected},
        {
            item.ref._moId: {
                path: fingerprint(value, version) for path, value in item.values.items()
            }
            for item in selected
        },
    )


def updates(old: Picture, new: Picture) -> list[Any]:
    """ObjectUpdate for each object that came, went or changed."""
    result = []
    for moid, item in new.objects.items():
        if moid not in old.objects:
            result.append(
                Q.ObjectUpdate(
                    kind="enter",
                    obj=item.ref,
                    changeSet=[_change(path, item.values[path]) for path in sorted(item.values)],
                )
            )
            continue
        before, now = old.fingerprints[moid], new.fingerprints[moid]
        changes = [
            _change(path, item.values.get(path))
            for path in sorted(before.keys() | now.keys())
            if before.get(path) != now.get(path)
        ]
        if changes:
            result.append(Q.ObjectUpdate(kind="modify", obj=item.ref, changeSet=changes))
    result.extend(
        Q.ObjectUpdate(kind="leave", obj=item.ref)
        for moid, item in old.objects.items()
        if moid not in new.objects
    )
    return result


def _named(path: str, value: Any) -> Any:
    return vmodl.DynamicProperty(name=path, val=value)


def _change(path: str, value: Any) -> Any:
    if value is None:
        return Q.Change(name=path, op="indirectRemove")
    return Q.Change(name=path, op="assign", val=value)


def _values(managed: Managed, wanted: Any) -> dict[str, Any]:
    paths = managed.property_names() if wanted.all else wanted.pathSet
    # Building a configuration costs far more than picking from it, and many paths begin there.
    heads = {head: managed.read(head) for head in {path.partition(".")[0] for path in paths}}
    values = {path: _below(managed, path, heads[path.partition(".")[0]]) for path in paths}
    return {path: value for path, value in values.items() if value is not None}


def _walk_all(registry: Registry, spec: Any) -> Iterator[Managed]:
    for start in spec.objectSet:
        managed = registry.require(start.obj._moId)
        if not start.skip:
            yield managed
        named = dict(_named_selections(start.selectSet))
        yield from _walk(registry, managed, start.selectSet, named, set())


def _named_selections(selections: Any) -> Iterator[tuple[str, Any]]:
    for selection in selections:
        if isinstance(selection, Q.TraversalSpec):
            if selection.name:
                yield selection.name, selection
            yield from _named_selections(selection.selectSet)


def _walk(
    registry: Registry,
    managed: Managed,
    selections: Any,
    named: Mapping[str, Any],
    seen: set[tuple[str, int]],
) -> Iterator[Managed]:
    for entry in selections:
        selection = entry if isinstance(entry, Q.TraversalSpec) else named.get(entry.name)
        if selection is None:
            raise vmodl.fault.InvalidArgument(
                msg=f"No traversal is called {entry.name}", invalidProperty="selectSet"
            )
        # Traversals may name themselves; each is followed from an object once.
        if not issubclass(managed.kind, selection.type) or (managed.moid, id(selection)) in seen:
            continue
        seen.add((managed.moid, id(selection)))
        value = value_at(managed, selection.path)
        references = value if isinstance(value, list) else [] if value is None else [value]
        for reference in references:
            target = registry.get(reference._moId)
            if target is None:
                continue
            if not selection.skip:
                yield target
            yield from _walk(registry, target, selection.selectSet, named, seen)
