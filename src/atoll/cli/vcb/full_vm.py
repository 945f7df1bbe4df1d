"""`-t fullvm`: a VM's configuration and disks as files in a directory.

Disks are named as VCB names them, `scsi0-0-0-NAME.vmdk`: controller kind and
number, 0, the unit, and the name of the VMDK.
"""

import os
from functools import partial
from pathlib import Path

from atoll.cli.output import moment
from atoll.cli.vcb import place
from atoll.cli.vcb.catalog import FOLDER, POOL, Origin, catalog_text, unmount_text
from atoll.cli.vcb.console import VERBOSE, WARNING, Console
from atoll.cli.vcb.newest import served
from atoll.cli.vcb.options import ExportOptions, Kind
from atoll.island.descriptor import safe_name
from atoll.island.served import ServedDisk, ServedVm
from atoll.model.errors import AtollError, NotFoundInPointError
from atoll.model.inventory import VirtualMachine
from atoll.recovery.hosted_vmdk import VmdkForm, write_vmdk
from atoll.service.site import Site

_CONTROLLERS = (  # first key, name, units a controller: vSphere's keys of virtual disks
    (31000, "nvme", 15),
    (16000, "sata", 30),
    (3000, "ide", 2),
    (2000, "scsi", 16),
)


def export(site: Site, vm: VirtualMachine, options: ExportOptions, console: Console) -> None:
    """Export the newest run's state of a VM to a claimed directory. AtollError, OSError."""
    with served(site, vm) as source:
        console.log(
            f"{source.name} as of {moment(source.taken_at)}, run {source.run}, {source.consistency}"
        )
        disks = chosen_disks(source, options.left_out)
        configuration = _write_configuration(source, options.directory, console)
        for disk in disks:
            datastore = disk.path.partition("]")[0].lstrip("[")
            with site.slots().copying(None, datastore, partial(_waits, disk, console)):
                _write_disk(disk, options.directory, options.form, console)
        home = _home(site, vm, console)
        names = {address(disk): (f"{_stem(disk)}.vmdk", disk.path) for disk in disks}
        origin = Origin.of(source)
        place.finish(
            options.directory,
            unmount_text(Kind.FULL_VM, vm, origin),
            catalog_text(vm, origin, names, configuration, home),
        )


def chosen_disks(vm: ServedVm, left_out: frozenset[str]) -> list[ServedDisk]:
    """A VM's disks without those left out; NotFoundInPointError when one of those is none of its."""
    known = {name for disk in vm.disks for name in (address(disk), disk.file)}
    for name in sorted(left_out - known):
        raise NotFoundInPointError(
            f"{vm.name} has no disk {name} to leave out, only "
            f"{', '.join(f'{address(disk)} ({disk.file})' for disk in vm.disks)}."
        )
    return [disk for disk in vm.disks if left_out.isdisjoint({address(disk), disk.file})]


def address(disk: ServedDisk) -> str:
    """Controller and unit, as the VMX names them: `scsi0:1`."""
    for first, name, units in _CONTROLLERS:
        if disk.key >= first:
            bus, unit = divmod(disk.key - first, units)
            return f"{name}{bus}:{unit}"
    return f"disk{disk.key}:0"


def _stem(disk: ServedDisk) -> str:
    bus, unit = address(disk).split(":")
    return f"{bus}-0-{unit}-{safe_name(disk.file.removesuffix('.vmdk'))}"


def _home(site: Site, vm: VirtualMachine, console: Console) -> dict[str, str]:
    """Where the VM lies in vCenter, for whoever restores it; an export is whole without."""
    try:
        imports = site.vcenter().imports()
        places = imports.places()
        folder, pool = imports.home_of(vm.moref)
    except AtollError as error:
        console.log(f"The catalog has no folder and no resource pool: {error}", WARNING)
        return {}
    known = {FOLDER: folder, POOL: pool}
    return {name: places.path(moref) for name, moref in known.items() if moref}


def _write_configuration(vm: ServedVm, directory: Path, console: Console) -> tuple[str, ...]:
    """VMX, NVRAM and the like; their names."""
    found = {safe_name(name): content for name, content in vm.configuration().items()}
    for name, content in sorted(found.items()):
        bar = console.progress(f'Copying "{name}"', len(content))
        with (directory / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        bar.finish()
    if not any(name.endswith(".vmx") for name in found):
        console.log(
            f"Run {vm.run} has no configuration file of {vm.name}; only disks are exported.",
            WARNING,
        )
    return tuple(sorted(found))


def _waits(disk: ServedDisk, console: Console, why: str) -> None:
    console.log(f"{disk.path} {why}")


def _write_disk(disk: ServedDisk, directory: Path, form: VmdkForm, console: Console) -> None:
    stem = _stem(disk)
    console.log(f"{disk.path}: {disk.size_bytes} bytes", VERBOSE)
    how = "flat" if form.flat else "compact"
    bar = console.progress(f'Converting "{directory / stem}.vmdk" ({how} file)', disk.size_bytes)
    reader = disk.open()
    try:
        write_vmdk(reader, directory, stem, form, bar)
    finally:
        reader.close()
    bar.finish()
