"""Places for VMs by name and path: hosts, folders, resource pools, datastores and networks.

A path has the names from the root folder down, `/Datacenters/lab/vm/web`, as vCenter has them
(`%2f` for a slash in a name). Source: vSphere Web Services API, ManagedEntity.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pyVmomi import vim

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.collector import Row, read_all, read_objects
from atoll.vsphere.hosts import find_host

_PATHS = {
    vim.Folder: ("name", "parent", "childType"),
    vim.Datacenter: ("name", "parent", "vmFolder"),
    vim.ComputeResource: ("name", "parent", "resourcePool"),
    vim.ResourcePool: ("name", "parent"),
    vim.HostSystem: ("name", "parent", "datastore", "network"),
    vim.Datastore: ("name",),
    vim.Network: ("name",),
}


@dataclass(frozen=True, slots=True)
class WantedPlace:
    """Where a VM is to be: the name of a host, paths of a folder and a resource pool.

    Without a folder it is the top of the host's datacenter, without a pool the host's own. The
    path of either may begin below the root folder. `datastore` takes the VM's own files.
    """

    host: str
    datastore: str
    folder: str = ""
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A place that was found: ids, and the names of the standard networks that the host has."""

    host: str
    folder: str
    pool: str
    networks: frozenset[str]


class Places:
    """All there is, at one look."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.moref: row for row in rows}

    @classmethod
    def read(cls, content: Any, page_objects: int) -> Self:
        """Look. Raises vim.fault.NoPermission where the user may not read one of the paths."""
        root = content.rootFolder._moId
        top = read_objects(content, vim.Folder, [root], _PATHS[vim.Folder], 1)
        return cls([*top, *read_all(content, _PATHS, page_objects)])

    def path(self, moref: str) -> str:
        """The path of an object, up to the root folder or to what the user does not see."""
        names: list[str] = []
        row = self._rows.get(moref)
        while row is not None:
            names.append(str(row.get("name", row.moref)))
            parent = row.get("parent")
            row = self._rows.get(parent._moId) if parent is not None else None
        return "/" + "/".join(reversed(names))

    def folders(self) -> Mapping[str, str]:
        """Paths of the folders that take VMs, by id."""
        return {
            row.moref: self.path(row.moref)
            for row in self._of(vim.Folder)
            if "VirtualMachine" in {_type_name(each) for each in row.get("childType") or ()}
        }

    def pools(self) -> Mapping[str, str]:
        """Paths of the resource pools, by id."""
        return {row.moref: self.path(row.moref) for row in self._of(vim.ResourcePool)}

    def find(self, wanted: WantedPlace, datastores: Iterable[str]) -> Place:
        """The ids of a place; VCenterOperationError when part of it is not there.

        The host must have mounted all the datastores.
        """
        host = find_host(self._rows.values(), wanted.host)
        mounted = {self._name(ref) for ref in host.get("datastore") or ()}
        for name in sorted({wanted.datastore, *datastores} - mounted):
            raise VCenterOperationError(
                f"Host {wanted.host} has no datastore {name}; it has "
                f"{', '.join(sorted(mounted)) or 'none'}."
            )
        pool = _by_path(self.pools(), wanted.pool, "resource pool") if wanted.pool else ""
        owner = host.get("parent")._moId
        if not pool:
            pool = self._rows[owner].get("resourcePool")._moId
        elif owner not in self._line(pool):
            raise VCenterOperationError(
                f"Resource pool {wanted.pool} is none of host {wanted.host}; name one of "
                f"{self.path(owner)}."
            )
        folder = _by_path(self.folders(), wanted.folder, "folder for VMs") if wanted.folder else ""
        datacenter = next(
            (at for at in self._line(host.moref) if self._rows[at].kind is vim.Datacenter), None
        )
        if datacenter is None:
            raise VCenterOperationError(
                f"Host {wanted.host} is in no datacenter that this user may see."
            )
        if folder and datacenter not in self._line(folder):
            raise VCenterOperationError(
                f"Folder {wanted.folder} is in another datacenter than host {wanted.host}; name one "
                f"of {self.path(datacenter)}."
            )
        return Place(
            host=host.moref,
            folder=folder or self._rows[datacenter].get("vmFolder")._moId,
            pool=pool,
            networks=frozenset(
                self._name(ref)
                for ref in host.get("network") or ()
                if ref._moId in self._rows and self._rows[ref._moId].kind is vim.Network
            ),
        )

    def _of(self, kind: Any) -> list[Row]:
        return [row for row in self._rows.values() if issubclass(row.kind, kind)]

    def _name(self, ref: Any) -> str:
        row = self._rows.get(ref._moId)
        return str(row.get("name", "")) if row is not None else ""

    def _line(self, moref: str) -> list[str]:
        """What an object lies in, nearest first."""
        line = []
        row = self._rows.get(moref)
        while row is not None and row.get("parent") is not None:
            moref = row.get("parent")._moId
            row = self._rows.get(moref)
            if row is not None:
                line.append(moref)
        return line


def _by_path(known: Mapping[str, str], path: str, what: str) -> str:
    wanted = "/" + path.strip("/")
    for moref, full in known.items():
        # The root folder's name differs between vCenter and a host; it may be left out.
        if wanted in (full, "/" + full.lstrip("/").partition("/")[2]):
            return moref
    raise VCenterOperationError(
        f"There is no {what} {path}; there are {', '.join(sorted(known.values())) or 'none'}."
    )


def _type_name(kind: Any) -> str:
    """`childType` holds types by name; pyVmomi gives them as types or as text."""
    return str(getattr(kind, "_wsdlName", None) or getattr(kind, "__name__", kind)).rpartition(".")[
        2
    ]
