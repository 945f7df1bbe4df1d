"""Two pictures of vCenter, and what a person would say happened between them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from atoll.model.changes import ChangeKind
from atoll.vsphere.facts import DatastoreFacts, Facts, HostFacts, VmFacts
from atoll.vsphere.inventory import split_path


@dataclass(frozen=True, slots=True)
class Difference:
    """A change that is not numbered yet; fields as in InventoryChange."""

    kind: ChangeKind
    subject: str
    moref: str
    before: str = ""
    after: str = ""
    instance_uuid: str | None = None


def differences(
    pairs: Iterable[tuple[Facts | None, Facts | None]],
    old_names: Mapping[str, str],
    new_names: Mapping[str, str],
) -> list[Difference]:
    """What happened to each object, given its row before and after; None is not there.

    The names are those of hosts and datastores by moref, before and after.
    Hosts come first, then datastores, then VMs.
    """
    found: dict[type, list[Difference]] = {HostFacts: [], DatastoreFacts: [], VmFacts: []}
    for old, new in pairs:
        if isinstance(old, HostFacts) or isinstance(new, HostFacts):
            found[HostFacts] += _host(_if_host(old), _if_host(new))
        elif isinstance(old, DatastoreFacts) or isinstance(new, DatastoreFacts):
            found[DatastoreFacts] += _datastore(_if_datastore(old), _if_datastore(new))
        elif isinstance(old, VmFacts) or isinstance(new, VmFacts):
            found[VmFacts] += _vm(_if_vm(old), _if_vm(new), old_names, new_names)
    return [*found[HostFacts], *found[DatastoreFacts], *found[VmFacts]]


def _if_host(row: Facts | None) -> HostFacts | None:
    return row if isinstance(row, HostFacts) else None


def _if_datastore(row: Facts | None) -> DatastoreFacts | None:
    return row if isinstance(row, DatastoreFacts) else None


def _if_vm(row: Facts | None) -> VmFacts | None:
    return row if isinstance(row, VmFacts) else None


def _host(old: HostFacts | None, new: HostFacts | None) -> Iterator[Difference]:
    if new is None:
        if old is not None:
            yield Difference(ChangeKind.HOST_GONE, old.name, old.moref)
        return
    if old is None:
        yield Difference(ChangeKind.HOST_APPEARED, new.name, new.moref)
        return
    if old.name != new.name:
        yield Difference(ChangeKind.HOST_RENAMED, new.name, new.moref, old.name, new.name)
    if old.iqn != new.iqn:
        yield Difference(ChangeKind.HOST_INITIATOR, new.name, new.moref, old.iqn, new.iqn)
    for lun in sorted(old.luns.names - new.luns.names):
        yield Difference(ChangeKind.LUN_GONE, new.name, new.moref, before=lun)
    for lun in sorted(new.luns.names - old.luns.names):
        yield Difference(ChangeKind.LUN_APPEARED, new.name, new.moref, after=lun)


def _datastore(old: DatastoreFacts | None, new: DatastoreFacts | None) -> Iterator[Difference]:
    kind = ChangeKind
    if new is None:
        if old is not None:
            yield Difference(kind.DATASTORE_GONE, old.name, old.moref, before=_extents(old))
    elif old is None:
        yield Difference(kind.DATASTORE_APPEARED, new.name, new.moref, after=_extents(new))
    else:
        if old.name != new.name:
            yield Difference(kind.DATASTORE_RENAMED, new.name, new.moref, old.name, new.name)
        if _extents(old) != _extents(new):
            yield Difference(kind.DATASTORE_LUNS, new.name, new.moref, _extents(old), _extents(new))


def _vm(
    old: VmFacts | None,
    new: VmFacts | None,
    old_names: Mapping[str, str],
    new_names: Mapping[str, str],
) -> Iterator[Difference]:
    if new is None:
        if old is not None:
            host = old_names.get(old.host, old.host)
            yield _of(old, ChangeKind.VM_GONE, before=host)
    elif old is None:
        host = new_names.get(new.host, new.host)
        yield _of(new, ChangeKind.VM_APPEARED, after=host)
    else:
        yield from _vm_changed(old, new, old_names, new_names)


def _vm_changed(
    old: VmFacts, new: VmFacts, old_names: Mapping[str, str], new_names: Mapping[str, str]
) -> Iterator[Difference]:
    kind = ChangeKind
    if old.name != new.name:
        yield _of(new, kind.VM_RENAMED, old.name, new.name)
    if old.connection != new.connection:
        yield _of(new, kind.VM_CONTACT, old.connection, new.connection)
    if old.host != new.host:
        before, after = old_names.get(old.host, old.host), new_names.get(new.host, new.host)
        yield _of(new, kind.VM_MOVED_HOST, before, after)
    if set(old.datastores) != set(new.datastores):
        before = _listed(old_names.get(moref, moref) for moref in old.datastores)
        after = _listed(new_names.get(moref, moref) for moref in new.datastores)
        yield _of(new, kind.VM_MOVED_DATASTORE, before, after)
    if old.power != new.power:
        yield _of(new, kind.VM_POWER, old.power, new.power)
    if _files(old) != _files(new):
        before = ", ".join(disk.file for disk in old.disks)
        after = ", ".join(disk.file for disk in new.disks)
        yield _of(new, kind.VM_DISKS, before, after)
    for moref in sorted(old.snapshots.names.keys() - new.snapshots.names.keys()):
        yield _of(new, kind.VM_SNAPSHOT_GONE, before=old.snapshots.names[moref])
    for moref in sorted(new.snapshots.names.keys() - old.snapshots.names.keys()):
        yield _of(new, kind.VM_SNAPSHOT_APPEARED, after=new.snapshots.names[moref])
    if old.template != new.template:
        words = ("vm", "template")
        yield _of(new, kind.VM_TEMPLATE, words[old.template], words[new.template])


def _of(vm: VmFacts, kind: ChangeKind, before: str = "", after: str = "") -> Difference:
    return Difference(kind, vm.name, vm.moref, before, after, vm.instance_uuid or None)


def _files(vm: VmFacts) -> tuple[tuple[int, str, str, int, str, str], ...]:
    """What makes its disks the same; a datastore's new name alone changes none of them."""
    return tuple(
        (
            disk.key,
            disk.datastore or "",
            split_path(disk.file)[1],
            disk.size_bytes,
            disk.mode,
            disk.lun_uuid,
        )
        for disk in vm.disks
    )


def _extents(row: DatastoreFacts) -> str:
    return ", ".join(row.volume.extents) if row.volume else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
