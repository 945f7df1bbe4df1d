"""ImportVApp: a VM made of a VmImportSpec, and the lease under which its disks are sent.

Privileges are those that the API reference has for ImportVApp and CreateVM_Task: VApp.Import and
Resource.AssignVMToPool at the pool; VirtualMachine.Inventory.Create at the folder, with
VirtualMachine.Config.AddNewDisk for disks and AdvancedConfig for extraConfig;
Datastore.AllocateSpace at each datastore, Network.Assign at each network.
"""

import threading
import uuid
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.authorization import require_privilege
from atoll_lab.vcenter.objects.base import Call
from atoll_lab.vcenter.objects.device_keys import first_keys
from atoll_lab.vcenter.objects.http_nfc_lease import HttpNfcLease
from atoll_lab.vcenter.objects.network import NETWORK, NETWORK_NAME
from atoll_lab.vcenter.objects.vm_configuration import refuse_duplicate
from atoll_lab.vcenter.state import ControllerState, DiskState, NicState, VmState

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.compute_resource import ResourcePool
    from atoll_lab.vcenter.objects.datastore import Datastore
    from atoll_lab.vcenter.site import Site

_Device = vim.vm.device
_NIC_KEY = 4000
_RESERVED_SCSI_UNIT = 7


def import_vapp(pool: "ResourcePool", call: Call, spec: Any, folder: Any, host: Any) -> Any:
    """Begin an import and return its lease; what is wrong with the spec is a fault at once."""
    site = pool.site
    if not isinstance(spec, vim.vm.VmImportSpec):
        raise vmodl.fault.InvalidArgument(
            msg="The simulator imports VMs alone", invalidProperty="spec"
        )
    if folder is None:
        raise vmodl.fault.NotSupported(msg="A VM is imported into a folder")
    parent = site.folder(folder._moId)
    with site.change():
        state, names = _described(pool, call, spec.configSpec, parent.moid, host)
        lease = HttpNfcLease(
            site,
            f"session[{uuid.uuid4()}]{uuid.uuid4()}",
            call.session.key,
            str(uuid.uuid4()),
            site.lease_seconds,
        )
        site.registry.add(lease)
        site.leases[lease.ticket] = lease
    threading.Thread(
        target=_make, args=(site, lease, state, names), name=lease.moid, daemon=True
    ).start()
    return lease.ref


def _make(site: "Site", lease: HttpNfcLease, state: VmState, names: dict[int, str]) -> None:
    try:
        site.faults.strike("task", "ImportVApp", (state.name,))
        with site.change():
            refuse_duplicate(site, state.folder, state.name)
            site.add_vm(state)
    except vmodl.MethodFault as fault:
        lease.fail(fault)
        return
    lease.begin(state.moid, names)


def _described(
    pool: "ResourcePool", call: Call, config: Any, folder: str, host: Any
) -> tuple[VmState, dict[int, str]]:
    """The VM's record, and what a lease calls its disks."""
    site, user = pool.site, call.session.user or ""
    for privilege in ("VApp.Import", "Resource.AssignVMToPool"):
        require_privilege(site, user, pool, privilege)
    needed = ["VirtualMachine.Inventory.Create"]
    if any(isinstance(each.device, _Device.VirtualDisk) for each in config.deviceChange):
        needed.append("VirtualMachine.Config.AddNewDisk")
    if config.extraConfig:
        needed.append("VirtualMachine.Config.AdvancedConfig")
    for privilege in needed:
        require_privilege(site, user, site.folder(folder), privilege)
    refuse_duplicate(site, folder, config.name)
    chosen = host._moId if host is not None else pool.owner.members[0].moid
    if chosen not in {member.moid for member in pool.owner.members}:
        raise vmodl.fault.InvalidArgument(
            msg="The host is none of the pool's", invalidProperty="host"
        )
    home = _datastore(site, user, str(config.files.vmPathName), chosen)
    state = VmState(
        moid=site.new_id("vm"),
        name=config.name,
        instance_uuid=config.instanceUuid or str(uuid.uuid4()),
        bios_uuid=config.uuid or str(uuid.uuid4()),
        host=chosen,
        datastore=home.moid,
        vmx_path=_free_path(site, home, config.name),
        guest_os=config.guestId,
        guest_id=config.guestId,
        firmware=config.firmware or "bios",
        cpus=config.numCPUs or 1,
        memory_mb=config.memoryMB or 32,
        annotation=config.annotation or "",
        folder=folder,
        disks=[],
        extra={str(each.key): str(each.value) for each in config.extraConfig},
        importing=True,
    )
    if any(vm.state.instance_uuid == state.instance_uuid for vm in site.vms()):
        state.instance_uuid = str(uuid.uuid4())
    names = _devices(site, user, state, config)
    return state, names


def _devices(site: "Site", user: str, state: VmState, config: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    # Those are in every VM.
    controllers: dict[int, tuple[Any, int]] = {
        200 + bus: (_Device.VirtualIDEController, bus) for bus in (0, 1)
    }
    for index, change in enumerate(config.deviceChange):
        device = change.device
        if change.operation != "add":
            raise _invalid(index, "A new VM has nothing to change")
        if isinstance(device, _Device.VirtualController):
            first = _keys(type(device), index)[0]
            if device.key >= 0 or device.key in controllers:
                raise _invalid(index, "Keys of devices to be made are negative, each its own")
            controllers[device.key] = (type(device), device.busNumber)
            state.controllers.append(
                ControllerState(
                    key=first + device.busNumber,
                    kind=type(device).__name__.rpartition(".")[2],
                    bus=device.busNumber,
                    sharing=str(getattr(device, "sharedBus", None) or "noSharing"),
                )
            )
        elif isinstance(device, _Device.VirtualDisk):
            if device.controllerKey not in controllers:
                raise _invalid(index, f"There is no controller {device.controllerKey}")
            kind, bus = controllers[device.controllerKey]
            disk = _disk(site, user, state, change, index, kind, bus)
            state.disks.append(disk)
            names[disk.key] = f"{kind.__name__.rpartition('.')[2]}{bus}:{device.unitNumber}"
        elif isinstance(device, _Device.VirtualEthernetCard):
            state.nics.append(_nic(site, user, state, device))
        else:
            raise _invalid(index, f"The simulator makes no {type(device).__name__}")
    return names


def _disk(
    site: "Site", user: str, state: VmState, change: Any, index: int, kind: Any, bus: int
) -> DiskState:
    device = change.device
    first, first_disk, units = _keys(kind, index)
    if change.fileOperation != "create":
        raise _invalid(index, "A disk of an import is made anew")
    scsi = issubclass(kind, _Device.VirtualSCSIController)
    if device.unitNumber >= units or (scsi and device.unitNumber == _RESERVED_SCSI_UNIT):
        raise _invalid(index, f"There is no unit {device.unitNumber}")
    key = first_disk + units * bus + device.unitNumber
    if any(disk.key == key for disk in state.disks):
        raise _invalid(index, f"The unit number {device.unitNumber} is taken")
    size = device.capacityInBytes or device.capacityInKB << 10
    if not size:
        raise _invalid(index, "A disk has a capacity")
    store = _datastore(site, user, str(device.backing.fileName), state.host)
    number = len(state.disks)
    directory = state.vmx_path.rpartition("/")[0]
    return DiskState(
        key=key,
        label=f"Hard disk {number + 1}",
        path=f"{directory}/{directory}{f'_{number}' if number else ''}.vmdk",
        size_bytes=size,
        datastore=store.moid,
        mode=device.backing.diskMode or "persistent",
        controller=first + bus,
        unit=device.unitNumber,
    )


def _nic(site: "Site", user: str, state: VmState, device: Any) -> NicState:
    name = getattr(device.backing, "deviceName", "") or ""
    if name != NETWORK_NAME:
        raise vim.fault.InvalidDeviceBacking(
            msg=f"The host has no network {name}", property="backing", deviceIndex=0
        )
    require_privilege(site, user, site.registry.require(NETWORK), "Network.Assign")
    number = len(state.nics)
    connect = device.connectable
    key = _NIC_KEY + number
    made = f"00:50:56:80:{uuid.uuid4().bytes[0]:02x}:{number:02x}"
    return NicState(
        key=key,
        label=f"Network adapter {number + 1}",
        mac=(device.macAddress if device.addressType == "manual" else None) or made,
        network=name,
        start_connected=connect is None or bool(connect.startConnected),
        kind=type(device).__name__.rpartition(".")[2],
        address_type=device.addressType or "assigned",
    )


def _datastore(site: "Site", user: str, path: str, host: str) -> "Datastore":
    name = path.partition("]")[0].removeprefix("[")
    for datastore in site.datastores():
        if datastore.state.name == name and datastore.reachable_from(host):
            require_privilege(site, user, datastore, "Datastore.AllocateSpace")
            return datastore
    raise vim.fault.InvalidDatastorePath(
        msg=f"Invalid datastore path '{path}'.", datastorePath=path
    )


def _free_path(site: "Site", home: "Datastore", name: str) -> str:
    """A directory of the VM's name, with a number when there is one."""
    taken = {vm.vmx_path() for vm in site.vms()} | set(site.state.shelf)
    directory, number = name, 0
    while home.path(f"{directory}/{directory}.vmx") in taken:
        number += 1
        directory = f"{name}_{number}"
    return f"{directory}/{directory}.vmx"


def _keys(kind: Any, index: int) -> tuple[int, int, int]:
    found = first_keys(kind)
    if found is not None:
        return found
    raise _invalid(index, f"The simulator has no disks at a {kind.__name__}")


def _invalid(index: int, why: str) -> Any:
    return vim.fault.InvalidDeviceSpec(msg=why, deviceIndex=index)
