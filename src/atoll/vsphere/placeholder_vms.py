"""The island's placeholder VMs: production's hardware, the snapshot's disks, and never any power.

A placeholder is made once and keeps its id for ever, so that backup software knows it again. A
refresh points it to the disks of the newest snapshot; its own files lie on a datastore of the
island. Source: vSphere Web Services API, VirtualMachineConfigSpec.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyVmomi import vim

from atoll.model.errors import UnknownVmError, VCenterOperationError
from atoll.vsphere.collector import Row, read_all, read_objects
from atoll.vsphere.folders import FolderTree, bound, child, is_empty, read_one
from atoll.vsphere.inventory import names_of
from atoll.vsphere.placeholders import MANAGER
from atoll.vsphere.session import Session
from atoll.vsphere.tasks import await_task

ROLE = "Atoll placeholders"
PRIVILEGES = (
    "System.Anonymous",
    "System.Read",
    "System.View",
    "Datastore.Browse",
    "Datastore.FileManagement",
    "Folder.Create",
    "Folder.Delete",
    "VirtualMachine.Config.AddExistingDisk",
    "VirtualMachine.Config.AddNewDisk",
    "VirtualMachine.Config.AddRemoveDevice",
    "VirtualMachine.Config.AdvancedConfig",
    "VirtualMachine.Config.CPUCount",
    "VirtualMachine.Config.EditDevice",
    "VirtualMachine.Config.ManagedBy",
    "VirtualMachine.Config.Memory",
    "VirtualMachine.Config.RawDevice",
    "VirtualMachine.Config.RemoveDisk",
    "VirtualMachine.Config.Rename",
    "VirtualMachine.Config.Settings",
    "VirtualMachine.Inventory.Create",
    "VirtualMachine.Inventory.Delete",
    "VirtualMachine.Inventory.Move",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
)
"""What anybody may do with a placeholder: all that a backup needs, and nothing of `Interact`."""

_KEY = "atoll.vm"
_RUN = "atoll.run"
_SECONDS = 300.0
_PATHS = (
    "name",
    "parent",
    "config.managedBy",
    "config.extraConfig",
    "config.hardware.device",
    "snapshot",
)
_SOURCE_PATHS = (
    "parent",
    "config.instanceUuid",
    "config.guestId",
    "config.firmware",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.hardware.device",
)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A placeholder. `vm` is the instance UUID of its production VM, `run` whose disks it shows.

    `disks` are paths, `[datastore] folder/x.vmdk`, by device key. `in_use` while it has a VMware
    snapshot, which is how backup software says that it reads it. `folder` is the id of the one it
    lies in.
    """

    moref: str
    name: str
    vm: str
    run: str
    disks: Mapping[int, str]
    in_use: bool
    folder: str


@dataclass(frozen=True, slots=True)
class ShownDisk:
    """What a placeholder's disk stands on: a VMDK, `[datastore] path`, or the LUN `naa` by itself."""

    size_bytes: int
    path: str = ""
    naa: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a production VM is made of, as vSphere tells it; for `put` alone to understand.

    `folders` lead to it, outermost first; that of another datacenter than the island's begins
    with the datacenter.
    """

    cpus: int
    memory_mb: int
    guest_id: str
    firmware: str
    devices: tuple[Any, ...]
    folders: tuple[str, ...]


class Placeholders:
    """The placeholders on the island's host. Any thread may use it.

    Every call raises VCenterUnreachableError, AuthenticationError and VCenterOperationError as the
    session does. Everything may be repeated.
    """

    def __init__(self, session: Session, host: str, home: str, folder: str) -> None:
        self._session = session
        self._host = host
        self._home = home
        self._folder = folder
        self._folders: dict[tuple[str, ...], str] = {}
        self._making_folders = threading.Lock()

    def prepare(self) -> None:
        """Make the folder, and see that nobody at all may power on what is in it."""
        self._session.call("make the folder of the placeholders", self._prepare)

    def all(self) -> list[Placeholder]:
        """Every placeholder there is, by name."""
        pages = self._session.page_objects

        def read(content: Any) -> list[Placeholder]:
            rows = read_all(content, {vim.VirtualMachine: _PATHS}, pages)
            found = [one for row in rows if (one := _placeholder(row)) is not None]
            return sorted(found, key=lambda one: (one.name, one.moref))

        return self._session.call("list the placeholders", read)

    def hardware(self, instance_uuids: Sequence[str]) -> Mapping[str, Hardware]:
        """What production VMs are made of now, by instance UUID; those that are gone are left out."""
        pages = self._session.page_objects
        wanted = set(instance_uuids)

        def read(content: Any) -> Mapping[str, Hardware]:
            tree = FolderTree.read(content, pages)
            home = self._datacenter(content)
            rows = read_all(content, {vim.VirtualMachine: _SOURCE_PATHS}, pages)
            return {
                str(row.get("config.instanceUuid")): _hardware(row, tree, home._moId)
                for row in rows
                if row.get("config.instanceUuid") in wanted
            }

        return self._session.call("read the hardware of the VMs", read)

    def put(
        self,
        vm: str,
        name: str,
        run: str,
        hardware: Hardware,
        disks: Mapping[int, ShownDisk],
        known: Placeholder | None,
    ) -> Placeholder:
        """Make the VM's placeholder, or let the known one follow: name, folder, hardware, disks.

        `disks` are by the device key in production; one on a LUN by itself becomes a raw device
        mapping. Network cards are there and not connected. VCenterOperationError while somebody
        reads the known one.
        """
        what = f"make the placeholder of VM {name}"
        if known is not None and known.in_use:
            raise VCenterOperationError(
                f"Placeholder {known.name} has a VMware snapshot, so a backup job still reads it; it "
                "follows at the next refresh."
            )
        folder = self._session.call(
            what, lambda content: self._folder_of(content, hardware.folders)
        )
        spare = f"{name} ({vm[:8]})"
        if known is not None and known.folder != folder:
            # Under a name that nobody there has; the right one follows below.
            self._run(what, lambda content: _rename(content, known, spare))
            self._run(what, lambda content: _move(content, known, folder))

        def make(name: str) -> str:
            if known is None:
                spec = _new(vm, name, run, hardware, disks, self._home)
                made = self._run(what, lambda content: self._create(content, folder, spec))
                return str(made._moId)
            spec = _common(vm, name, run, hardware)
            spec.deviceChange = [
                *self._removals(known),
                *_attached(hardware, disks, _own_files(vm, self._home)),
            ]
            self._run(what, lambda content: _vm(content, known.moref).ReconfigVM_Task(spec))
            return known.moref

        try:
            moref = make(name)
        except VCenterOperationError as error:
            if not isinstance(error.__cause__, vim.fault.DuplicateName):
                raise
            # Until the next refresh: VMs swapped names, or one was put there by hand.
            moref = make(spare)

        def read(content: Any) -> Placeholder | None:
            rows = read_objects(content, vim.VirtualMachine, [moref], _PATHS, 1)
            return _placeholder(rows[0]) if rows else None

        made = self._session.call(what, read)
        if made is None:
            raise UnknownVmError(f"The placeholder of VM {name} is gone again; refresh once more.")
        return made

    def empty(self, placeholder: Placeholder) -> None:
        """Take its disks away, so that their volumes can go; their files stay as they are."""
        if not placeholder.disks:
            return
        spec = vim.vm.ConfigSpec(
            deviceChange=list(self._removals(placeholder)),
            extraConfig=_marks(placeholder.vm, ""),
        )
        self._run(
            f"take the disks from placeholder {placeholder.name}",
            lambda content: _vm(content, placeholder.moref).ReconfigVM_Task(spec),
        )

    def remove(self, placeholder: Placeholder) -> None:
        """Delete it with its own files; its disks are taken away before. Gone is success."""
        self.empty(placeholder)
        self._run(
            f"remove placeholder {placeholder.name}",
            lambda content: _vm(content, placeholder.moref).Destroy_Task(),
        )

    def _removals(self, placeholder: Placeholder) -> Iterator[Any]:
        """Take its disks away; of the files only mappings, which are its own, are deleted."""
        own = _own_files(placeholder.vm, self._home)
        for key, path in placeholder.disks.items():
            yield vim.vm.device.VirtualDeviceSpec(
                operation="remove",
                fileOperation="destroy" if path.startswith(own) else None,
                device=vim.vm.device.VirtualDisk(key=key, capacityInKB=0),
            )

    def remove_empty_folders(self) -> None:
        """Take away the folders below ours that nothing is in any more."""
        self._folders.clear()
        pages = self._session.page_objects

        def below(content: Any) -> list[str]:
            _, ours = self._place(content)
            return [] if ours is None else FolderTree.read(content, pages).below(ours._moId)

        what = "take away an empty folder of placeholders"
        for moref in self._session.call(what, below):
            task = self._session.call(what, partial(_remove_if_empty, moref=moref))
            if task is not None:
                self._await(task, what)

    def _run(self, what: str, begin: Callable[[Any], Any]) -> Any:
        """Begin a task and wait for its result."""
        return self._await(self._session.call(what, begin), what)

    def _await(self, task: Any, what: str) -> Any:
        return self._session.call(what, lambda content: await_task(content, task, what, _SECONDS))

    def _prepare(self, content: Any) -> None:
        vms, folder = self._place(content)
        if folder is None:
            folder = vms.CreateFolder(self._folder)
        manager = content.authorizationManager
        role = _role(content)
        # Whoever has a right above would have it here too, were it not said anew.
        above = manager.RetrieveEntityPermissions(vms, True)
        who = {(str(each.principal), bool(each.group)) for each in above}
        who.add((self._session.user, False))
        said = {
            (str(each.principal), bool(each.group))
            for each in manager.RetrieveEntityPermissions(folder, False)
            if each.roleId == role and each.propagate
        }
        # Of ourselves too, so it can be said only once; later only of those who are new.
        if who <= said:
            return
        manager.SetEntityPermissions(
            folder,
            [
                vim.AuthorizationManager.Permission(
                    principal=principal, group=group, roleId=role, propagate=True
                )
                for principal, group in sorted(who - said)
            ],
        )

    def _create(self, content: Any, folder: str, spec: Any) -> Any:
        host = self._host_ref(content)
        parent = read_one(content, host, ("parent",))["parent"]
        pool = read_one(content, parent, ("resourcePool",))["resourcePool"]
        return bound(content, vim.Folder, folder).CreateVM_Task(spec, pool, host)

    def _folder_of(self, content: Any, path: tuple[str, ...]) -> str:
        """The id of the folder for placeholders of VMs there, made with all above it if need be."""
        with self._making_folders:
            if path in self._folders:
                return self._folders[path]
            _, folder = self._place(content)
            if folder is None:
                raise VCenterOperationError(
                    f"The folder {self._folder} of the placeholders is gone; refresh once more."
                )
            for name in path:
                folder = child(content, folder, name) or folder.CreateFolder(name)
            self._folders[path] = str(folder._moId)
            return self._folders[path]

    def _place(self, content: Any) -> tuple[Any, Any | None]:
        """The VM folder of the host's datacenter, and ours in it if there is one."""
        vms = read_one(content, self._datacenter(content), ("vmFolder",))["vmFolder"]
        return vms, child(content, vms, self._folder)

    def _datacenter(self, content: Any) -> Any:
        at = self._host_ref(content)
        while not isinstance(at, vim.Datacenter):
            at = read_one(content, at, ("parent",)).get("parent")
            if at is None:
                raise VCenterOperationError(
                    f"Host {self._host} is in no datacenter that this user may see."
                )
        return at

    def _host_ref(self, content: Any) -> Any:
        rows = read_all(content, {vim.HostSystem: ("name",)}, self._session.page_objects)
        names = names_of({row.moref: str(row.get("name", "")) for row in rows})
        for row in rows:
            if names[row.moref] == self._host:
                return bound(content, vim.HostSystem, row.moref)
        raise VCenterOperationError(
            f"vCenter manages no host called {self._host}; it knows "
            f"{', '.join(sorted(names.values())) or 'none'}."
        )


def _placeholder(row: Row) -> Placeholder | None:
    manager = row.get("config.managedBy")
    if manager is None or manager.extensionKey != MANAGER:
        return None
    marks = {str(each.key): str(each.value) for each in row.get("config.extraConfig") or ()}
    return Placeholder(
        moref=row.moref,
        name=str(row.get("name", row.moref)),
        vm=marks.get(_KEY, ""),
        run=marks.get(_RUN, ""),
        disks={
            device.key: str(getattr(device.backing, "fileName", ""))
            for device in row.get("config.hardware.device") or ()
            if isinstance(device, vim.vm.device.VirtualDisk)
        },
        in_use=row.get("snapshot") is not None,
        folder=row.get("parent")._moId if row.get("parent") is not None else "",
    )


def _hardware(row: Row, tree: FolderTree, home: str) -> Hardware:
    return Hardware(
        cpus=int(row.get("config.hardware.numCPU", 1)),
        memory_mb=int(row.get("config.hardware.memoryMB", 1024)),
        guest_id=str(row.get("config.guestId") or ""),
        firmware=str(row.get("config.firmware") or ""),
        devices=tuple(row.get("config.hardware.device") or ()),
        folders=tree.path(row.get("parent"), home),
    )


def _new(
    vm: str,
    name: str,
    run: str,
    hardware: Hardware,
    disks: Mapping[int, ShownDisk],
    home: str,
) -> Any:
    own = _own_files(vm, home)
    spec = _common(vm, name, run, hardware)
    spec.guestId = hardware.guest_id or None
    spec.files = vim.vm.FileInfo(vmPathName=f"{own}atoll-{vm}.vmx")
    spec.managedBy = vim.ext.ManagedByInfo(extensionKey=MANAGER, type="placeholder")
    if hardware.firmware:
        spec.firmware = hardware.firmware
    spec.deviceChange = [
        *(_addition(device) for device in hardware.devices if _is_controller(device)),
        *(_addition(_unplugged(device)) for device in hardware.devices if _is_card(device)),
        *_attached(hardware, disks, own),
    ]
    return spec


def _own_files(vm: str, home: str) -> str:
    """How the paths of a placeholder's own files begin."""
    return f"[{home}] atoll-{vm}/"


def _common(vm: str, name: str, run: str, hardware: Hardware) -> Any:
    return vim.vm.ConfigSpec(
        name=name,
        numCPUs=hardware.cpus,
        memoryMB=hardware.memory_mb,
        annotation=f"Kept by Atoll for backup software: the disks of {name} as run {run} took them.",
        extraConfig=_marks(vm, run),
    )


def _marks(vm: str, run: str) -> list[Any]:
    return [
        vim.option.OptionValue(key=_KEY, value=vm),
        vim.option.OptionValue(key=_RUN, value=run),
    ]


def _attached(hardware: Hardware, disks: Mapping[int, ShownDisk], own: str) -> Iterator[Any]:
    """Disks at the controllers and units they have in production, over what the snapshot holds."""
    for device in hardware.devices:
        if not isinstance(device, vim.vm.device.VirtualDisk) or device.key not in disks:
            continue
        shown = disks[device.key]
        addition = _addition(
            vim.vm.device.VirtualDisk(
                key=device.key,
                controllerKey=device.controllerKey,
                unitNumber=device.unitNumber,
                capacityInKB=shown.size_bytes >> 10,
                capacityInBytes=shown.size_bytes,
                backing=_backing(shown, f"{own}disk-{device.key}.vmdk"),
            )
        )
        if shown.naa:
            addition.fileOperation = "create"
        yield addition


def _backing(shown: ShownDisk, mapping: str) -> Any:
    if not shown.naa:
        return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=shown.path, diskMode="persistent"
        )
    # Virtual, whatever production has: backup software reads a VMware snapshot, which a physical
    # mapping is left out of.
    return vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName=mapping,
        deviceName=f"/vmfs/devices/disks/{shown.naa}",
        compatibilityMode="virtualMode",
        diskMode="persistent",
    )


def _addition(device: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=device)


def _is_controller(device: Any) -> bool:
    kinds = (
        vim.vm.device.VirtualSCSIController,
        vim.vm.device.VirtualSATAController,
        vim.vm.device.VirtualNVMEController,
    )
    return isinstance(device, kinds)


def _is_card(device: Any) -> bool:
    return isinstance(device, vim.vm.device.VirtualEthernetCard)


def _unplugged(card: Any) -> Any:
    """The same card, connected to nothing, now or ever."""
    return type(card)(
        key=card.key,
        macAddress=card.macAddress,
        addressType="manual",
        backing=card.backing,
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=False, connected=False
        ),
    )


def _role(content: Any) -> int:
    """The number of our role, made or brought up to date."""
    manager = content.authorizationManager
    for role in read_one(content, manager, ("roleList",)).get("roleList") or ():
        if role.name == ROLE:
            if set(role.privilege) != set(PRIVILEGES):
                manager.UpdateAuthorizationRole(role.roleId, ROLE, list(PRIVILEGES))
            return int(role.roleId)
    return int(manager.AddAuthorizationRole(ROLE, list(PRIVILEGES)))


def _remove_if_empty(content: Any, moref: str) -> Any | None:
    folder = bound(content, vim.Folder, moref)
    if not is_empty(content, folder):
        return None
    # Not `Destroy`: it would delete what somebody puts there at this moment.
    return folder.UnregisterAndDestroy_Task()


def _rename(content: Any, known: Placeholder, name: str) -> Any:
    return _vm(content, known.moref).ReconfigVM_Task(vim.vm.ConfigSpec(name=name))


def _move(content: Any, known: Placeholder, folder: str) -> Any:
    vm = _vm(content, known.moref)
    return bound(content, vim.Folder, folder).MoveIntoFolder_Task([vm])


def _vm(content: Any, moref: str) -> Any:
    return bound(content, vim.VirtualMachine, moref)
