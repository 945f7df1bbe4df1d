"""A restore point's VM brought back into vSphere, as a new one or in the place of the old."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll.model.errors import (
    ConfigurationError,
    RestoreTargetError,
    UnknownVmError,
    VCenterOperationError,
)
from atoll.model.hardware import HardDisk, VmHardware
from atoll.model.inventory import VirtualMachine
from atoll.model.points import DiskImage, RestorePoint
from atoll.model.progress import Progress
from atoll.model.readers import BlockReader
from atoll.recovery.disks import since_last
from atoll.recovery.ova import OvaReport, write_ova
from atoll.recovery.recovered_hardware import RecoveredHardware, Wished, hardware_of_point
from atoll.recovery.stream_compare import difference
from atoll.recovery.stream_vmdk import stream_vmdk
from atoll.recovery.vmx import parse_vmx
from atoll.service.importing import Sending, Wanted, import_vm, plan_import, tidy_restores
from atoll.service.site import Site
from atoll.vsphere.import_vm import ExistingVm, Told, VmIdentity
from atoll.vsphere.places import WantedPlace


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """How a VM is to be restored; what is empty or None is found out.

    `datastore` takes the VM's own files and all of its disks. `keep` its UUIDs and its cards'
    addresses. Cards are `connected` or not, to their networks or to what `mapped` has for them.
    `over` means the place of the VM that the point is of, which is off or, with `power_off`, is
    switched off when the new one is whole. `verify` reads the disks back and compares them.
    """

    name: str = ""
    host: str = ""
    datastore: str = ""
    folder: str = ""
    pool: str = ""
    keep: bool | None = None
    connected: bool | None = None
    mapped: Mapping[str, str] = field(default_factory=dict)
    over: bool = False
    power_off: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class RestoredVm:
    """A VM that is back, switched off. `told` says what is not as it was."""

    name: str
    moref: str
    host: str
    reference: str
    bytes: int
    seconds: float
    verified: bool
    told: tuple[str, ...]


def restore_vm(
    site: Site, reference: str, options: RestoreOptions, progress: Progress
) -> RestoredVm:
    """Import the VM of a restore point with all of its disks, which are streamed from the repository.

    RestoreTargetError when a VM is in the way, or the old one has what would be lost with it;
    UnknownVmError when there is none to restore over; VCenterOperationError when a disk does not
    read back as it is in the point. Then no new VM is left, and the old one is as it was.
    """
    began = time.monotonic()
    for sentence in tidy_restores(site):
        progress.note("", sentence)
    repository = site.repository()
    point = repository.find(reference)
    imports = site.vcenter().imports()
    alive = _alive(site.vcenter().inventory().vms, point)
    existing = imports.find(alive.instance_uuid) if alive is not None else None
    _check_over(point, alive, existing, options)
    made = _hardware(point, alive, options)
    host = options.host or (alive.host if alive is not None else "")
    if not host:
        raise ConfigurationError(
            f"vCenter has no VM {point.vm} any more, so say with --host where it is to be restored."
        )
    folder, pool = imports.home_of(alive.moref) if alive is not None else ("", "")
    wanted = Wanted(
        made.hardware,
        _place(point, made.hardware, host, options),
        existing if options.over else None,
        options.power_off,
        VmIdentity(made.bios_uuid, point.instance_uuid if _same(alive, options) else ""),
        folder,
        pool if alive is not None and host == alive.host else "",
    )
    plan = plan_import(imports, wanted)
    in_the_way = imports.existing(made.hardware.name, plan.place.folder, frozenset())
    if in_the_way is not None and not options.over:
        raise RestoreTargetError(
            f"There is a VM {in_the_way.name} ({in_the_way.moref}) in that folder; give the restored one "
            "another --name."
        )
    total = sum(disk.size_bytes for disk in point.disks)
    progress.stage(point.vm, "restore", total)
    with ExitStack() as stack:
        readers = _readers(site, stack, point, made.hardware)
        moref = import_vm(site, wanted, _sending(point, readers, progress, verify=options.verify))
    return RestoredVm(
        name=made.hardware.name,
        moref=moref,
        host=host,
        reference=f"{point.vm}@{point.run}",
        bytes=total,
        seconds=round(time.monotonic() - began, 3),
        verified=options.verify,
        told=(*made.told, *plan.told),
    )


def restore_ova(
    site: Site, reference: str, target: Path, progress: Progress
) -> tuple[OvaReport, tuple[str, ...]]:
    """Write a restore point's VM to one file; what was written, and what is not as it was.

    Raises as `write_ova` does, and UnsupportedFormatError for a point without a configuration file.
    """
    point = site.repository().find(reference)
    wished = Wished(point.vm, keep=False, connected=True, mapped={})
    made = hardware_of_point(point, wished, "")
    with ExitStack() as stack:
        readers = _readers(site, stack, point, made.hardware)
        progress.stage(point.vm, "restore", sum(disk.size_bytes for disk in point.disks))
        report = write_ova(
            made.hardware, readers, target, lambda count: progress.advance(point.vm, count)
        )
    return report, made.told


def _alive(vms: Sequence[VirtualMachine], point: RestorePoint) -> VirtualMachine | None:
    """The VM that the point was made of, if vCenter still has it."""
    return next((vm for vm in vms if vm.instance_uuid == point.instance_uuid), None)


def _same(alive: VirtualMachine | None, options: RestoreOptions) -> bool:
    """Whether the restored VM is the one that was lost, so that its backups go on."""
    return alive is None and options.keep is not False


def _check_over(
    point: RestorePoint,
    alive: VirtualMachine | None,
    existing: ExistingVm | None,
    options: RestoreOptions,
) -> None:
    if not options.over:
        if options.power_off:
            raise ConfigurationError("--power-off is for --over; nothing was restored.")
        return
    if alive is None or existing is None:
        raise UnknownVmError(
            f"vCenter has no VM {point.vm} to restore over; leave --over out, and say with --host where "
            "it is to be."
        )
    elsewhere = (options.name, options.folder, options.pool, options.host, options.datastore)
    if any(elsewhere) or options.keep is not None:
        raise ConfigurationError(
            "With --over the VM stays where it is, what it is called and who it is; leave out --name, "
            "--host, --datastore, --folder, --pool and --identity."
        )
    if not existing.powered_off and not options.power_off:
        raise RestoreTargetError(
            f"VM {existing.name} ({existing.moref}) is not powered off, so it is not restored over; "
            "shut it down first, or give --power-off."
        )
    captured = {disk.key for disk in point.disks}
    more = [disk.label for disk in alive.disks if disk.key not in captured]
    if more:
        raise RestoreTargetError(
            f"VM {existing.name} has {', '.join(more)}, which the restore point has not and which would "
            "be deleted with it; detach what is to stay, or restore to another --name."
        )


def _hardware(
    point: RestorePoint, alive: VirtualMachine | None, options: RestoreOptions
) -> RecoveredHardware:
    beside = alive is not None and not options.over
    name = options.name
    if not name:
        run = point.run[:13]
        name = (
            point.vm if alive is None else f"{alive.name}-restored-{run}" if beside else alive.name
        )
    made = hardware_of_point(
        point,
        Wished(
            name=name,
            keep=not beside if options.keep is None else options.keep,
            connected=not beside if options.connected is None else options.connected,
            mapped=options.mapped,
        ),
        options.datastore,
    )
    modes = parse_vmx(point.vmx.encode(), f"{point.vm}.vmx").modes
    disks = tuple(
        replace(
            disk,
            datastore=options.datastore or _datastore(image, alive),
            mode=modes.get(disk.address, disk.mode),
        )
        for disk, image in zip(made.hardware.disks, point.disks, strict=True)
    )
    return replace(made, hardware=replace(made.hardware, disks=disks))


def _datastore(image: DiskImage, alive: VirtualMachine | None) -> str:
    """Where the disk lies now, or lay then."""
    for disk in alive.disks if alive is not None else ():
        if disk.key == image.key:
            return disk.datastore
    return _bracketed(image.path)


def _bracketed(path: str) -> str:
    """The datastore of `[datastore] path`."""
    name, bracket, _ = path.removeprefix("[").partition("]")
    if not path.startswith("[") or not bracket:
        raise ConfigurationError(
            f"The restore point does not say on which datastore {path} lay; name one with --datastore."
        )
    return name


def _place(
    point: RestorePoint,
    hardware: VmHardware,
    host: str,
    options: RestoreOptions,
) -> WantedPlace:
    own = options.datastore or (hardware.disks[0].datastore if hardware.disks else "")
    if not own:
        raise ConfigurationError(
            f"{point.vm}@{point.run} has no disks; name a --datastore for the VM's own files."
        )
    return WantedPlace(host, own, options.folder, options.pool)


def _readers(
    site: Site, stack: ExitStack, point: RestorePoint, hardware: VmHardware
) -> Mapping[str, BlockReader]:
    """Open readers of all disks by address, before anything is begun."""
    readers = {}
    for disk, image in zip(hardware.disks, point.disks, strict=True):
        readers[disk.address] = site.repository().open_disk(image)
        stack.callback(readers[disk.address].close)
    return readers


def _sending(
    point: RestorePoint, readers: Mapping[str, BlockReader], progress: Progress, *, verify: bool
) -> Sending:
    def source(disk: HardDisk, told: Told) -> Iterator[bytes]:
        return stream_vmdk(readers[disk.address], told)

    def advance(disk: HardDisk) -> Told:
        return since_last(lambda count: progress.advance(point.vm, count))

    staged: list[bool] = []

    def check(disk: HardDisk, parts: Iterator[bytes]) -> None:
        if not staged:
            staged.append(True)
            progress.stage(point.vm, "verify", sum(each.size_bytes for each in point.disks))
        at = difference(parts, readers[disk.address], advance(disk))
        if at is not None:
            raise VCenterOperationError(
                f"Disk {disk.address} of the restored VM differs at byte {at} from the restore point, so "
                "it was deleted; look at the host's log and its storage, and restore again."
            )

    return Sending(source, advance, check if verify else None)
