"""Whole VMs into vSphere: on record before they are begun, so that no half one is left for ever.

vCenter takes a VM away whose lease ends before all of its disks are in; that covers a process that
is killed while it sends. One that is restored over another is made beside it, under another
name and with a mark, and takes its place when it is whole. What was cut short after that is
brought to its end by the next restore or `atoll cleanup`.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from atoll.model.errors import AtollError, RestoreTargetError
from atoll.model.hardware import HardDisk, VmHardware
from atoll.service.restores import OpenRestore, Restores
from atoll.service.site import Site
from atoll.vsphere.import_vm import (
    MARK,
    ExistingVm,
    ImportPlan,
    Received,
    Source,
    Told,
    VmIdentity,
    VmImports,
)
from atoll.vsphere.places import WantedPlace

_RESTORING = ".restoring"


@dataclass(frozen=True, slots=True)
class Sending:
    """How an import's disks are had: each once by `source`, `progress` is told how far it is.

    `check` sees each disk read back before the VM takes its place, if it is given.
    """

    source: Source
    progress: Callable[[HardDisk], Told]
    check: Received | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A VM to be imported. It takes the place of `existing`, if there is one, and its UUIDs.

    That one must be off when the new one is whole, or is switched off then if `power_off`. Else the
    VM gets those UUIDs of `identity` that are not empty. `folder` and `pool` (ids) count where `place`
    names none.
    """

    hardware: VmHardware
    place: WantedPlace
    existing: ExistingVm | None = None
    power_off: bool = False
    identity: VmIdentity = field(default_factory=VmIdentity)
    folder: str = ""
    pool: str = ""


def restores_of(site: Site) -> Restores:
    """The site's restores into vSphere."""
    return Restores(site.work_directory.parent / "restores")


def plan_import(imports: VmImports, wanted: Wanted) -> ImportPlan:
    """See whether it can be done; VCenterOperationError when part of the place is missing."""
    hardware, existing = wanted.hardware, wanted.existing
    if existing is not None:
        # It stays as it is until the new one is whole.
        hardware = replace(hardware, name=hardware.name + _RESTORING)
    plan = imports.plan(hardware, wanted.place)
    place = plan.place
    folder = wanted.folder or (existing.folder if existing is not None else "")
    if folder and not wanted.place.folder:
        place = replace(place, folder=folder)
    if wanted.pool and not wanted.place.pool:
        place = replace(place, pool=wanted.pool)
    return replace(plan, place=place)


def import_vm(site: Site, wanted: Wanted, sending: Sending) -> str:
    """Import a VM and give its id. Whatever fails or is killed leaves none, or one that is marked.

    A VM that is replaced is deleted with its files when the new one is whole. RestoreTargetError when
    it is not off then; raises as the session does, and what the parts of `sending` raise.
    """
    imports = site.vcenter().imports()
    with restores_of(site).begun(wanted.hardware.name) as restore:
        marked = _marked(wanted, mark_of(site, restore))
        try:
            plan = plan_import(imports, marked)
            moref = imports.run(plan, sending.source, sending.progress)
        except BaseException:
            _forget_if_gone(site, imports, restore)
            raise
        try:
            if sending.check is not None:
                imports.read_back(plan, moref, sending.check)
            identity, replaces = wanted.identity, ""
            if wanted.existing is not None:
                replaces = wanted.existing.moref
                identity = imports.identity(replaces)
                _stop(imports, wanted.existing, hard=wanted.power_off)
            restore.settling(replaces, identity.bios_uuid, identity.instance_uuid)
        except BaseException as error:
            _take_back(imports, restore, moref, error)
            raise
        # From here on it is only gone on with: the old VM may be gone already.
        try:
            _settle(imports, restore, moref)
        except AtollError as error:
            error.add_note(
                f"The restored VM ({moref}) is whole; `atoll cleanup` puts it in its place."
            )
            raise
    return moref


def tidy_restores(site: Site) -> list[str]:
    """End restores whose process died; a sentence each."""
    told: list[str] = []
    with restores_of(site).dead() as dead:
        if not dead:
            return told
        imports = site.vcenter().imports()
        marked = imports.marked()
        for restore in dead:
            moref = marked.get(mark_of(site, restore), "")
            try:
                told.append(_tidy(imports, restore, moref))
            except AtollError as error:
                again = (
                    " vCenter takes the half VM away by itself when its lease has ended, in a few minutes."
                    if restore.record.stage == "importing"
                    else ""
                )
                told.append(
                    f"The cut off restore of VM {restore.record.name} could not be ended: {error}{again}"
                )
    return told


def mark_of(site: Site, restore: OpenRestore) -> str:
    """What its VM has in its settings until it is like any other."""
    return f"{site.identity()}-{restore.record.id}"


def _tidy(imports: VmImports, restore: OpenRestore, moref: str) -> str:
    record = restore.record
    if not moref:
        restore.close()
        if record.stage == "settling":
            return f"VM {record.name} was restored already."
        return f"Of the cut off restore of VM {record.name} nothing was left."
    if record.stage == "settling":
        _settle(imports, restore, moref)
        return f"VM {record.name} ({moref}), whose restore was cut off, was put in its place."
    imports.delete(moref, f"{record.name}, half restored")
    restore.close()
    return f"What a cut off restore left of VM {record.name} ({moref}) was deleted."


def _settle(imports: VmImports, restore: OpenRestore, moref: str) -> None:
    record = restore.record
    if record.replaces:
        imports.delete(record.replaces, f"{record.name}, which is restored over,")
    identity = VmIdentity(record.bios_uuid, record.instance_uuid)
    imports.settle(moref, record.name, identity)
    restore.close()


def _stop(imports: VmImports, existing: ExistingVm, *, hard: bool) -> None:
    if hard:
        imports.power_off(existing.moref, existing.name)
    elif not imports.is_off(existing.moref):
        raise RestoreTargetError(
            f"VM {existing.name} ({existing.moref}) is not powered off, so it is not restored over; shut "
            "it down first."
        )


def _forget_if_gone(site: Site, imports: VmImports, restore: OpenRestore) -> None:
    """Forget a failed import, unless a VM of it is still there, or nobody can say."""
    with suppress(AtollError):
        if mark_of(site, restore) not in imports.marked():
            restore.close()


def _take_back(imports: VmImports, restore: OpenRestore, moref: str, error: BaseException) -> None:
    """Delete what was imported and may not take its place."""
    try:
        imports.delete(moref, f"{restore.record.name}, just imported,")
        restore.close()
    except AtollError as failed:
        error.add_note(
            f"The imported VM {moref} could not be deleted ({str(failed).rstrip('.')}); `atoll cleanup` "
            "does it."
        )


def _marked(wanted: Wanted, mark: str) -> Wanted:
    extra = {**wanted.hardware.extra, MARK: mark}
    return replace(wanted, hardware=replace(wanted.hardware, extra=extra))
