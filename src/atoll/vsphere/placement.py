"""Where VMs are at this moment: a re-read quick enough for either side of a snapshot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vmodl

from atoll.model.inventory import Placement
from atoll.vsphere.collector import Row, read_all, read_objects
from atoll.vsphere.facts import DATASTORE, HOST, VM, VmFacts
from atoll.vsphere.inventory import Reading, names_of, split_path

_PATHS = (
    "config.instanceUuid",
    "config.hardware.device",
    "datastore",
    "runtime.connectionState",
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
        found = self._known(content, wanted)
        if len(found) < len(wanted):
            found = _by_uuid(read_all(content, {VM.managed: _PATHS}, self.page_objects), wanted)
            self._morefs.update({uuid: vm.moref for uuid, vm in found.items()})
        if any(moref not in self._names for vm in found.values() for moref in _places(vm)):
            self._names = {}
            for kind in (HOST, DATASTORE):
                rows = read_all(content, {kind.managed: ("name",)}, self.page_objects)
                self._names |= names_of({row.moref: str(row.get("name", "")) for row in rows})
        return placements(found.values(), self._names)

    def _known(self, content: Any, wanted: set[str]) -> dict[str, VmFacts]:
        morefs = [self._morefs[uuid] for uuid in wanted if uuid in self._morefs]
        try:
            rows = read_objects(content, VM.managed, morefs, _PATHS, self.page_objects)
        except vmodl.fault.ManagedObjectNotFound:
            return {}
        return _by_uuid(rows, wanted)


def placements(vms: Iterable[VmFacts], names: Mapping[str, str]) -> dict[str, Placement]:
    """Placements by instance UUID; `names` are those of hosts and datastores by moref.

    A VM that vCenter has no contact with is left out: what vCenter says of it
    is from before its host stopped answering.
    """
    return {
        vm.instance_uuid: Placement(
            host=names.get(vm.host, vm.host),
            datastores=tuple(sorted(names.get(moref, moref) for moref in vm.datastores)),
            disks=tuple(sorted(_disk_files(vm, names))),
            powered_on=vm.power == "poweredOn",
            has_snapshot=bool(vm.snapshots.names),
            raw_luns=tuple(sorted((d.key, d.lun_uuid) for d in vm.disks if d.lun_uuid)),
        )
        for vm in vms
        if vm.in_contact
    }


def _by_uuid(rows: Iterable[Row], wanted: set[str]) -> dict[str, VmFacts]:
    found = (VM.read(row.moref, row.values) for row in rows)
    return {vm.instance_uuid: vm for vm in found if vm.instance_uuid in wanted}


def _disk_files(vm: VmFacts, names: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Device key, datastore and path in it of each disk."""
    files = []
    for disk in vm.disks:
        store, path = split_path(disk.file)
        files.append((disk.key, names.get(disk.datastore or "", store), path))
    return files


def _places(vm: VmFacts) -> tuple[str, ...]:
    return (vm.host, *vm.datastores)
