"""The island's placeholder VMs: production's hardware, the snapshot's disks, and never any power.

A placeholder is made once and keeps its id for ever, so that backup software knows it again. A
refresh points it to the disks of the newest snapshot; its own files lie on a datastore of the
island. Source: vSphere Web Services API, VirtualMachineConfigSpec.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyVmomi import vim

from atoll.model.errors import UnknownVmError, VCenterOperationError
from atoll.vsphere.collector import read_all, read_objects
from atoll.vsphere.folders import FolderTree, bound, read_one
from atoll.vsphere.placeholder_folder import PlaceholderFolder
from atoll.vsphere.placeholder_specs import (
    HARDWARE_PATHS,
    PLACEHOLDER_PATHS,
    Hardware,
    Placeholder,
    ShownDisk,
    changed_spec,
    emptied_spec,
    hardware_of,
    new_spec,
    placeholder_of,
)
from atoll.vsphere.session import Session
from atoll.vsphere.tasks import await_task

_SECONDS = 300.0


class Placeholders:
    """The placeholders on the island's host. Any thread may use it.

    Every call raises VCenterUnreachableError, AuthenticationError and VCenterOperationError as the
    session does. Everything may be repeated.
    """

    def __init__(self, session: Session, host: str, home: str, folder: str) -> None:
        self._session = session
        self._home = home
        self._folder = PlaceholderFolder(session, host, folder)

    def prepare(self) -> None:
        """Make the folder, and see that nobody at all may power on what is in it."""
        self._folder.prepare()

    def all(self) -> list[Placeholder]:
        """Every placeholder there is, by name."""
        pages = self._session.page_objects

        def read(content: Any) -> list[Placeholder]:
            rows = read_all(content, {vim.VirtualMachine: PLACEHOLDER_PATHS}, pages)
            found = [one for row in rows if (one := placeholder_of(row)) is not None]
            return sorted(found, key=lambda one: (one.name, one.moref))

        return self._session.call("list the placeholders", read)

    def hardware(self, instance_uuids: Sequence[str]) -> Mapping[str, Hardware]:
        """What production VMs are made of now, by instance UUID; those that are gone are left out."""
        pages = self._session.page_objects
        wanted = set(instance_uuids)

        def read(content: Any) -> Mapping[str, Hardware]:
            tree = FolderTree.read(content, pages)
            home = self._folder.datacenter(content)
            rows = read_all(content, {vim.VirtualMachine: HARDWARE_PATHS}, pages)
            return {
                str(row.get("config.instanceUuid")): hardware_of(row, tree, home._moId)
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
        reads the known one, also when that began only now.
        """
        what = f"make the placeholder of VM {name}"
        if known is not None and known.in_use:
            raise _still_read(known)
        folder = self._session.call(
            what, lambda content: str(self._folder.at(content, hardware.folders)._moId)
        )
        spare = f"{name} ({vm[:8]})"
        if known is not None and known.folder != folder:
            # Under a name that nobody there has; the right one follows below.
            self._run(what, lambda content: _rename(content, known, spare))
            self._run(what, lambda content: _move(content, known, folder))

        def make(name: str) -> str:
            if known is None:
                spec = new_spec(vm, name, run, hardware, disks, self._home)
                made = self._run(what, lambda content: self._create(content, folder, spec))
                return str(made._moId)
            spec = changed_spec(known, name, run, hardware, disks, self._home)
            self._run(what, lambda content: _reconfigure(content, known, spec))
            return known.moref

        try:
            moref = make(name)
        except VCenterOperationError as error:
            if not isinstance(error.__cause__, vim.fault.DuplicateName):
                raise
            # Until the next refresh: VMs swapped names, or one was put there by hand.
            moref = make(spare)

        def read(content: Any) -> Placeholder | None:
            rows = read_objects(content, vim.VirtualMachine, [moref], PLACEHOLDER_PATHS, 1)
            return placeholder_of(rows[0]) if rows else None

        made = self._session.call(what, read)
        if made is None:
            raise UnknownVmError(f"The placeholder of VM {name} is gone again; refresh once more.")
        return made

    def empty(self, placeholder: Placeholder) -> None:
        """Take its disks away, so that their volumes can go; their files stay as they are.

        VCenterOperationError when somebody reads it.
        """
        if not placeholder.disks:
            return
        spec = emptied_spec(placeholder, self._home)
        self._run(
            f"take the disks from placeholder {placeholder.name}",
            lambda content: _reconfigure(content, placeholder, spec),
        )

    def remove(self, placeholder: Placeholder) -> None:
        """Delete it with its own files; its disks are taken away before. Gone is success."""
        self.empty(placeholder)
        self._run(
            f"remove placeholder {placeholder.name}",
            lambda content: _vm(content, placeholder.moref).Destroy_Task(),
        )

    def remove_empty_folders(self) -> None:
        """Take away the folders of production that no placeholder is in any more."""
        self._folder.remove_empty()

    def _run(self, what: str, begin: Callable[[Any], Any]) -> Any:
        """Begin a task and wait for its result."""
        task = self._session.call(what, begin)
        return self._session.call(what, lambda content: await_task(content, task, what, _SECONDS))

    def _create(self, content: Any, folder: str, spec: Any) -> Any:
        host = self._folder.host(content)
        parent = read_one(content, host, ("parent",))["parent"]
        pool = read_one(content, parent, ("resourcePool",))["resourcePool"]
        return bound(content, vim.Folder, folder).CreateVM_Task(spec, pool, host)


def _reconfigure(content: Any, known: Placeholder, spec: Any) -> Any:
    """Change it unless a job has begun to read it since it was looked at.

    One that begins between this look and the change is kept from it by vCenter, which refuses
    specs made for an earlier version.
    """
    paths = ("snapshot", "config.changeVersion")
    (row,) = read_objects(content, vim.VirtualMachine, [known.moref], paths, 1)
    if row.get("snapshot") is not None:
        raise _still_read(known)
    spec.changeVersion = row.get("config.changeVersion")
    return _vm(content, known.moref).ReconfigVM_Task(spec)


def _still_read(known: Placeholder) -> VCenterOperationError:
    return VCenterOperationError(
        f"Placeholder {known.name} has a VMware snapshot, so a backup job still reads it; it "
        "follows at the next refresh."
    )


def _rename(content: Any, known: Placeholder, name: str) -> Any:
    return _reconfigure(content, known, vim.vm.ConfigSpec(name=name))


def _move(content: Any, known: Placeholder, folder: str) -> Any:
    vm = _vm(content, known.moref)
    return bound(content, vim.Folder, folder).MoveIntoFolder_Task([vm])


def _vm(content: Any, moref: str) -> Any:
    return bound(content, vim.VirtualMachine, moref)
