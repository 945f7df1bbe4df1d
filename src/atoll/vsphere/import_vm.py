"""Importing a whole VM: made by vCenter, its disks sent as streams, whole or not there at all.

Source: vSphere Web Services API, ResourcePool.ImportVApp and HttpNfcLease. Not run against the
product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from atoll.model.errors import AtollError, VCenterOperationError
from atoll.model.hardware import HardDisk, VmHardware
from atoll.vsphere.collector import read_all, read_objects
from atoll.vsphere.folders import bound
from atoll.vsphere.import_spec import ImportSpec, import_spec
from atoll.vsphere.nfc_download import download
from atoll.vsphere.nfc_lease import DeviceUrl, Lease, LeaseInfo
from atoll.vsphere.nfc_upload import upload
from atoll.vsphere.placeholders import MANAGER
from atoll.vsphere.places import Place, Places, WantedPlace
from atoll.vsphere.session import Session
from atoll.vsphere.tasks import await_task

MARK = "atoll.restore"
"""The setting of a VM that is being restored: that of a site's restore and no other's."""

_READY_SECONDS = 600.0
_TASK_SECONDS = 300.0
_HALF_VM = "vCenter takes the half VM away when its lease has ended, in a few minutes"

Told = Callable[[int], None]
"""Receives how many bytes of a disk are done."""

Source = Callable[[HardDisk, Told], Iterator[bytes]]
"""Gives a disk as a stream-optimised VMDK."""

Received = Callable[[HardDisk, Iterator[bytes]], None]
"""Is given a disk as the same."""


@dataclass(frozen=True, slots=True)
class ExistingVm:
    """A VM that has the name that was asked for."""

    moref: str
    name: str
    powered_off: bool
    folder: str


@dataclass(frozen=True, slots=True)
class VmIdentity:
    """The UUIDs of a VM; empty for those that it has."""

    bios_uuid: str = ""
    instance_uuid: str = ""


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """An import that can begin. `told` says what will not be as it was."""

    name: str
    place: Place
    spec: ImportSpec

    @property
    def told(self) -> tuple[str, ...]:
        """Sentences for people."""
        return self.spec.told


class VmImports:
    """Imports over a session. Raises as the session does. Any thread may use it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def places(self) -> Places:
        """Hosts, folders, pools, datastores and networks as they are now."""
        pages = self._session.page_objects
        return self._session.call("list its places", lambda content: Places.read(content, pages))

    def home_of(self, moref: str) -> tuple[str, str]:
        """Ids of the folder and the resource pool of a VM, empty where it has none."""

        def read(content: Any) -> tuple[str, str]:
            paths = ("parent", "resourcePool")
            (row,) = read_objects(content, vim.VirtualMachine, [moref], paths, 1)
            found = (row.get(path) for path in paths)
            folder, pool = (str(ref._moId) if ref is not None else "" for ref in found)
            return folder, pool

        return self._session.call("say where a VM lies", read)

    def plan(self, hardware: VmHardware, wanted: WantedPlace) -> ImportPlan:
        """See whether there is such a place; VCenterOperationError when part of it is missing."""
        place = self.places().find(wanted, {disk.datastore for disk in hardware.disks})
        return ImportPlan(hardware.name, place, import_spec(hardware, place, wanted))

    def existing(self, name: str, folder: str, uuids: frozenset[str]) -> ExistingVm | None:
        """The VM of that name in a folder, by id, or with one of the UUIDs wherever it is.

        Placeholders of Atoll's island are none.
        """
        pages = self._session.page_objects
        paths = (
            "name",
            "parent",
            "runtime.powerState",
            "config.instanceUuid",
            "config.managedBy",
            "config.uuid",
        )

        def read(content: Any) -> ExistingVm | None:
            for row in read_all(content, {vim.VirtualMachine: paths}, pages):
                parent = row.get("parent")
                lies_in = str(parent._moId) if parent is not None else ""
                own = {row.get("config.instanceUuid"), row.get("config.uuid")}
                manager = row.get("config.managedBy")
                if manager is not None and manager.extensionKey == MANAGER:
                    continue
                if row.get("name") == name and (lies_in == folder or uuids & own):
                    off = row.get("runtime.powerState") == "poweredOff"
                    return ExistingVm(row.moref, name, off, lies_in)
            return None

        return self._session.call("list its VMs", read)

    def run(self, plan: ImportPlan, source: Source, progress: Callable[[HardDisk], Told]) -> str:
        """Import, and give the new VM's id. When it fails no VM is left.

        `source` gives each disk once, in the order of `plan`; `progress` is asked for a disk's
        own when it begins. Sending takes no file, and memory for a few MiB.
        """
        what = f"import VM {plan.name}"
        lease = Lease(self._session, self._begin(plan, what), what)
        try:
            info = lease.wait_ready(_READY_SECONDS)
            self._send(plan, lease, info, source, progress)
            lease.complete()
        except BaseException as error:
            _abort(lease, error)
            raise
        self._verify(plan, info.vm, what)
        return info.vm

    def read_back(self, plan: ImportPlan, moref: str, received: Received) -> None:
        """Read the disks of a VM that was imported and is off, and give each to `received`.

        What that raises ends it and passes; the VM stays as it is.
        """
        what = f"read VM {plan.name} back"
        lease = Lease(
            self._session,
            self._session.call(
                what,
                lambda content: str(
                    bound(content, vim.VirtualMachine, moref).ExportVm()._moId  # its lease
                ),
            ),
            what,
        )
        try:
            info = lease.wait_ready(_READY_SECONDS)
            with lease.kept(info, lambda: 0) as check:
                for disk, source in _targets(plan, info):
                    parts = download(self._session, source, f"disk {disk.address}")
                    received(disk, _checked(parts, check))
            lease.complete()
        except BaseException as error:
            _abort(lease, error, "the VM cannot be changed until its export lease has ended")
            raise

    def find(self, instance_uuid: str) -> ExistingVm | None:
        """The VM with an instance UUID; placeholders of Atoll's island have others."""
        pages = self._session.page_objects
        paths = ("name", "parent", "runtime.powerState", "config.instanceUuid")

        def read(content: Any) -> ExistingVm | None:
            for row in read_all(content, {vim.VirtualMachine: paths}, pages):
                if row.get("config.instanceUuid") == instance_uuid:
                    off = row.get("runtime.powerState") == "poweredOff"
                    parent = row.get("parent")
                    folder = str(parent._moId) if parent is not None else ""
                    return ExistingVm(row.moref, str(row.get("name")), off, folder)
            return None

        return self._session.call("list its VMs", read)

    def marked(self) -> Mapping[str, str]:
        """Ids of the VMs that a restore has marked for its own, by that mark."""
        pages = self._session.page_objects

        def read(content: Any) -> dict[str, str]:
            paths = {vim.VirtualMachine: ("config.extraConfig",)}
            return {
                str(option.value): row.moref
                for row in read_all(content, paths, pages)
                for option in row.get("config.extraConfig") or ()
                if option.key == MARK and option.value
            }

        return self._session.call("list its VMs", read)

    def identity(self, moref: str) -> VmIdentity:
        """The UUIDs of a VM."""

        def read(content: Any) -> VmIdentity:
            paths = ("config.uuid", "config.instanceUuid")
            (row,) = read_objects(content, vim.VirtualMachine, [moref], paths, 1)
            return VmIdentity(*(str(row.get(path) or "") for path in paths))

        return self._session.call("say what UUIDs a VM has", read)

    def is_off(self, moref: str) -> bool:
        """Whether a VM is powered off, and not suspended either."""

        def read(content: Any) -> bool:
            path = "runtime.powerState"
            (row,) = read_objects(content, vim.VirtualMachine, [moref], (path,), 1)
            return bool(row.get(path) == "poweredOff")

        return self._session.call("say whether a VM is off", read)

    def power_off(self, moref: str, name: str) -> None:
        """Switch a VM off hard; off is success."""
        if self.is_off(moref):
            return
        what = f"power off VM {name}"
        task = self._session.call(
            what, lambda content: bound(content, vim.VirtualMachine, moref).PowerOffVM_Task()
        )
        self._await(task, what)

    def delete(self, moref: str, name: str) -> None:
        """Delete a VM that is off, with its files; absent is success."""
        what = f"delete VM {name}"

        def begin(content: Any) -> Any:
            try:
                return bound(content, vim.VirtualMachine, moref).Destroy_Task()
            except vmodl.fault.ManagedObjectNotFound:
                return None

        task = self._session.call(what, begin)
        if task is not None:
            self._await(task, what)

    def settle(self, moref: str, name: str, identity: VmIdentity) -> None:
        """Let an imported VM be one like any other, of that name and with the UUIDs that are given."""
        spec = vim.vm.ConfigSpec(
            name=name, extraConfig=[vim.option.OptionValue(key=MARK, value="")]
        )
        if identity.bios_uuid:
            spec.uuid = identity.bios_uuid
        if identity.instance_uuid:
            spec.instanceUuid = identity.instance_uuid
        what = f"put the restored VM ({moref}) in its place as {name}"
        task = self._session.call(
            what, lambda content: bound(content, vim.VirtualMachine, moref).ReconfigVM_Task(spec)
        )
        self._await(task, what)

    def _begin(self, plan: ImportPlan, what: str) -> str:
        def begin(content: Any) -> str:
            pool = bound(content, vim.ResourcePool, plan.place.pool)
            lease = pool.ImportVApp(
                plan.spec.spec,
                bound(content, vim.Folder, plan.place.folder),
                bound(content, vim.HostSystem, plan.place.host),
            )
            return str(lease._moId)

        return self._session.call(what, begin)

    def _send(
        self,
        plan: ImportPlan,
        lease: Lease,
        info: LeaseInfo,
        source: Source,
        progress: Callable[[HardDisk], Told],
    ) -> None:
        targets = _targets(plan, info)
        total = sum(disk.size_bytes for disk, _ in targets) or 1
        done, before = 0, 0

        with lease.kept(info, lambda: min(99, (before + done) * 100 // total)) as check:
            for disk, target in targets:
                tell = progress(disk)

                def told(count: int, tell: Told = tell) -> None:
                    nonlocal done
                    done = count
                    tell(count)

                parts = _checked(source(disk, told), check)
                try:
                    upload(self._session, target, parts, f"disk {disk.address}")
                except AtollError as error:
                    _explain(lease, error)
                    raise
                before, done = before + disk.size_bytes, 0
            check()

    def _verify(self, plan: ImportPlan, moref: str, what: str) -> None:
        """VCenterOperationError when the VM that vCenter made is not the one that was asked for."""

        def read(content: Any) -> list[int]:
            path = "config.hardware.device"
            (row,) = read_objects(content, vim.VirtualMachine, [moref], (path,), 1)
            return sorted(
                int(device.capacityInBytes or device.capacityInKB << 10)
                for device in row.get(path) or ()
                if isinstance(device, vim.vm.device.VirtualDisk)
            )

        sizes = self._session.call(what, read)
        wanted = sorted(disk.size_bytes for disk in plan.spec.disks.values())
        if sizes != wanted:
            raise VCenterOperationError(
                f"The imported VM {plan.name} ({moref}) has disks of {sizes} bytes and should have "
                f"{wanted}; look at it in vCenter and delete it before you try again."
            )

    def _await(self, task: Any, what: str) -> None:
        self._session.call(what, lambda content: await_task(content, task, what, _TASK_SECONDS))


def _targets(plan: ImportPlan, info: LeaseInfo) -> list[tuple[HardDisk, DeviceUrl]]:
    """Each disk with where it goes; VCenterOperationError when the lease does not say."""
    urls: Mapping[str, DeviceUrl] = {each.device: each for each in info.urls}
    if len(info.urls) != len(plan.spec.disks) or len(urls) != len(info.urls):
        raise VCenterOperationError(
            f"vCenter asks for {len(info.urls)} disks of VM {plan.name}, which has "
            f"{len(plan.spec.disks)}; import it with other tools."
        )
    if len(info.urls) == 1:
        # Whatever it is called: simulators have other names than vCenter.
        return [(next(iter(plan.spec.disks.values())), info.urls[0])]
    found = []
    for device, disk in plan.spec.disks.items():
        if device not in urls:
            raise VCenterOperationError(
                f"vCenter does not say where disk {disk.address} of VM {plan.name} goes; it names "
                f"{', '.join(sorted(urls))}."
            )
        found.append((disk, urls[device]))
    return found


def _checked(parts: Iterator[bytes], check: Callable[[], None]) -> Iterator[bytes]:
    for part in parts:
        check()
        yield part


def _explain(lease: Lease, error: AtollError) -> None:
    """Add what vCenter knows of a disk that did not get through."""
    said = _ended_by(lease)
    if said:
        error.add_note(f"vCenter says: {said.rstrip('.')}.")


def _abort(lease: Lease, error: BaseException, else_: str = _HALF_VM) -> None:
    try:
        lease.abort(str(error) or type(error).__name__)
    except AtollError as failed:
        if not _ended_by(lease):  # else its VM is gone already
            error.add_note(f"The lease could not be aborted ({str(failed).rstrip('.')}); {else_}.")


def _ended_by(lease: Lease) -> str:
    """What ended the lease; empty when nothing did, or nobody can say."""
    try:
        return lease.error()
    except AtollError:
        return ""
