"""The entry points: vcbMounter, vcbVmName, vcbUtil, vcbSnapAll and vcbRestore.

What reads storage is imported when it is needed: scripts call `vcbMounter -U` and `vcbVmName`
often, and those need little of it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from atoll.cli.vcb import place
from atoll.cli.vcb.console import FAILED, Console, command
from atoll.cli.vcb.options import (
    Kind,
    UnmountOptions,
    mounter_options,
    restore_options,
    snap_all_options,
    util_options,
    vm_name_options,
)
from atoll.cli.vcb.search import find, find_one, lines
from atoll.model.errors import AtollError, ConfigurationError, RestoreTargetError, UnknownVmError

if TYPE_CHECKING:
    from atoll.service.site import Site

OpenConsole = Callable[[int], Console]


def vcb_mounter() -> None:
    """Export or mount a VM, or take that away."""
    command("vcbMounter", _mounter)


def vcb_vm_name() -> None:
    """List VMs by any of their names."""
    command("vcbVmName", _vm_name)


def vcb_util() -> None:
    """Say whether vCenter answers, or what folders and resource pools it has."""
    command("vcbUtil", _util)


def vcb_snap_all() -> None:
    """Export several VMs, each to a directory of its own."""
    command("vcbSnapAll", _snap_all)


def vcb_restore() -> None:
    """Make a VM of an export."""
    command("vcbRestore", _restore)


def _site() -> "Site":
    """The site of the usual places: these commands have no --config."""
    from atoll.cli import context

    context.choose(None)
    return context.site()


def _mounter(words: list[str], open_console: OpenConsole) -> int:
    options = mounter_options(words)
    console = open_console(options.level)
    if isinstance(options, UnmountOptions):
        if place.clear(options.directory):
            console.say(f"Unmounted {options.directory}")
        else:
            console.log(f"{options.directory} is not there; nothing was to be unmounted.")
        return 0
    from atoll.cli.vcb import file_level, full_vm

    export = file_level.export if options.kind is Kind.FILE else full_vm.export
    with place.claimed(options.directory):
        site = _site()
        vm = find_one(site.vcenter(), options.search)
        export(site, vm, options, console)
    return 0


def _vm_name(words: list[str], open_console: OpenConsole) -> int:
    options = vm_name_options(words)
    console = open_console(options.level)
    vcenter = _site().vcenter()
    found = find(vcenter, options.search)
    if not found:
        raise UnknownVmError(f"vCenter has no VM that fits {options.search}.")
    addresses = vcenter.guest_addresses()
    for vm in found:
        for line in lines(vm, addresses.get(vm.moref, "")):
            console.say(line)
    return 0


def _util(words: list[str], open_console: OpenConsole) -> int:
    options = util_options(words)
    if options.command not in ("ping", "resourcepools", "vmfolders"):
        raise ConfigurationError(
            f"vcbUtil has no command {options.command!r}, only ping, resourcepools and vmfolders."
        )
    vcenter = _site().vcenter()
    console = open_console(options.level)
    if options.command == "ping":
        console.say("vCenter answers.")
        return 0
    places = vcenter.imports().places()
    paths = places.pools() if options.command == "resourcepools" else places.folders()
    for path in sorted(paths.values()):
        console.say(path)
    return 0


def _restore(words: list[str], open_console: OpenConsole) -> int:
    options = restore_options(words)
    console = open_console(options.level)
    from atoll.cli.vcb import restore

    restore.restore(_site(), options, console)
    return 0


def _snap_all(words: list[str], open_console: OpenConsole) -> int:
    from atoll.cli.vcb import full_vm
    from atoll.island.descriptor import safe_name

    options = snap_all_options(words)
    console = open_console(options.level)
    site = _site()
    vms = find(site.vcenter(), options.search)
    if not vms:
        raise UnknownVmError(f"vCenter has no VM that fits {options.search}.")
    try:
        options.directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RestoreTargetError(
            f"{options.directory} cannot be made ({error.strerror}); make it or name another."
        ) from error
    several = Counter(safe_name(vm.name) for vm in vms)
    failed = 0
    for vm in vms:
        name = safe_name(vm.name)
        own = name if several[name] == 1 else f"{name}.{vm.instance_uuid}"
        wanted = replace(options, directory=options.directory / own)
        try:
            with place.claimed(wanted.directory):
                full_vm.export(site, vm, wanted, console)
        except AtollError as error:
            failed += 1
            console.error(f"{vm.name}: {error}")
    if failed:
        console.error(f"{failed} of {len(vms)} VMs were not exported.")
    return FAILED if failed else 0
