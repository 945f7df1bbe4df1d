"""The simulated site as a whole: state, objects, and the places where they meet."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pyVmomi import vmodl

from atoll_lab.blueprint import HostPlan
from atoll_lab.vcenter.fabric import Fabric
from atoll_lab.vcenter.faults import Faults
from atoll_lab.vcenter.guest_hook import GuestHook, NoGuests
from atoll_lab.vcenter.objects.base import Managed
from atoll_lab.vcenter.objects.datastore import Datastore
from atoll_lab.vcenter.objects.folder import Folder
from atoll_lab.vcenter.objects.host import HostSystem
from atoll_lab.vcenter.objects.http_nfc_lease import HttpNfcLease
from atoll_lab.vcenter.objects.layout import Layout, lay_out
from atoll_lab.vcenter.objects.snapshot import Snapshot
from atoll_lab.vcenter.objects.virtual_machine import VirtualMachine
from atoll_lab.vcenter.registry import Registry
from atoll_lab.vcenter.sessions import Sessions
from atoll_lab.vcenter.state import (
    DatastoreState,
    FolderState,
    HostState,
    SiteState,
    VmState,
    load_state,
    save_state,
)
from atoll_lab.vcenter.tasks import Tasks

PowerHook = Callable[[str, bool], None]
"""Told a VM's name and whether it goes on or off; raises when the guest would not."""

_LOCAL_DISK_BYTES = 100 << 30
_LEASE_SECONDS = 300.0
_M = TypeVar("_M", bound=Managed)


class Site:
    """Everything the server serves. Objects hold a reference to it and meet through it."""

    def __init__(
        self,
        directory: Path,
        fabric: Fabric,
        sessions: Sessions,
        hosts: Sequence[HostPlan],
        power_hook: PowerHook | None = None,
        page_size: int = 100,
        update_limit: int = 100,
        guests: GuestHook | None = None,
    ) -> None:
        """`hosts` are made in the first run only; later runs load what was saved in `directory`.

        `page_size` is how many objects one RetrievePropertiesEx answers at most,
        `update_limit` how many one WaitForUpdatesEx does.
        """
        self._directory = directory
        self._file = directory / "state.json"
        self.fabric = fabric
        self.sessions = sessions
        self.page_size = page_size
        self.update_limit = update_limit
        self.registry = Registry()
        self.faults = Faults()
        self.tasks = Tasks(self.registry, self.faults)
        self._power_hook = power_hook
        self.leases: dict[str, HttpNfcLease] = {}
        """Those of imports by ticket."""
        self.lease_seconds = _LEASE_SECONDS
        self.lease_host = ("*", "")
        """What URLs of leases have for a host, and the thumbprint beside it."""
        self.direct_host = ("", "")
        """The same of this server by its address."""
        self.guests: GuestHook = guests if guests is not None else NoGuests()
        loaded = load_state(self._file)
        self.state = first_state(hosts) if loaded is None else loaded
        self._forget_half_imports()
        self.layout: Layout = lay_out(self)
        for host in self.state.hosts:
            self.layout.add_host(HostSystem(self, host))
        for datastore in self.state.datastores:
            self.registry.add(Datastore(self, datastore))
        for folder in self.state.folders:  # parents were made before their children
            self._add_folder_object(folder)
        for vm in self.state.vms:
            self._add_objects(vm)
        save_state(self._file, self.state)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Change the state; saved and announced at the end. Raise before changing anything."""
        with self.registry.changing():
            yield
            save_state(self._file, self.state)

    def disk_directory(self, vm: str) -> Path:
        """Where the disks of an imported VM, by id, are files."""
        return self._directory / "disks" / vm

    def new_id(self, prefix: str) -> str:
        """A managed object id never used before."""
        self.state.next_id += 1
        return f"{prefix}-{self.state.next_id}"

    def power(self, vm: str, on: bool) -> None:
        """Let the guest behind a VM, if there is one, follow its power state."""
        if self._power_hook is not None:
            self._power_hook(vm, on)

    def host(self, moid: str) -> HostSystem:
        """A host by id; ManagedObjectNotFound."""
        return _as(HostSystem, self.registry.require(moid))

    def host_named(self, name: str) -> HostSystem:
        """A host by name; KeyError."""
        for host in self.state.hosts:
            if host.name == name:
                return self.host(host.moid)
        raise KeyError(f"There is no host {name}")

    def hosts(self) -> list[HostSystem]:
        """All hosts."""
        return [self.host(host.moid) for host in self.state.hosts]

    def datastore(self, moid: str) -> Datastore:
        """A datastore by id; ManagedObjectNotFound."""
        return _as(Datastore, self.registry.require(moid))

    def datastore_named(self, name: str) -> Datastore:
        """A datastore by name; KeyError."""
        for datastore in self.state.datastores:
            if datastore.name == name:
                return self.datastore(datastore.moid)
        raise KeyError(f"There is no datastore {name}")

    def datastores(self) -> list[Datastore]:
        """All datastores."""
        return [self.datastore(datastore.moid) for datastore in self.state.datastores]

    def vm(self, moid: str) -> VirtualMachine:
        """A VM by id; ManagedObjectNotFound."""
        return _as(VirtualMachine, self.registry.require(moid))

    def vm_named(self, name: str) -> VirtualMachine:
        """A VM by name; KeyError."""
        for vm in self.state.vms:
            if vm.name == name:
                return self.vm(vm.moid)
        raise KeyError(f"There is no VM {name}")

    def vms(self) -> list[VirtualMachine]:
        """All registered VMs."""
        return [self.vm(vm.moid) for vm in self.state.vms]

    def add_host(self, state: HostState) -> None:
        """Make a host known; call inside `change`."""
        self.state.hosts.append(state)
        self.layout.add_host(HostSystem(self, state))

    def add_datastore(self, state: DatastoreState) -> Datastore:
        """Make a datastore known; call inside `change`. A name that is taken gets a number."""
        names = {datastore.name for datastore in self.state.datastores}
        wanted, number = state.name, 1
        while state.name in names:
            state.name = f"{wanted} ({number})"
            number += 1
        self.state.datastores.append(state)
        datastore = Datastore(self, state)
        self.registry.add(datastore)
        return datastore

    def remove_datastore(self, moid: str) -> None:
        """Forget a datastore; call inside `change`."""
        self.state.datastores = [store for store in self.state.datastores if store.moid != moid]
        self.registry.remove(moid)

    def folder(self, moid: str) -> Folder:
        """A folder by id; ManagedObjectNotFound."""
        return _as(Folder, self.registry.require(moid))

    def content_of(self, folder: str) -> list[Managed]:
        """The folders and VMs in a folder."""
        return [
            *(self.folder(each.moid) for each in self.state.folders if each.parent == folder),
            *(self.vm(vm.moid) for vm in self.state.vms if vm.folder == folder),
        ]

    def add_folder(self, state: FolderState) -> Folder:
        """Make a folder for VMs known; call inside `change`."""
        self.state.folders.append(state)
        return self._add_folder_object(state)

    def remove_folder(self, moid: str) -> None:
        """Forget a folder; call inside `change`."""
        self.state.folders = [each for each in self.state.folders if each.moid != moid]
        self.registry.remove(moid)

    def add_vm(self, state: VmState) -> VirtualMachine:
        """Register a VM; call inside `change`."""
        self.state.vms.append(state)
        return self._add_objects(state)

    def remove_vm(self, moid: str) -> None:
        """Unregister a VM and put it on the shelf; call inside `change`."""
        vm = self.vm(moid)
        self.state.shelf[vm.vmx_path()] = vm.state
        self.state.vms = [state for state in self.state.vms if state.moid != moid]
        for snapshot in vm.state.snapshots:
            self.registry.remove(snapshot.moid)
        self.registry.remove(moid)

    def _forget_half_imports(self) -> None:
        """Leases end with the process, and their VMs with them."""
        for vm in [vm for vm in self.state.vms if vm.importing]:
            self.state.vms.remove(vm)
            shutil.rmtree(self.disk_directory(vm.moid), ignore_errors=True)

    def _add_folder_object(self, state: FolderState) -> Folder:
        parent = self.folder(state.parent)
        folder = Folder(self, state.moid, state.name, parent, lambda: self.content_of(state.moid))
        self.registry.add(folder)
        return folder

    def _add_objects(self, state: VmState) -> VirtualMachine:
        vm = VirtualMachine(self, state)
        self.registry.add(vm)
        for snapshot in state.snapshots:
            self.registry.add(Snapshot(self, snapshot.moid, vm))
        return vm


def first_state(hosts: Sequence[HostPlan]) -> SiteState:
    """Hosts as installed: software iSCSI on, nothing discovered, one local datastore each."""
    state = SiteState()
    for number, plan in enumerate(hosts, start=11):
        host = HostState(
            moid=f"host-{number}",
            name=plan.name,
            iqn=plan.iqn,
            cluster="island" if plan.island else "production",
        )
        state.hosts.append(host)
        short = plan.name.partition(".")[0]
        state.datastores.append(
            DatastoreState(
                moid=f"datastore-{number}",
                name=f"{short}-local",
                uuid=_local_uuid(plan.iqn),
                extents=["mpx.vmhba0:C0:T0:L0"],
                size_bytes=_LOCAL_DISK_BYTES,
                local_to=host.moid,
            )
        )
    return state


def _local_uuid(iqn: str) -> str:
    digest = hashlib.sha256(iqn.encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:16]}-{digest[16:20]}-{digest[20:32]}"


def _as(kind: type[_M], managed: Managed) -> _M:
    if not isinstance(managed, kind):
        raise vmodl.fault.InvalidArgument(msg=f"{managed.moid} is no {kind.__name__}")
    return managed
