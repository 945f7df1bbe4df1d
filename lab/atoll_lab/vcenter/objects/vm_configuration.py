"""A VM's ConfigSpec, as CreateVM_Task and ReconfigVM_Task take it, applied to its record.

Disks are attached and taken away, never made or deleted: their files are the datastore's. Mappings of
LUNs are made, and deleted with the VM or when that is asked for.
"""

from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.device_keys import disk_key, first_keys
from atoll_lab.vcenter.state import ControllerState, DiskState, NicState, VmState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

SCSI_KEY = 1000
_NIC_KEY = 4000


def configure(site: "Site", state: VmState, spec: Any) -> None:
    """Apply a spec. Call inside `change` on a copy: a fault may come half-way.

    ConcurrentAccess when it was made for an earlier version of the VM.
    """
    if spec.changeVersion and spec.changeVersion != str(state.version):
        raise vim.fault.ConcurrentAccess(msg="The object has been changed meanwhile.")
    state.version += 1
    if spec.name and spec.name != state.name:
        refuse_duplicate(site, state.folder, spec.name)
        state.name = spec.name
    state.cpus = spec.numCPUs or state.cpus
    state.memory_mb = spec.memoryMB or state.memory_mb
    state.guest_id = spec.guestId or state.guest_id
    state.firmware = spec.firmware or state.firmware
    if spec.annotation is not None:
        state.annotation = spec.annotation
    if spec.instanceUuid:
        state.instance_uuid = spec.instanceUuid
    if spec.uuid:
        state.bios_uuid = spec.uuid
    if spec.managedBy is not None:
        state.manager = spec.managedBy.extensionKey or None
    for option in spec.extraConfig:
        # One that is set to nothing is taken away.
        state.extra.pop(str(option.key), None)
        if str(option.value):
            state.extra[str(option.key)] = str(option.value)
    made: dict[int, int] = {}
    for change in spec.deviceChange:
        device = change.device
        if isinstance(device, vim.vm.device.VirtualController) and device.key < 0:
            made[device.key] = _controller(state, device)
        elif isinstance(device, vim.vm.device.VirtualDisk):
            _disk(site, state, change, made)
        elif isinstance(device, vim.vm.device.VirtualEthernetCard):
            _nic(state, change)


def refuse_duplicate(site: "Site", folder: str, name: str) -> None:
    """DuplicateName when a folder has a VM or folder of that name."""
    for other in site.content_of(folder):
        if other.display_name == name:
            raise vim.fault.DuplicateName(
                msg=f"The name '{name}' already exists.", name=name, object=other.ref
            )


def _controller(state: VmState, device: Any) -> int:
    """A new controller; its key."""
    keys = first_keys(type(device))
    if keys is None:
        raise vim.fault.InvalidDeviceSpec(msg="The simulator has no such controller", deviceIndex=0)
    key = int(keys[0] + device.busNumber)
    if any(known.key == key for known in state.controllers):
        raise vim.fault.InvalidDeviceSpec(msg="The bus number is taken", deviceIndex=0)
    state.controllers.append(
        ControllerState(
            key=key,
            kind=type(device).__name__.rpartition(".")[2],
            bus=device.busNumber,
            sharing=str(getattr(device, "sharedBus", None) or "noSharing"),
        )
    )
    return key


def _disk(site: "Site", state: VmState, change: Any, made: dict[int, int]) -> None:
    device = change.device
    if change.operation == "remove":
        gone = [disk for disk in state.disks if disk.key == device.key]
        if not gone:
            raise _no_device(device.key)
        if change.fileOperation is not None and gone[0].kind != "rdm":
            raise vmodl.fault.NotSupported(msg="The simulator deletes no disks")
        state.disks = [disk for disk in state.disks if disk.key != device.key]
        return
    store, _, inside = str(device.backing.fileName).partition("]")
    inside = inside.strip()
    found = [each for each in site.datastores() if each.state.name == store.removeprefix("[")]
    if not found or not found[0].reachable_from(state.host):
        raise vim.fault.InvalidDatastorePath(
            msg=f"Invalid datastore path '{device.backing.fileName}'.",
            datastorePath=device.backing.fileName,
        )
    raw = isinstance(device.backing, vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo)
    if (change.fileOperation is not None) != raw:
        raise vmodl.fault.NotSupported(msg="The simulator makes mappings and no other disks")
    lun = _seen(site, state.host, device.backing.deviceName) if raw else ""
    controller = made.get(device.controllerKey, device.controllerKey)
    try:
        key = disk_key(controller, device.unitNumber)
    except KeyError as error:
        raise vim.fault.InvalidDeviceSpec(
            msg=f"There is no controller {controller}", deviceIndex=0
        ) from error
    if any(disk.key == key for disk in state.disks):
        raise vim.fault.InvalidDeviceSpec(msg="The unit number is taken", deviceIndex=0)
    number = len(state.disks) + 1
    directory = state.vmx_path.rpartition("/")[0]
    state.disks.append(
        DiskState(
            key=key,
            label=f"Hard disk {number}",
            # Of a datastore alone a name is made up, in the VM's directory.
            path=inside or f"{directory}/{directory}_{key}.vmdk",
            size_bytes=device.capacityInBytes or device.capacityInKB << 10,
            datastore=found[0].moid,
            mode=device.backing.diskMode or "persistent",
            kind="rdm" if raw else "flat",
            compatibility=device.backing.compatibilityMode if raw else "physicalMode",
            lun=lun,
            controller=controller if state.controllers else 0,
            unit=device.unitNumber if state.controllers else 0,
        )
    )
    state.disks.sort(key=lambda disk: disk.key)


def _seen(site: "Site", host: str, device_name: str) -> str:
    """The LUN that a host has at `/vmfs/devices/disks/naa.…`; InvalidDeviceBacking."""
    name = str(device_name).rpartition("/")[2]
    seen = site.host(host).state
    for lun in seen.luns:
        if lun.naa == name and name not in seen.detached:
            return name
    raise vim.fault.InvalidDeviceBacking(msg=f"The host has no device {device_name}", deviceIndex=0)


def _nic(state: VmState, change: Any) -> None:
    device = change.device
    kept = [nic for nic in state.nics if nic.key != device.key]
    if change.operation in ("remove", "edit") and len(kept) == len(state.nics):
        raise _no_device(device.key)
    if change.operation == "remove":
        state.nics = kept
        return
    key = device.key if change.operation == "edit" else _NIC_KEY + len(state.nics)
    connect = device.connectable
    label = device.deviceInfo.label if device.deviceInfo else f"Network adapter {len(kept) + 1}"
    nic = NicState(
        key=key,
        label=label,
        mac=device.macAddress or "00:50:56:00:00:00",
        network=getattr(device.backing, "deviceName", "") or "",
        start_connected=connect is None or bool(connect.startConnected),
        kind=type(device).__name__.rpartition(".")[2],
        address_type=device.addressType or "manual",
    )
    state.nics = sorted([*kept, nic], key=lambda each: each.key)


def nic_device(nic: NicState) -> Any:
    """A network card as vSphere tells it."""
    return getattr(vim.vm.device, nic.kind)(
        key=nic.key,
        deviceInfo=vim.Description(label=nic.label, summary=nic.network),
        macAddress=nic.mac,
        addressType=nic.address_type,
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=nic.network),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=nic.start_connected, allowGuestControl=True, connected=False
        ),
    )


def _no_device(key: int) -> Any:
    return vim.fault.InvalidDeviceSpec(msg=f"There is no device {key}", deviceIndex=0)
