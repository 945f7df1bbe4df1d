"""VM folders of vCenter: where a VM lies, folders made along a path, and empty ones taken away.

Names are as vCenter has them, with `%2f` for a slash. Source: vSphere Web Services API, Folder.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from pyVmomi import vim

from atoll.vsphere.collector import Row, read_all, read_objects

_CHILDREN_A_PAGE = 500

_T = TypeVar("_T")


class FolderTree:
    """All folders and datacenters that the user sees, at one look."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = rows
        self._tops = {
            row.get("vmFolder")._moId: row.moref
            for row in rows.values()
            if row.get("vmFolder") is not None
        }

    @classmethod
    def read(cls, content: Any, page_objects: int) -> Self:
        """Look."""
        paths = {vim.Folder: ("name", "parent"), vim.Datacenter: ("name", "vmFolder")}
        return cls({row.moref: row for row in read_all(content, paths, page_objects)})

    def path(self, folder: Any | None, home: str) -> tuple[str, ...]:
        """The folders from the top of a datacenter to this one; none for a VM in no folder.

        Of another datacenter than `home`, an id, it begins with the datacenter's name.
        """
        names: list[str] = []
        at = folder._moId if folder is not None else ""
        while at not in self._tops:
            row = self._rows.get(at)
            if row is None or row.get("parent") is None:
                return tuple(reversed(names))
            names.append(str(row.get("name", at)))
            at = row.get("parent")._moId
        datacenter = self._tops[at]
        if datacenter != home:
            names.append(str(self._rows[datacenter].get("name", datacenter)))
        return tuple(reversed(names))

    def below(self, top: str) -> list[str]:
        """Ids of all folders below one, the deepest first."""
        parents: dict[str, str] = {
            row.moref: row.get("parent")._moId
            for row in self._rows.values()
            if row.get("parent") is not None
        }
        below = [folder for folder in parents if top in _line(folder, parents)]
        return sorted(below, key=lambda folder: len(_line(folder, parents)), reverse=True)


def _line(folder: str, parents: Mapping[str, str]) -> list[str]:
    """What a folder lies in, nearest first."""
    line = []
    while folder in parents:
        folder = parents[folder]
        line.append(folder)
    return line


def child(content: Any, folder: Any, name: str) -> Any | None:
    """The folder of that name in a folder."""
    ids = [each._moId for each in _children(content, folder) if isinstance(each, vim.Folder)]
    for row in read_objects(content, vim.Folder, ids, ("name",), _CHILDREN_A_PAGE):
        if row.get("name") == name:
            return bound(content, vim.Folder, row.moref)
    return None


def is_empty(content: Any, folder: Any) -> bool:
    """Whether nothing at all is in a folder."""
    return not _children(content, folder)


def read_one(content: Any, managed: Any, paths: tuple[str, ...]) -> Mapping[str, Any]:
    """Properties of one object by path; what is not set is left out."""
    (row,) = read_objects(content, type(managed), [managed._moId], paths, 1)
    return row.values


def bound(content: Any, kind: Callable[..., _T], moref: str) -> _T:
    """An object by its id that can be called."""
    return kind(moref, content.rootFolder._stub)


def _children(content: Any, folder: Any) -> list[Any]:
    return list(read_one(content, folder, ("childEntity",)).get("childEntity") or ())
