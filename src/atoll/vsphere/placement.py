"""Where VMs are at this moment: a re-read quick enough for either side of a snapshot."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim, vmodl

from atoll.model.inventory import Placement
from atoll.vsphere.collector import Row, read_all, read_objects
from atoll.vsphere.inventory import Reading, names_of

_PATHS = (
    "config.instanceUuid",
    "config.hardware.device",
    "datastore",
    "runtime.host",
    "runtime.powerState",
    "snapshot",
)


@dataclass
class PlacementReader:
    """Remembers morefs and names, so that a re-read is one call for the asked VMs alone.

    What it remembers is checked by what it reads: a moref that is gone or
    belongs to another VM now is looked up again, as is a name it does not know.
    """

    page_objects: int
    _morefs: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def learn(self, reading: Reading) -> None:
        """Take morefs and names from an inventory."""
        self._names = dict(reading.names)
        self._morefs = {vm.instance_uuid: vm.moref for vm in reading.inventory.vms}

    def read(self, content: Any, instance_uuids: Iterable[str]) -> Mapping[str, Placement]:
        """Placements by instance UUID; a VM that vCenter does not know is left out."""
        wanted = set(instance_uuids)
        rows = self._known_rows(content, wanted)
        if len(rows) < len(wanted):
            found = read_all(content, {vim.VirtualMachine: _PATHS}, self.page_objects)
            rows = {
                uuid: row for row in found if (uuid := row.get("config.instanceUuid")) in wanted
            }
            self._morefs.update({uuid: row.moref for uuid, row in rows.items()})
        if any(moref not in self._names for row in rows.values() for moref in _places(row)):
            stores = read_all(content, {vim.Datastore: ("name",)}, self.page_objects)
            hosts = read_all(content, {vim.HostSystem: ("name",)}, self.page_objects)
            self._names = names_of(hosts) | names_of(stores)
        return {uuid: self._placement(row) for uuid, row in rows.items()}

    def _known_rows(self, content: Any, wanted: set[str]) -> dict[str, Row]:
        morefs = [self._morefs[uuid] for uuid in wanted if uuid in self._morefs]
        try:
            rows = read_objects(content, vim.VirtualMachine, morefs, _PATHS, self.page_objects)
        except vmodl.fault.ManagedObjectNotFound:
            return {}
        return {uuid: row for row in rows if (uuid := row.get("config.instanceUuid")) in wanted}

    def _placement(self, row: Row) -> Placement:
        host, *datastores = _places(row)
        return Placement(
            host=self._names.get(host, host),
            datastores=tuple(sorted(self._names.get(moref, moref) for moref in datastores)),
            disks=tuple(sorted(self._disk_files(row))),
            powered_on=row.get("runtime.powerState") == "poweredOn",
            has_snapshot=row.get("snapshot") is not None,
        )

    def _disk_files(self, row: Row) -> Iterator[tuple[int, str, str]]:
        """Device key, datastore and path in it of each disk."""
        for device in row.get("config.hardware.device", ()):
            if isinstance(device, vim.vm.device.VirtualDisk):
                name = str(getattr(device.backing, "fileName", "") or "")
                store, bracket, path = name.partition("] ")
                reference = getattr(device.backing, "datastore", None)
                shown = store.removeprefix("[") if bracket else ""
                if reference is not None:
                    shown = self._names.get(reference._moId, shown)
                yield device.key, shown, path if bracket else name


def _places(row: Row) -> list[str]:
    """Morefs: the host, then the datastores."""
    host = row.get("runtime.host")
    return [
        host._moId if host is not None else "",
        *(ref._moId for ref in row.get("datastore", ())),
    ]
