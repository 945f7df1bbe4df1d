"""Hosts, datastores and VMs as Atoll's nouns, from one bulk look or from a followed picture."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from atoll.model.inventory import (
    Datastore,
    Host,
    Inventory,
    LeftOutVm,
    VirtualDisk,
    VirtualMachine,
)
from atoll.vsphere.collector import read_all
from atoll.vsphere.facts import (
    KINDS,
    DatastoreFacts,
    DiskFacts,
    Facts,
    HostFacts,
    VmFacts,
    kind_of,
)
from atoll.vsphere.placeholders import skip_reason

_UUID_PREFIX = 10  # digits before a LUN's own name: kind, 0, the LUN number, two zeros


@dataclass(frozen=True, slots=True)
class Reading:
    """An inventory and the names it gave: by moref of host and datastore."""

    inventory: Inventory
    names: Mapping[str, str]


def read_inventory(content: Any, page_objects: int) -> Reading:
    """Read everything in one look; vSphere faults pass through."""
    rows = read_all(content, {kind.managed: kind.paths for kind in KINDS}, page_objects)
    return assemble([kind_of(row.kind).read(row.moref, row.values) for row in rows])


def assemble(facts: Iterable[Facts]) -> Reading:
    """The inventory that these rows are; rows of one kind keep their order."""
    hosts: list[HostFacts] = []
    datastores: list[DatastoreFacts] = []
    machines: list[VmFacts] = []
    for row in facts:
        if isinstance(row, HostFacts):
            hosts.append(row)
        elif isinstance(row, DatastoreFacts):
            datastores.append(row)
        else:
            machines.append(row)
    names = names_of({row.moref: row.name for row in hosts})
    names |= names_of({row.moref: row.name for row in datastores})
    luns = luns_by_uuid(hosts)
    local_luns = frozenset[str]().union(*(row.luns.local for row in hosts))
    stores = {row.moref: row for row in datastores}
    vms: list[VirtualMachine] = []
    left_out: list[LeftOutVm] = []
    for machine in machines:
        found = _vm(machine, names, stores, luns)
        if isinstance(found, LeftOutVm):
            left_out.append(found)
        else:
            vms.append(found)
    return Reading(
        inventory=Inventory(
            hosts=tuple(Host(row.moref, names[row.moref], row.iqn or None) for row in hosts),
            datastores=tuple(_datastore(row, names, local_luns) for row in datastores),
            vms=tuple(vms),
            left_out=tuple(left_out),
        ),
        names=names,
    )


def names_of(names: Mapping[str, str]) -> dict[str, str]:
    """Names by moref. Names are unique per datacenter only: equal ones get their moref added."""
    raw = {moref: name or moref for moref, name in names.items()}
    times = Counter(raw.values())
    return {moref: name if times[name] == 1 else f"{name} ({moref})" for moref, name in raw.items()}


def split_path(path: str) -> tuple[str, str]:
    """`[datastore] dir/file` as its two parts."""
    store, bracket, inside = path.partition("] ")
    return (store.removeprefix("["), inside) if bracket else ("", path)


def is_linked_clone(vm: VmFacts) -> bool:
    """Whether a disk has files in another folder that no VMware snapshot of this VM explains.

    Deltas left behind by a consolidation that failed lie in the disk's own.
    """
    return any(
        len(disk.below) > (0 if disk.mode.startswith("independent") else vm.snapshots.depth)
        and len({_folder(file) for file in (disk.file, *disk.below)}) > 1
        for disk in vm.disks
    )


def luns_by_uuid(hosts: Iterable[HostFacts]) -> Mapping[str, str]:
    """Canonical names of LUNs by `ScsiLun.uuid`, and by what of it is the LUN's own.

    That is all but the first ten digits, which hold the number under which a host
    sees the LUN (0x32 in `0200320000…`). What means different LUNs to different hosts
    is left out.
    """
    found: dict[str, set[str]] = {}
    for host in hosts:
        for uuid, name in host.luns.by_uuid.items():
            for known in (uuid, uuid[_UUID_PREFIX:]):
                found.setdefault(known, set()).add(name)
    return {uuid: names.pop() for uuid, names in found.items() if uuid and len(names) == 1}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _datastore(
    row: DatastoreFacts, names: Mapping[str, str], local_luns: frozenset[str]
) -> Datastore:
    volume = row.volume
    if volume is None:
        return Datastore(
            moref=row.moref,
            name=names[row.moref],
            kind=row.type or "unknown",
            extents=(),
            shared=row.several_hosts,
            vmfs_uuid=None,
        )
    # A volume on an array's LUN counts as shared even while one host alone has mounted it.
    return Datastore(
        moref=row.moref,
        name=names[row.moref],
        kind="VMFS",
        extents=volume.extents,
        shared=not volume.local and local_luns.isdisjoint(volume.extents),
        vmfs_uuid=volume.uuid,
    )


def _vm(
    vm: VmFacts,
    names: Mapping[str, str],
    stores: Mapping[str, DatastoreFacts],
    luns: Mapping[str, str],
) -> VirtualMachine | LeftOutVm:
    name = vm.name or vm.moref
    if not vm.instance_uuid or not vm.vmx or not vm.host:
        state = vm.connection or "unknown"
        return LeftOutVm(name, f"vCenter does not have its configuration at the moment ({state})")
    reason = skip_reason(name, vm.manager or None, len(vm.disks))
    if reason is not None:
        return LeftOutVm(name, reason)
    if not vm.in_contact:
        return LeftOutVm(name, f"vCenter has no contact with it at the moment ({vm.connection})")
    by_name = {stores[moref].name: moref for moref in vm.datastores if moref in stores}
    disks = []
    for facts in vm.disks:
        disk = _disk(facts, names, by_name, luns)
        if disk is None:
            return LeftOutVm(name, f"{facts.label} lies on a datastore this user may not see")
        disks.append(disk)
    if vm.host not in names:
        return LeftOutVm(name, "it runs on a host this user may not see")
    store, inside = split_path(vm.vmx)
    return VirtualMachine(
        moref=vm.moref,
        instance_uuid=vm.instance_uuid,
        name=name,
        host=names[vm.host],
        powered_on=vm.power == "poweredOn",
        template=vm.template,
        guest_os=vm.guest_os,
        disks=tuple(disks),
        has_snapshot=bool(vm.snapshots.names) or any(disk.below for disk in vm.disks),
        vmx_path=f"[{names.get(by_name.get(store, ''), store)}] {inside}",
        suspended=vm.power == "suspended",
        linked_clone=is_linked_clone(vm),
        consolidation_needed=vm.consolidation_needed,
        bios_uuid=vm.bios_uuid,
    )


def _disk(
    disk: DiskFacts,
    names: Mapping[str, str],
    by_name: Mapping[str, str],
    luns: Mapping[str, str],
) -> VirtualDisk | None:
    store, path = split_path(disk.file)
    moref = disk.datastore or by_name.get(store, "")
    if moref not in names:
        return None
    return VirtualDisk(
        key=disk.key,
        label=disk.label,
        datastore=names[moref],
        path=path,
        size_bytes=disk.size_bytes,
        mode=disk.mode,
        rdm=disk.rdm_mode is not None,
        rdm_mode=disk.rdm_mode or None,
        lun_uuid=disk.lun_uuid,
        lun=luns.get(disk.lun_uuid) or luns.get(disk.lun_uuid[_UUID_PREFIX:], ""),
        below=tuple(_renamed(file, names, by_name) for file in disk.below),
    )


def _renamed(file: str, names: Mapping[str, str], by_name: Mapping[str, str]) -> str:
    """A path with its datastore called as the inventory does."""
    store, path = split_path(file)
    return f"[{names.get(by_name.get(store, ''), store)}] {path}"
