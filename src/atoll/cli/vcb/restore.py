"""vcbRestore: a VM made anew in vSphere of what `vcbMounter -t fullvm` exported.

The catalog says where to, an alternate one may say otherwise line by line; the VMX says what the
VM is made of. vCenter has the VM when all of its disks are in, or not at all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from atoll.cli.vcb import place
from atoll.cli.vcb.catalog import FOLDER, POOLS, parse_catalog
from atoll.cli.vcb.console import VERBOSE, WARNING, Console, Progress
from atoll.cli.vcb.options import RestoreOptions
from atoll.model.errors import (
    NotFoundInPointError,
    RestoreTargetError,
    UnsupportedFormatError,
)
from atoll.model.hardware import Controller, HardDisk, VmHardware
from atoll.recovery.exported_vmdk import ExportedDisk, open_exported
from atoll.recovery.stream_vmdk import stream_vmdk
from atoll.recovery.vmx import Vmx, parse_vmx
from atoll.service.importing import Sending, Wanted, import_vm, tidy_restores
from atoll.service.site import Site
from atoll.vsphere.import_vm import ExistingVm, ImportPlan, VmImports
from atoll.vsphere.places import WantedPlace

_MAX_TEXT_BYTES = 1 << 20
_DEFAULT_CONTROLLERS = {"scsi": "lsilogic", "sata": "ahci", "nvme": "nvme", "ide": "ide"}


@dataclass(frozen=True, slots=True)
class _Export:
    """What is in the directory. `disks` are open, by address; `stores` their datastores."""

    lines: Mapping[str, str]
    vmx: Vmx
    disks: Mapping[str, ExportedDisk]
    files: Mapping[str, str]

    def datastore(self, name: str) -> str:
        """Of a line with `[datastore] path`; UnsupportedFormatError when it has none."""
        path = self.lines.get(name, "")
        store, bracket, _ = path.removeprefix("[").partition("]")
        if not path.startswith("[") or not bracket or not store:
            raise UnsupportedFormatError(
                f"The catalog's {name} names no datastore ({path!r}); write an alternate catalog "
                f'with a line {name}= "[DATASTORE] PATH" and give it with -a.'
            )
        return store


def restore(site: Site, options: RestoreOptions, console: Console) -> None:
    """Restore an export; when it fails there is no new VM. AtollError."""
    with _opened(options) as export:
        hardware = _hardware(export, console)
        imports = site.vcenter().imports()
        wanted = WantedPlace(
            host=export.lines.get("host", ""),
            datastore=export.datastore("config.vmx"),
            folder=export.lines.get(FOLDER, ""),
            pool=next((export.lines[name] for name in POOLS if export.lines.get(name)), ""),
        )
        plan = imports.plan(hardware, wanted)
        existing = _existing(imports, export, plan, options)
        for line in (*tidy_restores(site), *plan.told):
            console.log(line, WARNING)
        if existing is not None:
            console.log(
                f"{existing.name} ({existing.moref}) is restored over; it is deleted when all disks "
                "are in."
            )
        moref = import_vm(site, Wanted(hardware, wanted, existing), _sending(export, console))
        console.say(f"Restored {hardware.name} as moref:{moref}")


@contextmanager
def _opened(options: RestoreOptions) -> Iterator[_Export]:
    """Read the catalog, the VMX and all disks before anything is begun."""
    directory = options.directory
    if directory.name == place.CATALOG and directory.is_file():
        directory = directory.parent  # some name the catalog itself
    try:
        if not (directory / place.CATALOG).is_file():
            raise UnsupportedFormatError(
                f"{directory} holds no whole export of vcbMounter -t fullvm: there is no "
                f"{place.CATALOG}."
            )
        lines = parse_catalog(_text(directory / place.CATALOG))
        if options.alternate is not None:
            other = parse_catalog(_text(options.alternate))
            if any(name in other for name in POOLS):
                lines = {name: value for name, value in lines.items() if name not in POOLS}
            lines |= other
        vmx = _vmx(directory, lines)
        with ExitStack() as stack:
            disks, files = {}, {}
            for name, file in lines.items():
                if name.startswith("disk.") and name.endswith(".filename"):
                    address = name.removeprefix("disk.").removesuffix(".filename")
                    disks[address] = open_exported(_inside(directory, file))
                    stack.callback(disks[address].close)
                    files[address] = file
            yield _Export(lines, vmx, disks, files)
    except BrokenPipeError:
        raise  # of our own output, not of a file
    except OSError as error:
        raise UnsupportedFormatError(
            f"The export in {directory} cannot be read ({error.filename or ''} "
            f"{error.strerror or error}); nothing was restored."
        ) from error


def _vmx(directory: Path, lines: Mapping[str, str]) -> Vmx:
    names = [
        value
        for name, value in lines.items()
        if name.startswith("config")
        and name.endswith(".filename")
        and value.lower().endswith(".vmx")
    ]
    if not names:
        raise NotFoundInPointError(
            f"The export in {directory} has no configuration file (.vmx), so nobody knows what the "
            "VM was made of; make one by hand and give it the disks."
        )
    return parse_vmx(_inside(directory, names[0]).read_bytes(), names[0])


def _hardware(export: _Export, console: Console) -> VmHardware:
    """The VM to be made; tells what it will lack."""
    vmx, made_of = export.vmx, export.vmx.hardware
    known = {each.place: each for each in made_of.controllers}
    disks = []
    for address, disk in export.disks.items():
        kind, _, unit = address.partition(":")
        name = kind.rstrip("0123456789")
        if name not in _DEFAULT_CONTROLLERS or not unit.isdecimal() or name == kind:
            raise UnsupportedFormatError(
                f"The catalog names a disk {address}, which is at no controller that Atoll knows."
            )
        controller = Controller(_DEFAULT_CONTROLLERS[name], int(kind.removeprefix(name)))
        known.setdefault(kind, controller)
        mode = vmx.modes.get(address, "persistent")
        store = export.datastore(f"disk.{address}.diskname")
        disks.append(HardDisk(address, disk.size_bytes, store, mode))
    for address in sorted(vmx.modes.keys() - export.disks.keys()):
        console.log(f"Disk {address} is not in the export; the new VM will not have it.", WARNING)
    if vmx.left_out:
        console.log(f"Left out of the new VM: {', '.join(vmx.left_out)}", WARNING)
    if made_of.firmware == "efi":
        console.log("The firmware's NVRAM begins anew, with UEFI's own order of booting.")
    for number, card in enumerate(made_of.cards):
        if card.mac is None:
            console.log(f"Network card {number} gets a new MAC address.")
    name = export.lines.get("display_name") or made_of.name
    if not name:
        raise UnsupportedFormatError("The catalog has no display_name, and the VMX has none.")
    return replace(made_of, name=name, controllers=tuple(known.values()), disks=tuple(disks))


def _existing(
    imports: VmImports, export: _Export, plan: ImportPlan, options: RestoreOptions
) -> ExistingVm | None:
    """The VM that is restored over; RestoreTargetError when there is one and it may not be."""
    own = {export.lines.get("uuid", ""), export.lines.get("atoll.instance_uuid", "")} - {""}
    found = imports.existing(plan.name, plan.place.folder, frozenset(own))
    if found is None:
        return None
    if not options.overwrite:
        raise RestoreTargetError(
            f"There is a VM {found.name} ({found.moref}); restore over it with -b overwrite, or give "
            "an alternate catalog with another display_name with -a."
        )
    if not found.powered_off:
        raise RestoreTargetError(
            f"VM {found.name} ({found.moref}) is not powered off, so it is not restored over; shut "
            "it down first."
        )
    return found


def _sending(export: _Export, console: Console) -> Sending:
    bars: list[Progress] = []

    def source(disk: HardDisk, told: Callable[[int], None]) -> Iterator[bytes]:
        yield from stream_vmdk(export.disks[disk.address], told)
        bars[-1].finish()

    def progress(disk: HardDisk) -> Callable[[int], None]:
        file = export.files[disk.address]
        console.log(f"{file}: {disk.size_bytes} bytes to [{disk.datastore}]", VERBOSE)
        bars.append(console.progress(f'Restoring "{file}" ({disk.address})', disk.size_bytes))
        return bars[-1]

    return Sending(source, progress)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_TEXT_BYTES).decode("utf-8", "surrogateescape")


def _inside(directory: Path, name: str) -> Path:
    """A file of the export; nothing outside its directory is read, whatever the catalog says."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UnsupportedFormatError(f"The catalog names {name!r}, which is no file of the export.")
    return directory / name
