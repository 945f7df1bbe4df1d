"""Properties of many objects in bulk, by leaf path and in pages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

_Q = vmodl.query.PropertyCollector


@dataclass(frozen=True, slots=True)
class Row:
    """One object: its moref, its pyVmomi type, and the values of the paths that are set."""

    moref: str
    kind: Any
    values: Mapping[str, Any]

    def get(self, path: str, default: Any = None) -> Any:
        """The value of a path, `default` when unset."""
        return self.values.get(path, default)


def read_all(content: Any, paths: Mapping[Any, Sequence[str]], page_objects: int) -> list[Row]:
    """Every object of the given types below the root folder, in one look.

    `paths` maps a pyVmomi type to leaf paths. Raises vim.fault.NoPermission
    where the user may not read a path: a value left out in silence would look
    like one that is not set.
    """
    view = content.viewManager.CreateContainerView(content.rootFolder, list(paths), True)
    try:
        walk = _Q.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        start = _Q.ObjectSpec(obj=view, skip=True, selectSet=[walk])
        return _retrieve(content, [start], paths, page_objects)
    finally:
        view.DestroyView()


def read_objects(
    content: Any, kind: Any, morefs: Iterable[str], paths: Sequence[str], page_objects: int
) -> list[Row]:
    """The given objects. Raises vmodl.fault.ManagedObjectNotFound if one of them is gone."""
    starts = [_Q.ObjectSpec(obj=kind(moref), skip=False) for moref in morefs]
    return _retrieve(content, starts, {kind: paths}, page_objects) if starts else []


def _retrieve(
    content: Any, starts: Sequence[Any], paths: Mapping[Any, Sequence[str]], page_objects: int
) -> list[Row]:
    collector = content.propertyCollector
    wanted = [_Q.PropertySpec(type=kind, pathSet=list(leaves)) for kind, leaves in paths.items()]
    spec = _Q.FilterSpec(objectSet=list(starts), propSet=wanted)
    page = collector.RetrievePropertiesEx([spec], _Q.RetrieveOptions(maxObjects=page_objects))
    rows: list[Row] = []
    while page is not None:
        rows.extend(_row(item) for item in page.objects)
        if not page.token:
            break
        page = collector.ContinueRetrievePropertiesEx(page.token)
    return rows


def _row(item: Any) -> Row:
    for missing in item.missingSet:
        if isinstance(missing.fault, vim.fault.NoPermission):
            raise missing.fault
    return Row(
        moref=item.obj._moId,
        kind=type(item.obj),
        values={each.name: each.val for each in item.propSet},
    )
