"""Hosts, datastores and VMs in one bulk look, as Atoll's nouns."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from atoll.model.inventory import (
    Datastore,
    Host,
    Inventory,
    LeftOutVm,
    VirtualDisk,
    VirtualMachine,
)
from atoll.vsphere.collector import Row, read_all
from atoll.vsphere.placeholders import skip_reason

HOST_PATHS = (
    "name",
    "config.storageDevice.hostBusAdapter",
    "config.storageDevice.scsiLun",
)
DATASTORE_PATHS = ("name", "info", "summary.type", "summary.multipleHostAccess")
VM_PATHS = (
    "name",
    "config.instanceUuid",
    "config.template",
    "config.guestFullName",
    "config.files.vmPathName",
    "config.hardware.device",
    "config.managedBy",
    "runtime.host",
    "runtime.powerState",
    "runtime.connectionState",
    "snapshot",
    "datastore",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """An inventory and the names it gave: by moref of host and datastore."""

    inventory: Inventory
    names: Mapping[str, str]


def read_inventory(content: Any, page_objects: int) -> Reading:
    """Read everything in one look; vSphere faults pass through."""
    rows = read_all(
        content,
        {
            vim.HostSystem: HOST_PATHS,
            vim.Datastore: DATASTORE_PATHS,
            vim.VirtualMachine: VM_PATHS,
        },
        page_objects,
    )
    hosts = [row for row in rows if issubclass(row.kind, vim.HostSystem)]
    datastores = [row for row in rows if issubclass(row.kind, vim.Datastore)]
    names = names_of(hosts) | names_of(datastores)
    local_luns = _local_luns(hosts)
    vms: list[VirtualMachine] = []
    left_out: list[LeftOutVm] = []
    for row in rows:
        if issubclass(row.kind, vim.VirtualMachine):
            found = _vm(row, names, datastores)
            if isinstance(found, LeftOutVm):
                left_out.append(found)
            else:
                vms.append(found)
    return Reading(
        inventory=Inventory(
            hosts=tuple(_host(row, names) for row in hosts),
            datastores=tuple(_datastore(row, names, local_luns) for row in datastores),
            vms=tuple(vms),
            left_out=tuple(left_out),
        ),
        names=names,
    )


def names_of(rows: Sequence[Row]) -> dict[str, str]:
    """Names by moref. Names are unique per datacenter only: equal ones get their moref added."""
    raw = {row.moref: str(row.get("name", row.moref)) for row in rows}
    times = Counter(raw.values())
    return {moref: name if times[name] == 1 else f"{name} ({moref})" for moref, name in raw.items()}


def _host(row: Row, names: Mapping[str, str]) -> Host:
    adapters = row.get("config.storageDevice.hostBusAdapter", ())
    iscsi = [each for each in adapters if isinstance(each, vim.host.InternetScsiHba)]
    # The software adapter is the one Atoll can present LUNs to without touching hardware.
    iscsi.sort(key=lambda each: not each.isSoftwareBased)
    return Host(moref=row.moref, name=names[row.moref], iqn=iscsi[0].iScsiName if iscsi else None)


def _local_luns(hosts: Sequence[Row]) -> set[str]:
    """Canonical names of disks inside a host (HostScsiDisk.localDisk, since API 6.0)."""
    return {
        str(lun.canonicalName)
        for row in hosts
        for lun in row.get("config.storageDevice.scsiLun", ())
        if isinstance(lun, vim.host.ScsiDisk) and lun.localDisk
    }


def _datastore(row: Row, names: Mapping[str, str], local_luns: set[str]) -> Datastore:
    vmfs = getattr(row.get("info"), "vmfs", None)
    if vmfs is None:
        return Datastore(
            moref=row.moref,
            name=names[row.moref],
            kind=str(row.get("summary.type", "unknown")),
            extents=(),
            shared=bool(row.get("summary.multipleHostAccess", False)),
            vmfs_uuid=None,
        )
    extents = tuple(extent.diskName for extent in vmfs.extent)
    # A volume on an array's LUN counts as shared even while one host alone has mounted it.
    return Datastore(
        moref=row.moref,
        name=names[row.moref],
        kind="VMFS",
        extents=extents,
        shared=not vmfs.local and local_luns.isdisjoint(extents),
        vmfs_uuid=vmfs.uuid,
    )


def _vm(
    row: Row, names: Mapping[str, str], datastores: Sequence[Row]
) -> VirtualMachine | LeftOutVm:
    name = str(row.get("name", row.moref))
    uuid, vmx = row.get("config.instanceUuid"), row.get("config.files.vmPathName")
    host = row.get("runtime.host")
    if not uuid or vmx is None or host is None:
        state = row.get("runtime.connectionState", "unknown")
        return LeftOutVm(name, f"vCenter does not have its configuration at the moment ({state})")
    devices = [
        each
        for each in row.get("config.hardware.device", ())
        if isinstance(each, vim.vm.device.VirtualDisk)
    ]
    manager = row.get("config.managedBy")
    reason = skip_reason(name, manager.extensionKey if manager else None, len(devices))
    if reason is not None:
        return LeftOutVm(name, reason)
    by_name = {
        str(store.get("name")): store.moref
        for store in datastores
        if store.moref in {ref._moId for ref in row.get("datastore", ())}
    }
    disks = []
    for device in devices:
        disk = _disk(device, names, by_name)
        if disk is None:
            return LeftOutVm(name, f"{_label(device)} lies on a datastore this user may not see")
        disks.append(disk)
    if host._moId not in names:
        return LeftOutVm(name, "it runs on a host this user may not see")
    has_delta = any(getattr(each.backing, "parent", None) is not None for each in devices)
    return VirtualMachine(
        moref=row.moref,
        instance_uuid=uuid,
        name=name,
        host=names[host._moId],
        powered_on=row.get("runtime.powerState") == "poweredOn",
        template=bool(row.get("config.template", False)),
        guest_os=str(row.get("config.guestFullName", "")),
        disks=tuple(disks),
        has_snapshot=row.get("snapshot") is not None or has_delta,
        vmx_path=_named_path(vmx, names, by_name),
        suspended=row.get("runtime.powerState") == "suspended",
    )


def _disk(device: Any, names: Mapping[str, str], by_name: Mapping[str, str]) -> VirtualDisk | None:
    backing = device.backing
    store, path = _split(getattr(backing, "fileName", "") or "")
    reference = getattr(backing, "datastore", None)
    moref = reference._moId if reference is not None else by_name.get(store, "")
    if moref not in names:
        return None
    rdm_backings = (
        vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo,
        vim.vm.device.VirtualDisk.RawDiskVer2BackingInfo,
    )
    return VirtualDisk(
        key=device.key,
        label=_label(device),
        datastore=names[moref],
        path=path,
        size_bytes=device.capacityInBytes or device.capacityInKB * 1024,
        mode=str(getattr(backing, "diskMode", None) or "persistent"),
        rdm=isinstance(backing, rdm_backings),
    )


def _label(device: Any) -> str:
    return str(device.deviceInfo.label) if device.deviceInfo else f"disk {device.key}"


def _split(path: str) -> tuple[str, str]:
    """`[datastore] dir/file` as its two parts."""
    store, bracket, inside = path.partition("] ")
    return (store.removeprefix("["), inside) if bracket else ("", path)


def _named_path(path: str, names: Mapping[str, str], by_name: Mapping[str, str]) -> str:
    """The path with the datastore's name as the inventory gives it."""
    store, inside = _split(path)
    return f"[{names.get(by_name.get(store, ''), store)}] {inside}"
