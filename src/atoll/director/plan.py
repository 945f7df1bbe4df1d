"""From VM names to what one run will do: disks, datastores, LUNs, LUN groups."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from atoll.model.consistency import Consistency
from atoll.model.errors import UnknownVmError, UnprotectableVmError
from atoll.model.inventory import (
    MAX_DELTAS,
    Datastore,
    Inventory,
    VirtualDisk,
    VirtualMachine,
)
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
    owners = _owners(vm for vm in inventory.vms if vm.powered_on)
    planned = [_with_sharers(vm, owners) for vm in planned]
    snapped = {group for vm in planned for group in vm.groups}
    homes = _homes(inventory, luns_by_naa)
    bystanders = []
    for vm in sorted(inventory.vms, key=lambda vm: vm.name):
        below = [_disk_homes(disk, homes, luns_by_naa) for disk in vm.disks]
        if vm.instance_uuid not in found and any(groups & snapped for groups in below):
            bystanders.append(_bystander(vm, snapped, below))
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
    if vm.linked_clone or any(len(disk.folders) > 1 for disk in vm.disks):
        raise UnprotectableVmError(
            f"VM {vm.name} is a linked clone or keeps its snapshots elsewhere: its disks lie "
            "partly in another folder, which is not followed; make it a full clone, or remove its "
            "snapshots."
        )
    deepest = max((len(disk.below) for disk in vm.disks), default=0)
    if deepest > MAX_DELTAS:
        raise UnprotectableVmError(
            f"VM {vm.name} has {deepest} deltas on one another, more than the {MAX_DELTAS} that "
            "vSphere allows; consolidate its disks in vCenter and run again."
        )
    if not vm.disks:
        raise UnprotectableVmError(f"VM {vm.name} has no disk, so there is nothing to back up.")
    disks = tuple(_plan_disk(vm, disk, inventory, luns_by_naa) for disk in vm.disks)
    return PlannedVm(vm=vm, disks=disks, has_agent=vm.instance_uuid in with_agent)


def _plan_disk(
    vm: VirtualMachine, disk: VirtualDisk, inventory: Inventory, luns_by_naa: dict[str, Lun]
) -> PlannedDisk:
    where = f"Disk {disk.label} of VM {vm.name}"
    raw = _raw_lun(where, disk, luns_by_naa) if disk.rdm else None
    if raw is not None and not disk.below:
        # In physical mode the guest has the whole LUN, whatever size vCenter last saw.
        whole = replace(disk, size_bytes=max(disk.size_bytes, raw.size_bytes))
        return PlannedDisk(disk=whole, group=raw.group, vmfs_uuid="", luns=(), raw_lun=raw.name)
    vmfs_uuid, luns = _volume(where, inventory.datastore(disk.datastore), luns_by_naa)
    if raw is not None and raw.group != luns[0].group:
        raise UnprotectableVmError(
            f"{where} is a raw device mapping with a VMware snapshot, and its LUN is in group "
            f"{raw.group} while the snapshot lies in {luns[0].group}, so they are never snapshot "
            "together; put both in one group, or remove the VMware snapshot."
        )
    return PlannedDisk(
        disk=disk,
        group=luns[0].group,
        vmfs_uuid=vmfs_uuid,
        luns=tuple(lun.name for lun in luns),
        raw_lun=raw.name if raw is not None else "",
    )


def _raw_lun(where: str, disk: VirtualDisk, luns_by_naa: dict[str, Lun]) -> Lun:
    """The LUN of a raw device mapping."""
    if not disk.lun:
        raise UnprotectableVmError(
            f"{where} is a raw device mapping of a LUN that no host names "
            f"({disk.lun_uuid or 'vCenter does not say which'}); rescan the hosts and run again, or "
            "leave the VM out."
        )
    lun = luns_by_naa.get(disk.lun)
    if lun is None:
        raise UnprotectableVmError(
            f"{where} is a raw device mapping of LUN {disk.lun}, which no configured storage "
            "system serves; add that storage system, or leave the VM out."
        )
    return lun


def _volume(where: str, datastore: Datastore, luns_by_naa: dict[str, Lun]) -> tuple[str, list[Lun]]:
    """The VMFS volume of a disk's datastore: its UUID, and its LUNs in order."""
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
    return datastore.vmfs_uuid, luns


def _owners(vms: Iterable[VirtualMachine]) -> Mapping[str, list[VirtualMachine]]:
    """The VMs that have a disk, by what tells one disk from another."""
    owners: dict[str, list[VirtualMachine]] = {}
    for vm in vms:
        for disk in vm.disks:
            for identity in _identities(disk):
                owners.setdefault(identity, []).append(vm)
    return owners


def _with_sharers(planned: PlannedVm, owners: Mapping[str, list[VirtualMachine]]) -> PlannedVm:
    """The VM with the names of others that have a disk of it too."""

    def shared(disk: PlannedDisk) -> PlannedDisk:
        names = {
            vm.name
            for each in _identities(disk.disk)
            for vm in owners.get(each, ())
            if vm.instance_uuid != planned.vm.instance_uuid
        }
        return replace(disk, shared_with=tuple(sorted(names))) if names else disk

    return replace(planned, disks=tuple(map(shared, planned.disks)))


def _identities(disk: VirtualDisk) -> set[str]:
    """What tells that two VMs have the same disk: the file they write to, or the LUN."""
    files = {f"[{disk.datastore}] {disk.path}"}
    return files | {disk.lun} if disk.rdm and disk.lun else files


def _homes(inventory: Inventory, luns_by_naa: dict[str, Lun]) -> dict[str, set[str | None]]:
    """The LUN groups below each datastore, by its name; None for LUNs of no known system."""
    return {
        datastore.name: {
            lun.group if (lun := luns_by_naa.get(naa)) else None for naa in datastore.extents
        }
        for datastore in inventory.datastores
    }


def _disk_homes(
    disk: VirtualDisk, homes: dict[str, set[str | None]], luns_by_naa: dict[str, Lun]
) -> set[str | None]:
    """The LUN groups that a disk lies in; None for what no known storage system serves."""
    found: set[str | None] = set()
    if disk.rdm:
        lun = luns_by_naa.get(disk.lun)
        found.add(lun.group if lun else None)
    if not disk.rdm or disk.below:
        files = (disk.datastore, *(file.partition("] ")[0].lstrip("[") for file in disk.below))
        for datastore in files:
            found |= homes.get(datastore) or {None}
    return found


def _bystander(
    vm: VirtualMachine, snapped: Collection[str], below: Sequence[set[str | None]]
) -> Bystander:
    """What snapshots of the groups `snapped` hold of a VM that nobody holds.

    `below` are the LUN groups that each of its disks lies in.
    """
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
