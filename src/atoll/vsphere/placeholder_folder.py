"""The folders that placeholders lie in: made like production's, and nobody may power on what is there.

Source: vSphere Web Services API, AuthorizationManager and Folder.
"""

import threading
from functools import partial
from typing import Any

from pyVmomi import vim

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.collector import read_all
from atoll.vsphere.folders import FolderTree, bound, child, is_empty, read_one
from atoll.vsphere.hosts import find_host
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
    "Global.DisableMethods",
    "Global.EnableMethods",
    "VirtualMachine.Config.AddExistingDisk",
    "VirtualMachine.Config.AddNewDisk",
    "VirtualMachine.Config.AddRemoveDevice",
    "VirtualMachine.Config.AdvancedConfig",
    "VirtualMachine.Config.Annotation",
    "VirtualMachine.Config.CPUCount",
    "VirtualMachine.Config.ChangeTracking",
    "VirtualMachine.Config.DiskLease",
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
"""What anybody may do with a placeholder: all that a backup needs, and nothing of `Interact`.

Source of what a backup needs: Virtual Disk Development Kit Programming Guide, Credentials and
Privileges for VMDK Access; the disk lease is for the transport SAN.
"""

_SECONDS = 300.0


class PlaceholderFolder:
    """The folder called `name` in the datacenter of the island's host, and those below it.

    Raises what the session raises. Any thread may use it.
    """

    def __init__(self, session: Session, host: str, name: str) -> None:
        self._session = session
        self._host = host
        self._name = name
        self._known: dict[tuple[str, ...], str] = {}
        self._making = threading.Lock()

    def prepare(self) -> None:
        """Make it, and see that nobody at all may power on what is in it."""
        self._session.call("make the folder of the placeholders", self._prepare)

    def at(self, content: Any, path: tuple[str, ...]) -> Any:
        """The folder for placeholders of VMs there, made with all above it if need be."""
        with self._making:
            if path not in self._known:
                self._known[path] = str(self._made(content, path)._moId)
            return bound(content, vim.Folder, self._known[path])

    def datacenter(self, content: Any) -> Any:
        """That of the island's host."""
        at = self.host(content)
        while not isinstance(at, vim.Datacenter):
            at = read_one(content, at, ("parent",)).get("parent")
            if at is None:
                raise VCenterOperationError(
                    f"Host {self._host} is in no datacenter that this user may see."
                )
        return at

    def host(self, content: Any) -> Any:
        """The island's host."""
        rows = read_all(content, {vim.HostSystem: ("name",)}, self._session.page_objects)
        return bound(content, vim.HostSystem, find_host(rows, self._host).moref)

    def remove_empty(self) -> None:
        """Take away the folders below it that nothing is in any more."""
        self._known.clear()
        pages = self._session.page_objects

        def below(content: Any) -> list[str]:
            _, ours = self._place(content)
            return [] if ours is None else FolderTree.read(content, pages).below(ours._moId)

        what = "take away an empty folder of placeholders"
        for moref in self._session.call(what, below):
            task = self._session.call(what, partial(_remove_if_empty, moref=moref))
            if task is not None:
                self._session.call(
                    what, partial(await_task, task=task, what=what, deadline_seconds=_SECONDS)
                )

    def _made(self, content: Any, path: tuple[str, ...]) -> Any:
        _, folder = self._place(content)
        if folder is None:
            raise VCenterOperationError(
                f"The folder {self._name} of the placeholders is gone; refresh once more."
            )
        for name in path:
            folder = child(content, folder, name) or folder.CreateFolder(name)
        return folder

    def _place(self, content: Any) -> tuple[Any, Any | None]:
        """The VM folder of the datacenter, and ours in it if there is one."""
        vms = read_one(content, self.datacenter(content), ("vmFolder",))["vmFolder"]
        return vms, child(content, vms, self._name)

    def _prepare(self, content: Any) -> None:
        vms, folder = self._place(content)
        if folder is None:
            folder = vms.CreateFolder(self._name)
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
