"""From VM names to what one run will do: disks, datastores, LUNs, LUN groups."""

import difflib
from collections.abc import Collection, Sequence

from atoll.model.consistency import Consistency
from atoll.model.errors import UnknownVmError, UnprotectableVmError
from atoll.model.inventory import Inventory, VirtualDisk, VirtualMachine
from atoll.model.plan import Bystander, Plan, PlannedDisk, PlannedVm
from atoll.model.storage import Lun, LunGroup


def make_plan(
    run: str,
    names: Sequence[str],
    inventory: Inventory,
    groups: Sequence[LunGroup],
    with_agent: Collection[str],
) -> Plan:
    """Plan one run over the LUN groups that the named VMs' disks lie in.

    `groups` are the storage's groups, `with_agent` the instance UUIDs of VMs
    whose agents are enrolled. Nothing is touched. Raises UnknownVmError and
    UnprotectableVmError before any guest hears of the run.
    """
    luns_by_naa = {lun.naa: lun for group in groups for lun in group.luns}
    found = {vm.instance_uuid: vm for vm in (_find_vm(name, inventory) for name in names)}
    planned = [_plan_vm(vm, inventory, luns_by_naa, with_agent) for vm in found.values()]
    chosen = {vm.vm.instance_uuid for vm in planned}
    snapped = {group for vm in planned for group in vm.groups}
    homes = _homes(inventory, luns_by_naa)
    bystanders = [
        _bystander(vm, snapped, homes)
        for vm in sorted(inventory.vms, key=lambda vm: vm.name)
        if vm.instance_uuid not in chosen
        and any(homes.get(disk.datastore, set()) & snapped for disk in vm.disks)
    ]
    return Plan(run=run, vms=tuple(planned), bystanders=tuple(bystanders))


def _find_vm(name: str, inventory: Inventory) -> VirtualMachine:
    matches = [vm for vm in inventory.vms if name in (vm.name, vm.instance_uuid)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        uuids = ", ".join(vm.instance_uuid for vm in matches)
        raise UnknownVmError(
            f"{len(matches)} VMs are called {name}; name the one you mean by its UUID: {uuids}."
        )
    for left_out in inventory.left_out:
        if left_out.name == name:
            raise UnprotectableVmError(f"VM {name} cannot be protected: {left_out.reason}.")
    known = [vm.name for vm in inventory.vms]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"the nearest is {close[0]}." if close else "`atoll inventory` lists all VMs."
    raise UnknownVmError(f"vCenter knows no VM called {name}; {hint}")


def _plan_vm(
    vm: VirtualMachine,
    inventory: Inventory,
    luns_by_naa: dict[str, Lun],
    with_agent: Collection[str],
) -> PlannedVm:
    if vm.linked_clone:
        raise UnprotectableVmError(
            f"VM {vm.name} is a linked clone, whose disks lie partly in another VM's; "
            "make it a full clone, or let it be backed up from inside."
        )
    if vm.consolidation_needed:
        raise UnprotectableVmError(
            f"VM {vm.name} still has delta files of a VMware snapshot that was removed; consolidate "
            "its disks in vCenter and run again."
        )
    if vm.has_snapshot:
        raise UnprotectableVmError(
            f"VM {vm.name} has a VMware snapshot, so its disks are spread over delta files; "
            "remove the snapshot and run again."
        )
    if not vm.disks:
        raise UnprotectableVmError(f"VM {vm.name} has no disk, so there is nothing to back up.")
    disks = tuple(_plan_disk(vm, disk, inventory, luns_by_naa) for disk in vm.disks)
    return PlannedVm(vm=vm, disks=disks, has_agent=vm.instance_uuid in with_agent)


def _plan_disk(
    vm: VirtualMachine, disk: VirtualDisk, inventory: Inventory, luns_by_naa: dict[str, Lun]
) -> PlannedDisk:
    where = f"Disk {disk.label} of VM {vm.name}"
    if disk.rdm:
        raise UnprotectableVmError(
            f"{where} is a raw device mapping, which is not read from VMFS; "
            "convert it to a VMDK or leave the VM out."
        )
    datastore = inventory.datastore(disk.datastore)
    if not datastore.shared or datastore.kind != "VMFS" or datastore.vmfs_uuid is None:
        kind = "local" if not datastore.shared else datastore.kind
        raise UnprotectableVmError(
            f"{where} lies on {kind} datastore {datastore.name}, which no storage snapshot covers; "
            "move it to a VMFS datastore on a LUN of a configured storage system."
        )
    luns = []
    for naa in datastore.extents:
        lun = luns_by_naa.get(naa)
        if lun is None:
            raise UnprotectableVmError(
                f"{where} lies on LUN {naa} of datastore {datastore.name}, "
                "which no configured storage system serves; add that storage system."
            )
        luns.append(lun)
    groups = sorted({lun.group for lun in luns})
    if len(groups) > 1:
        raise UnprotectableVmError(
            f"{where} lies on datastore {datastore.name}, whose LUNs are in several groups "
            f"({', '.join(groups)}) and so are never snapshot together; put them in one group."
        )
    return PlannedDisk(
        disk=disk,
        group=groups[0],
        vmfs_uuid=datastore.vmfs_uuid,
        luns=tuple(lun.name for lun in luns),
    )


def _homes(inventory: Inventory, luns_by_naa: dict[str, Lun]) -> dict[str, set[str | None]]:
    """The LUN groups below each datastore, by its name; None for LUNs of no known system."""
    return {
        datastore.name: {
            lun.group if (lun := luns_by_naa.get(naa)) else None for naa in datastore.extents
        }
        for datastore in inventory.datastores
    }


def _bystander(
    vm: VirtualMachine, snapped: Collection[str], homes: dict[str, set[str | None]]
) -> Bystander:
    """What snapshots of the groups `snapped` hold of a VM that nobody holds."""
    below = [homes.get(disk.datastore) or {None} for disk in vm.disks]
    consistency, reason = Consistency.CRASH, "not in the job, so nothing of it was held"
    if any(None in groups or not groups <= set(snapped) for groups in below):
        consistency = Consistency.NONE
        reason = "not in the job, and some of its disks lie elsewhere"
    elif not vm.powered_on:
        reason = "not in the job, and not running"
    elif len(set().union(*below)) > 1:
        consistency = Consistency.NONE
        reason = (
            "not in the job, and its disks lie in several LUN groups, which were snapshot one "
            "after the other"
        )
    return Bystander(vm.name, vm.instance_uuid, consistency, reason)
