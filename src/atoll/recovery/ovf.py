"""The descriptor of a VM in the Open Virtualization Format, as VMware's importers read it.

Source: DMTF DSP0243 1.1.0, "Open Virtualization Format Specification", for the envelope; the CIM
schema's ResourceAllocationSettingData for the hardware; sub-types, `vmw:osType` and `vmw:Config` as
VMware's own exports have them.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.model.hardware import Controller, HardDisk, VmHardware
from atoll.vsphere.import_spec import guest_id

_OVF = "http://schemas.dmtf.org/ovf/envelope/1"
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
_RASD = f"{_CIM}/CIM_ResourceAllocationSettingData"
_VSSD = f"{_CIM}/CIM_VirtualSystemSettingData"
_VMW = "http://www.vmware.com/schema/ovf"
_FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_NAMES = {"ovf": _OVF, "rasd": _RASD, "vssd": _VSSD, "vmw": _VMW}

# CIM resource types.
_PROCESSOR, _MEMORY, _IDE, _SCSI, _ETHERNET, _DISK, _OTHER_STORAGE = 3, 4, 5, 6, 10, 17, 20
_CONTROLLERS = {
    "pvscsi": (_SCSI, "VirtualSCSI"),
    "lsilogic": (_SCSI, "lsilogic"),
    "lsisas1068": (_SCSI, "lsilogicsas"),
    "buslogic": (_SCSI, "buslogic"),
    "ahci": (_OTHER_STORAGE, "vmware.sata.ahci"),
    "nvme": (_OTHER_STORAGE, "vmware.nvme.controller"),
    "ide": (_IDE, ""),
}
_CARDS = {
    "vmxnet3": "VmxNet3",
    "vmxnet2": "VmxNet2",
    "vmxnet": "VmxNet",
    "e1000": "E1000",
    "e1000e": "E1000e",
    "vlance": "PCNet32",
}
_OTHER_SYSTEM, _OTHER_SYSTEM_64 = 1, 102  # of CIM_OperatingSystem.OSType; the name is VMware's
_DEFAULT_VERSION = 13  # hardware of ESXi 6.5 and later
_NO_NAME = "None"
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class OvfDisk:
    """A disk's file in the package, and how large that is. `populated_bytes` of the disk are data."""

    disk: HardDisk
    file: str
    file_bytes: int
    populated_bytes: int


def descriptor(hardware: VmHardware, disks: Sequence[OvfDisk]) -> bytes:
    """The XML document. What XML cannot hold is left out of names and texts."""
    for prefix, address in _NAMES.items():
        ET.register_namespace(prefix, address)
    envelope = ET.Element(_in("ovf", "Envelope"))
    references = _under(envelope, "References")
    for number, each in enumerate(disks, 1):
        _under(references, "File", id=f"file{number}", href=each.file, size=each.file_bytes)
    section = _section(envelope, "DiskSection", "The disks")
    for number, each in enumerate(disks, 1):
        _under(
            section,
            "Disk",
            diskId=f"vmdisk{number}",
            fileRef=f"file{number}",
            capacity=each.disk.size_bytes,
            capacityAllocationUnits="byte",
            populatedSize=each.populated_bytes,
            format=_FORMAT,
        )
    networks = _section(envelope, "NetworkSection", "The networks")
    for name in dict.fromkeys(card.network or _NO_NAME for card in hardware.cards):
        network = _under(networks, "Network", name=name)
        _text(network, "ovf", "Description", f"The network {name}")
    system = _under(envelope, "VirtualSystem", id=hardware.name)
    _text(system, "ovf", "Info", "A virtual machine")
    _text(system, "ovf", "Name", hardware.name)
    _operating_system(system, hardware)
    _hardware(system, hardware, disks)
    if hardware.annotation:
        note = _section(system, "AnnotationSection", "Notes")
        _text(note, "ovf", "Annotation", hardware.annotation)
    ET.indent(envelope)
    text: bytes = ET.tostring(envelope, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _operating_system(system: ET.Element, hardware: VmHardware) -> None:
    is_64 = hardware.guest_os.endswith("64")
    known = guest_id(hardware.guest_os) or ("otherGuest64" if is_64 else "otherGuest")
    number = _OTHER_SYSTEM_64 if is_64 else _OTHER_SYSTEM
    section = _under(system, "OperatingSystemSection", id=number)
    section.set(_in("vmw", "osType"), known)
    _text(section, "ovf", "Info", "The guest operating system")
    _text(section, "ovf", "Description", hardware.guest_os)


def _hardware(parent: ET.Element, hardware: VmHardware, disks: Sequence[OvfDisk]) -> None:
    section = _section(parent, "VirtualHardwareSection", "The virtual hardware")
    system = ET.SubElement(section, _in("ovf", "System"))
    _text(system, "vssd", "ElementName", "Virtual Hardware Family")
    _text(system, "vssd", "InstanceID", "0")
    _text(system, "vssd", "VirtualSystemIdentifier", hardware.name)
    version = hardware.version or _DEFAULT_VERSION
    _text(system, "vssd", "VirtualSystemType", f"vmx-{version:02}")
    items = _Items(section)
    items.add(
        f"{hardware.cpus} virtual CPUs",
        _PROCESSOR,
        AllocationUnits="hertz * 10^6",
        VirtualQuantity=hardware.cpus,
    )
    items.add(
        f"{hardware.memory_mb} MiB of memory",
        _MEMORY,
        AllocationUnits="byte * 2^20",
        VirtualQuantity=hardware.memory_mb,
    )
    places = {each.place: _controller(items, each) for each in hardware.controllers}
    for number, each in enumerate(disks, 1):
        items.add(
            f"Hard disk {number}",
            _DISK,
            AddressOnParent=each.disk.unit,
            HostResource=f"ovf:/disk/vmdisk{number}",
            Parent=places[each.disk.controller],
        )
    for number, card in enumerate(hardware.cards, 1):
        items.add(
            f"Network adapter {number}",
            _ETHERNET,
            Address=card.mac,
            AutomaticAllocation="true" if card.connected else "false",
            Connection=card.network or _NO_NAME,
            ResourceSubType=_CARDS[card.kind],
        )
    for key, value in _settings(hardware).items():
        config = ET.SubElement(section, _in("vmw", "Config"))
        for prefix, name, said in (
            ("ovf", "required", "false"),
            ("vmw", "key", key),
            ("vmw", "value", value),
        ):
            config.set(_in(prefix, name), said)
    for key, value in hardware.extra.items():
        extra = ET.SubElement(section, _in("vmw", "ExtraConfig"))
        extra.set(_in("ovf", "required"), "false")
        extra.set(_in("vmw", "key"), _clean(key))
        extra.set(_in("vmw", "value"), _clean(value))


def _settings(hardware: VmHardware) -> dict[str, str]:
    found = {"firmware": hardware.firmware}
    if hardware.secure_boot:
        found["bootOptions.efiSecureBootEnabled"] = "true"
    return found


def _controller(items: "_Items", controller: Controller) -> int:
    kind, own = _CONTROLLERS[controller.kind]
    return items.add(
        f"{controller.kind} controller {controller.bus}",
        kind,
        Address=controller.bus,
        ResourceSubType=own or None,
    )


class _Items:
    """Hardware, numbered. An item's children are in the alphabet's order, as the schema wants."""

    def __init__(self, section: ET.Element) -> None:
        self._section = section
        self._last = 0

    def add(self, name: str, kind: int, **values: object) -> int:
        """An item; its number."""
        self._last += 1
        values |= {"ElementName": name, "InstanceID": self._last, "ResourceType": kind}
        item = ET.SubElement(self._section, _in("ovf", "Item"))
        for key in sorted(values):
            if values[key] is not None:
                _text(item, "rasd", key, str(values[key]))
        return self._last


def _in(prefix: str, name: str) -> str:
    return f"{{{_NAMES[prefix]}}}{name}"


def _under(parent: ET.Element, tag: str, **attributes: object) -> ET.Element:
    element = ET.SubElement(parent, _in("ovf", tag))
    for name, value in attributes.items():
        element.set(_in("ovf", name), _clean(str(value)))
    return element


def _section(parent: ET.Element, tag: str, info: str) -> ET.Element:
    section = _under(parent, tag)
    _text(section, "ovf", "Info", info)
    return section


def _text(parent: ET.Element, prefix: str, tag: str, text: str) -> None:
    ET.SubElement(parent, _in(prefix, tag)).text = _clean(text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("", text)
