"""Folders, and registering VMs in them."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.objects.vm_configuration import configure, refuse_duplicate
from atoll_lab.vcenter.objects.vm_registration import read_vm
from atoll_lab.vcenter.state import FolderState, VmState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site


class Folder(Managed):
    """A folder; what it holds is asked for at each look."""

    kind = vim.Folder

    def __init__(
        self,
        site: "Site",
        moid: str,
        name: str,
        parent: Managed | None,
        content: Callable[[], Sequence[Managed]],
    ) -> None:
        super().__init__(site, moid)
        self._name = name
        self._parent = parent
        self._content = content

    @property
    def display_name(self) -> str:
        """Its name."""
        return self._name

    def children(self) -> Iterable[Managed]:
        """What it holds."""
        return self._content()

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return self._name

    @exposes("parent")
    def parent(self) -> Any:
        """What it lies in."""
        return None if self._parent is None else self._parent.ref

    @exposes("childType")
    def child_types(self) -> list[Any]:
        """What may be in it."""
        kinds = {
            "group-d": [vim.Datacenter],
            "group-h": [vim.ComputeResource],
            "group-n": [vim.Network],
            "group-s": [vim.Datastore],
            "group-v": [vim.VirtualMachine, vim.VirtualApp],
        }
        return [vim.Folder, *kinds[self.moid[: len("group-v")]]]

    @exposes("childEntity")
    def child_entities(self) -> list[Any]:
        """What it holds."""
        return [child.ref for child in self._content()]

    @answers("CreateFolder")
    def create_folder(self, call: Call, name: str) -> Any:
        """A folder in this one; DuplicateName."""
        with self.site.change():
            for child in self._content():
                if child.kind is vim.Folder and child.display_name == name:
                    raise vim.fault.DuplicateName(msg=f"{name} exists", name=name, object=child.ref)
            state = FolderState(self.site.new_id("group-v"), name, self.moid)
            return self.site.add_folder(state).ref

    @answers("MoveIntoFolder_Task")
    def move_into(self, call: Call, list: Any) -> Any:
        """Put VMs into this folder; DuplicateName."""

        def work() -> None:
            with self.site.change():
                for ref in list:
                    vm = self.site.vm(ref._moId)
                    if vm.state.folder != self.moid:
                        refuse_duplicate(self.site, self.moid, vm.state.name)
                        vm.state.folder = self.moid

        return self.site.tasks.start(self, "MoveIntoFolder_Task", call.session.user or "", work)

    @answers("CreateVM_Task")
    def create_vm(self, call: Call, config: Any, pool: Any, host: Any = None) -> Any:
        """A new VM; its directory is made where `files.vmPathName` says."""

        def work() -> Any:
            site = self.site
            with site.change():
                refuse_duplicate(site, self.moid, config.name)
                chosen = host._moId if host is not None else self._first_host(pool)
                store, _, inside = str(config.files.vmPathName).partition("]")
                inside = inside.strip()
                found = [d for d in site.datastores() if d.state.name == store.removeprefix("[")]
                if not found or not found[0].reachable_from(chosen):
                    raise vim.fault.InvalidDatastorePath(
                        msg=f"Invalid datastore path '{config.files.vmPathName}'.",
                        datastorePath=config.files.vmPathName,
                    )
                directory = inside.strip("/") or config.name
                if not directory.endswith(".vmx"):
                    directory = f"{directory}/{config.name}.vmx"
                state = VmState(
                    moid=site.new_id("vm"),
                    name=config.name,
                    instance_uuid=config.instanceUuid or str(uuid.uuid4()),
                    bios_uuid=config.uuid or str(uuid.uuid4()),
                    host=chosen,
                    datastore=found[0].moid,
                    vmx_path=directory,
                    guest_os=config.guestId or "otherGuest64",
                    disks=[],
                    folder=self.moid,
                )
                if any(vm.vmx_path() == found[0].path(directory) for vm in site.vms()):
                    raise vim.fault.AlreadyExists(msg=f"{directory} is taken", name=directory)
                if any(vm.state.instance_uuid == state.instance_uuid for vm in site.vms()):
                    state.instance_uuid = str(uuid.uuid4())
                configure(site, state, config)
                return site.add_vm(state).ref

        return self.site.tasks.start(self, "CreateVM_Task", call.session.user or "", work)

    @answers("Destroy_Task")
    def destroy(self, call: Call) -> Any:
        """Delete the folder, which the simulator does for empty ones alone."""
        return self._remove(call, "Destroy_Task")

    @answers("UnregisterAndDestroy_Task")
    def unregister_and_destroy(self, call: Call) -> Any:
        """The same: of a folder that is not empty its VMs would be unregistered."""
        return self._remove(call, "UnregisterAndDestroy_Task")

    def _remove(self, call: Call, method: str) -> Any:
        def work() -> None:
            with self.site.change():
                if self._content():
                    raise vim.fault.InvalidState(msg=f"{self._name} is not empty")
                self.site.remove_folder(self.moid)

        return self.site.tasks.start(self, method, call.session.user or "", work)

    @answers("RegisterVM_Task")
    def register_vm(
        self,
        call: Call,
        path: str,
        asTemplate: bool,
        name: str | None = None,
        pool: Any = None,
        host: Any = None,
    ) -> Any:
        """Register the VM whose configuration file is at `[datastore] path`.

        The simulator knows the files of VMs it had registered before; others are read from
        their volume. The VM gets a new id and keeps its instance UUID, unless another VM has
        it, as with vSphere.
        """

        def work() -> Any:
            site = self.site
            on = host._moId if host is not None else self._first_host(pool) if pool else ""
            read = read_vm(site, path, on) if path not in site.state.shelf and on else None
            with site.change():
                if any(vm.vmx_path() == path for vm in site.vms()):
                    raise vim.fault.AlreadyExists(msg=f"{path} is registered", name=path)
                shelved = site.state.shelf.get(path) or read
                if shelved is None:
                    raise vim.fault.NotFound(msg=f"There is no configuration file {path}")
                if host is None and pool is None:
                    raise vmodl.fault.InvalidArgument(
                        msg="A host or a pool is needed", invalidProperty="pool"
                    )
                chosen = host._moId if host is not None else self._first_host(pool)
                if not site.datastore(shelved.datastore).reachable_from(chosen):
                    raise vim.fault.InaccessibleDatastore(
                        msg=f"{site.host(chosen).state.name} has not mounted the datastore",
                        datastore=site.datastore(shelved.datastore).ref,
                        name=site.datastore(shelved.datastore).state.name,
                    )
                refuse_duplicate(site, self.moid, name or shelved.name)
                site.state.shelf.pop(path, None)
                if any(vm.state.instance_uuid == shelved.instance_uuid for vm in site.vms()):
                    shelved.instance_uuid = str(uuid.uuid4())
                shelved.moid = site.new_id("vm")
                shelved.name = name or shelved.name
                shelved.template = asTemplate
                shelved.powered_on = False
                shelved.host = chosen
                shelved.folder = self.moid
                return site.add_vm(shelved).ref

        return self.site.tasks.start(self, "RegisterVM_Task", call.session.user or "", work)

    def _first_host(self, pool: Any) -> str:
        for cluster in self.site.layout.clusters.values():
            if cluster.pool.moid == pool._moId and cluster.members:
                return cluster.members[0].moid
        raise vmodl.fault.InvalidArgument(msg="The pool has no host", invalidProperty="pool")
