"""A VM registered from its configuration file on a VMFS volume, as RegisterVM_Task does.

Disks on other datastores than the file's are named by their volume's UUID, as ESX names them; so the
copy of a VM whose volumes were resignatured still names the volumes it was copied from.
"""

import re
from typing import TYPE_CHECKING

from pyVmomi import vim

from atoll.model.errors import AtollError
from atoll.recovery.vmx import parse_identity, parse_vmx
from atoll.vsphere.import_spec import guest_id
from atoll_lab.vcenter.objects.device_keys import disk_key
from atoll_lab.vcenter.state import DiskState, NicState, VmState, new_uuid
from atoll_lab.vcenter.vmfs_files import volume_on

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.datastore import Datastore
    from atoll_lab.vcenter.site import Site

_MAX_VMX_BYTES = 1 << 20
_FILE = re.compile(r'^\s*(\w+\d+:\d+)\.fileName\s*=\s*"(.*)"', re.IGNORECASE | re.MULTILINE)
_INSTANCE = re.compile(r'^\s*vc\.uuid\s*=\s*"(.*)"', re.IGNORECASE | re.MULTILINE)
_ABSOLUTE = re.compile(r"/vmfs/volumes/([^/]+)/(.+)")
_CONTROLLERS = {"scsi": 1000, "sata": 15000, "nvme": 31000, "ide": 200}
_CARDS = {"vmxnet3": "VirtualVmxnet3", "e1000": "VirtualE1000", "e1000e": "VirtualE1000e"}


def read_vm(site: "Site", path: str, host: str) -> VmState | None:
    """The record of the VM whose VMX is at `[datastore] path`; None when there is no such file.

    It is none of the inventory's yet. Takes no lock: the network is asked.
    """
    store_name, _, inside = path.partition("] ")
    home = next(
        (each for each in site.datastores() if each.state.name == store_name.removeprefix("[")),
        None,
    )
    if home is None or not home.reachable_from(host) or home.state.local_to is not None:
        return None
    seen = site.host(host).state
    try:
        with volume_on(site.fabric, seen, home.state.extents) as (volume, _):
            content = volume.read_file(inside, _MAX_VMX_BYTES)
    except (AtollError, KeyError):
        return None
    return _described(site, content, home, inside, host)


def _described(site: "Site", content: bytes, home: "Datastore", inside: str, host: str) -> VmState:
    vmx, identity = parse_vmx(content, inside), parse_identity(content)
    text = content.decode("utf-8", "replace")
    instance = _INSTANCE.search(text)
    hardware = vmx.hardware
    files = dict(_FILE.findall(text))
    return VmState(
        moid="",
        name=hardware.name,
        instance_uuid=instance[1] if instance else new_uuid(),
        bios_uuid=identity.bios_uuid or new_uuid(),
        host=host,
        datastore=home.moid,
        vmx_path=inside,
        guest_os=hardware.guest_os,
        guest_id=guest_id(hardware.guest_os) or "otherGuest64",
        firmware=hardware.firmware,
        annotation=hardware.annotation,
        cpus=hardware.cpus,
        memory_mb=hardware.memory_mb,
        disks=[
            _disk(site, number, address, files[address], home, inside, host)
            for number, address in enumerate(sorted(vmx.modes), 1)
        ],
        nics=[
            NicState(
                key=4000 + number,
                label=f"Network adapter {number + 1}",
                mac=identity.macs[number] or "00:50:56:00:00:00",
                network=card.network,
                start_connected=card.connected,
                kind=_CARDS.get(card.kind, "VirtualVmxnet3"),
                address_type="manual" if card.mac else "assigned",
            )
            for number, card in enumerate(hardware.cards)
        ],
        extra=dict(hardware.extra),
        copied=True,
    )


def _disk(
    site: "Site",
    number: int,
    address: str,
    file: str,
    home: "Datastore",
    vmx: str,
    host: str,
) -> DiskState:
    kind = address.partition(":")[0].rstrip("0123456789")
    bus, _, unit = address.removeprefix(kind).partition(":")
    store, path = home, f"{vmx.rpartition('/')[0]}/{file}"
    if absolute := _ABSOLUTE.fullmatch(file):
        path = absolute[2]
        known = [each for each in site.datastores() if each.state.uuid == absolute[1]]
        if not known:
            raise vim.fault.FileNotFound(msg=f"There is no volume of {file}", file=file)
        store = known[0]
    try:
        with volume_on(site.fabric, site.host(host).state, store.state.extents) as (volume, _):
            size = volume.disk_map(path).size_bytes
    except (AtollError, KeyError) as error:
        raise vim.fault.FileNotFound(msg=f"{file} cannot be read: {error}", file=file) from error
    return DiskState(
        key=disk_key(_CONTROLLERS[kind] + int(bus), int(unit)),
        label=f"Hard disk {number}",
        path=path,
        size_bytes=size,
        datastore=store.moid,
    )
