"""A VM's configuration file, read for what it takes to make the VM anew.

VMware documents neither the file nor all of its names; those that are read here are the ones
vSphere itself writes for what its API calls by other names (VirtualMachineConfigSpec).
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from atoll.model.errors import UnsupportedFormatError
from atoll.model.hardware import CARDS, CONTROLLERS, Controller, NetworkCard, VmHardware

_LINE = re.compile(r'\s*([^#=\s][^=]*?)\s*=\s*"(.*)"\s*')
_ESCAPE = re.compile(r"\|([0-9A-Fa-f]{2})")
_BUS = re.compile(r"(scsi|sata|nvme|ide)(\d+)")
_UNIT = re.compile(r"((?:scsi|sata|nvme|ide)\d+:\d+)\.(.+)")
_CARD = re.compile(r"(ethernet\d+)\.(.+)")
_READ = frozenset(
    {
        "displayname",
        "guestos",
        "numvcpus",
        "cpuid.corespersocket",
        "memsize",
        "firmware",
        "uefi.secureboot.enabled",
        "annotation",
        "virtualhw.version",
    }
)
_KEPT = ("disk.enableuuid", "guestinfo.", "isolation.")
_BOOKKEEPING = re.compile(
    r"\.encoding|config\.version|extendedconfigfile|nvram|uuid\.|vc\.uuid|vm\.genid|vmci\d+\.|"
    r"pcibridge\d+\.|svga\.|vmotion\.|migrate\.|checkpoint\.|cleanshutdown|replay\.|tools\.|"
    r"toolscripts\.|powertype\.|softpoweroff|monitor\.phys_bits_used|hpet\d+\.|sched\.swap\.|"
    r"virtualhw\.productcompatibility|sched\.scsi\d+:\d+\.throughputcap$|guestos\.|numa\.autosize\.|"
    r"viv\.|toolsinstallmanager\.|tools\.syncTime|migratehostlog|vmxstats\.|ctkenabled$|"
    r".*\.pcislotnumber$|.*\.ctkenabled$|.*\.redo$|.*\.generatedaddressoffset$",
    re.IGNORECASE,
)
_MODES = {
    "": "persistent",
    "persistent": "persistent",
    "independent-persistent": "independent_persistent",
    "independent-nonpersistent": "independent_nonpersistent",
    "nonpersistent": "nonpersistent",
}
_DISK_TYPES = ("", "scsi-harddisk", "ata-harddisk", "disk")


@dataclass(frozen=True, slots=True)
class Vmx:
    """What a configuration file says: `hardware` but for the disks, whose sizes it does not know.

    `modes` are those of the disks it has, by address. `left_out` names what the file has and a VM
    made from this would not: devices, and settings.
    """

    hardware: VmHardware
    modes: Mapping[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VmxIdentity:
    """What makes a VM that very one: its BIOS UUID, and the address of each card; empty if unknown."""

    bios_uuid: str
    macs: tuple[str, ...]


def parse_identity(content: bytes) -> VmxIdentity:
    """The identity that a configuration file has, its cards in the order of `parse_vmx`."""
    lower = {key.lower(): value for key, value in _words(content).items()}
    digits = re.sub(r"[^0-9a-fA-F]", "", lower.get("uuid.bios", ""))
    places = dict.fromkeys(match[1] for key in lower if (match := _CARD.fullmatch(key)))
    return VmxIdentity(
        bios_uuid=str(uuid.UUID(digits)) if len(digits) == 32 else "",
        macs=tuple(
            lower.get(f"{place}.address") or lower.get(f"{place}.generatedaddress", "")
            for place in sorted(places, key=lambda each: int(each.removeprefix("ethernet")))
            if _true(lower, f"{place}.present")
        ),
    )


def parse_vmx(content: bytes, name: str) -> Vmx:
    """Read a configuration file; UnsupportedFormatError for what is none, with `name` in it."""
    words = _words(content)
    lower = {key.lower(): value for key, value in words.items()}
    if "guestos" not in lower or "memsize" not in lower:
        raise UnsupportedFormatError(
            f"{name} is no configuration file of a VM: it says neither guestOS nor memSize."
        )
    seen: set[str] = {key for key in lower if key in _READ}
    modes = _disks(lower, seen)
    controllers = _controllers(lower, modes, seen)
    cards = _cards(lower, seen)
    extra = {key: value for key, value in words.items() if key.lower().startswith(_KEPT)}
    hardware = VmHardware(
        name=lower.get("displayname", ""),
        guest_os=lower["guestos"],
        cpus=_number(lower, "numvcpus", 1, name),
        cores_per_socket=_number(lower, "cpuid.corespersocket", 1, name),
        memory_mb=_number(lower, "memsize", 0, name),
        firmware="efi" if lower.get("firmware", "").lower() == "efi" else "bios",
        secure_boot=_true(lower, "uefi.secureboot.enabled"),
        annotation=lower.get("annotation", ""),
        version=_number(lower, "virtualhw.version", 0, name) or None,
        controllers=controllers,
        disks=(),
        cards=cards,
        extra=extra,
    )
    return Vmx(hardware, modes, _left_out(words, lower, seen | {key.lower() for key in extra}))


def _words(content: bytes) -> dict[str, str]:
    encoding = "utf-8"
    declared = re.search(rb'^\s*\.encoding\s*=\s*"([A-Za-z0-9_-]+)"', content, re.MULTILINE)
    if declared and declared[1].lower() not in (b"utf-8", b"utf8"):
        encoding = declared[1].decode()
    try:
        text = content.decode(encoding, "replace")
    except LookupError:
        text = content.decode("utf-8", "replace")
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            found[match[1]] = _unescaped(match[2])
    return found


def _unescaped(value: str) -> str:
    """`|22` is a quotation mark, `|0A` the end of a line."""
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), value)
    return raw.replace("\r\n", "\n")


def _disks(lower: Mapping[str, str], seen: set[str]) -> dict[str, str]:
    """Modes of the hard disks by address."""
    modes = {}
    for address in dict.fromkeys(match[1] for key in lower if (match := _UNIT.fullmatch(key))):
        kind = lower.get(f"{address}.devicetype", "").lower()
        if not _true(lower, f"{address}.present"):
            seen |= {key for key in lower if key.startswith(f"{address}.")}
        elif kind in _DISK_TYPES:
            modes[address] = _MODES.get(lower.get(f"{address}.mode", "").lower(), "persistent")
            # The others, such as how many copies of a disk may write, are told.
            own = ("present", "filename", "devicetype", "mode", "writethrough")
            seen |= {f"{address}.{each}" for each in own}
    return modes


def _controllers(
    lower: Mapping[str, str], modes: Mapping[str, str], seen: set[str]
) -> tuple[Controller, ...]:
    found = []
    for kind in ("scsi", "sata", "nvme"):
        for bus in range(4):
            place = f"{kind}{bus}"
            used = any(address.startswith(f"{place}:") for address in modes)
            seen |= {f"{place}.{each}" for each in ("present", "virtualdev", "sharedbus")}
            if not used and not _true(lower, f"{place}.present"):
                continue
            made = {"sata": "ahci", "nvme": "nvme"}.get(kind)
            made = made or lower.get(f"{place}.virtualdev", "").lower() or "lsilogic"
            if made not in CONTROLLERS:
                made = "lsilogic"
                seen.discard(f"{place}.virtualdev")
            sharing = lower.get(f"{place}.sharedbus", "none").lower()
            found.append(
                Controller(made, bus, sharing if sharing in ("virtual", "physical") else "none")
            )
    for bus in (0, 1):
        if any(address.startswith(f"ide{bus}:") for address in modes):
            found.append(Controller("ide", bus))
    return tuple(found)


def _cards(lower: Mapping[str, str], seen: set[str]) -> tuple[NetworkCard, ...]:
    found = []
    places = dict.fromkeys(match[1] for key in lower if (match := _CARD.fullmatch(key)))
    for place in sorted(places, key=lambda each: int(each.removeprefix("ethernet"))):
        if not _true(lower, f"{place}.present"):
            seen |= {key for key in lower if key.startswith(f"{place}.")}
            continue
        own = ("present", "virtualdev", "networkname", "addresstype", "address", "generatedaddress")
        seen |= {f"{place}.{each}" for each in (*own, "startconnected", "connectiontype")}
        kind = lower.get(f"{place}.virtualdev", "").lower() or "vlance"
        if kind not in CARDS:
            kind = "vmxnet3"
            seen.discard(f"{place}.virtualdev")
        static = lower.get(f"{place}.addresstype", "").lower() == "static"
        found.append(
            NetworkCard(
                kind=kind,
                network=lower.get(f"{place}.networkname", ""),
                mac=lower.get(f"{place}.address") if static else None,
                connected=lower.get(f"{place}.startconnected", "true").lower() != "false",
            )
        )
    return tuple(found)


def _left_out(
    words: Mapping[str, str], lower: Mapping[str, str], seen: set[str]
) -> tuple[str, ...]:
    """Devices as a whole, settings by name, in the order of the file."""
    told: dict[str, None] = {}
    for key in words:
        small = key.lower()
        if small in seen or _BOOKKEEPING.match(small):
            continue
        device = re.match(r"((?:[a-z]+\d+)(?::\d+)?)\.", small)
        if device is None:
            told[key] = None
        elif device[1] + ".present" not in seen and f"{device[1]}.present" in lower:
            if _true(lower, f"{device[1]}.present"):
                kind = lower.get(f"{device[1]}.devicetype", "")
                told[f"{device[1]}{f' ({kind})' if kind else ''}"] = None
        elif not _BUS.fullmatch(device[1]) or small.rpartition(".")[2] != "present":
            told[key] = None
    return tuple(told)


def _true(lower: Mapping[str, str], key: str) -> bool:
    return lower.get(key, "").lower() == "true"


def _number(lower: Mapping[str, str], key: str, default: int, name: str) -> int:
    value = lower.get(key, "")
    if not value:
        return default
    if not value.isdecimal() or len(value) > 9:
        raise UnsupportedFormatError(f"{name} says {key} = {value!r}, which is no number.")
    return int(value)
