"""The property collector's arithmetic: which objects a filter selects, what they say, what changed.

After the vSphere Web Services SDK Programming Guide, "PropertyCollector":
object specs with traversals select, property specs say which paths to read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from atoll_lab.vcenter.objects.base import Managed
from atoll_lab.vcenter.registry import Registry
from atoll_lab.vcenter.soap import fingerprint

Q = vmodl.query.PropertyCollector


@dataclass(frozen=True)
class Selected:
    """An object a filter selects: the value of each path that is set, and the paths refused.

    With equal stamps, unless None, two looks saw the same.
    """

    ref: Any
    values: Mapping[str, Any]
    refused: frozenset[str] = frozenset()
    stamp: Any = None


def select(
    registry: Registry, spec: Any, known: Mapping[str, Selected] | None = None
) -> list[Selected]:
    """Evaluate a FilterSpec; vmodl ManagedObjectNotFound for a start object that is gone.

    `known` are objects of an earlier look with the same spec: one that did not
    change since is taken over as it is.
    """
    found: dict[str, Selected] = {}
    with registry.reading():
        for managed in _walk_all(registry, spec):
            if managed.moid in found:
                continue
            stamp = _stamp(registry, managed)
            before = (known or {}).get(managed.moid)
            if before is not None and stamp is not None and before.stamp == stamp:
                found[managed.moid] = before
                continue
            values: dict[str, Any] = {}
            refused: set[str] = set()
            matched = False
            for wanted in spec.propSet:
                if issubclass(managed.kind, wanted.type):
                    matched = True
                    for path, value in _values(managed, wanted).items():
                        if (managed.moid, path) in registry.forbidden:
                            refused.add(path)
                        elif value is not None:
                            values[path] = value
            if matched:
                found[managed.moid] = Selected(managed.ref, values, frozenset(refused), stamp)
    return list(found.values())


def _stamp(registry: Registry, managed: Managed) -> Any:
    stamp = managed.stamp()
    if stamp is None or not registry.forbidden:
        return stamp
    return (stamp, frozenset(each for each in registry.forbidden if each[0] == managed.moid))


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
            obj=item.ref,
            propSet=[_named(path, item.values[path]) for path in sorted(item.values)],
            missingSet=_missing(item, item.refused),
        )
        for item in selected
    ]


Picture = Mapping[str, Selected]
"""What a filter saw at one moment, by object id."""


@dataclass(frozen=True)
class Advance:
    """ObjectUpdates, and the picture of a client that took them in.

    Truncated, there is more to tell; the picture is then between two moments.
    """

    updates: list[Any]
    picture: Picture
    truncated: bool


def advance(old: Picture, new: list[Selected], version: str, limit: int | None) -> Advance:
    """Tell a client that has the old picture what came, went or changed, `limit` objects at most."""
    now = {item.ref._moId: item for item in new}
    shown = dict(old)
    told: list[Any] = []
    for moid in [*now, *(gone for gone in old if gone not in now)]:
        update = _update(old.get(moid), now.get(moid), version)
        if update is None:
            if moid in now:
                shown[moid] = now[moid]
            continue
        if limit is not None and len(told) >= limit:
            return Advance(told, shown, truncated=True)
        told.append(update)
        if moid in now:
            shown[moid] = now[moid]
        else:
            del shown[moid]
    return Advance(told, shown, truncated=False)


def _update(old: Selected | None, new: Selected | None, version: str) -> Any:
    """The ObjectUpdate from one look at an object to the next, None when nothing changed."""
    if new is None:
        return None if old is None else Q.ObjectUpdate(kind="leave", obj=old.ref)
    if old is None:
        return Q.ObjectUpdate(
            kind="enter",
            obj=new.ref,
            changeSet=[_change(path, new.values[path]) for path in sorted(new.values)],
            missingSet=_missing(new, new.refused),
        )
    if old is new:
        return None
    changes = [
        _change(path, new.values.get(path))
        for path in sorted(old.values.keys() | new.values.keys())
        if path not in new.refused
        and not _same(old.values.get(path), new.values.get(path), version)
    ]
    # A path that may be read again is told even if it has the value of before.
    changes += [
        _change(path, new.values.get(path))
        for path in sorted(old.refused - new.refused)
        if path not in old.values and path not in new.values
    ]
    missing = _missing(new, new.refused - old.refused)
    if not changes and not missing:
        return None
    return Q.ObjectUpdate(kind="modify", obj=new.ref, changeSet=changes, missingSet=missing)


def _same(old: Any, new: Any, version: str) -> bool:
    if old is None or new is None:
        return old is new
    return fingerprint(old, version) == fingerprint(new, version)


def _missing(item: Selected, paths: frozenset[str]) -> list[Any]:
    return [
        Q.MissingProperty(
            path=path,
            fault=vim.fault.NoPermission(
                msg="Permission to perform this operation was denied.",
                object=item.ref,
                privilegeId="System.Read",
            ),
        )
        for path in sorted(paths)
    ]


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
    return {path: _below(managed, path, heads[path.partition(".")[0]]) for path in paths}


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
