"""VMs recovered in place: made on LUNs or registered from a copied volume, powered on, moved, ended.

Everything may be repeated. Source: vSphere Web Services API, Folder, VirtualMachine. Not run against
the product.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from atoll.model.errors import UnknownVmError, VCenterOperationError
from atoll.model.hardware import VmHardware
from atoll.vsphere.collector import Row, read_all, read_objects
from atoll.vsphere.folders import bound
from atoll.vsphere.import_spec import import_spec
from atoll.vsphere.places import Place, Places, WantedPlace
from atoll.vsphere.recovered_specs import (
    VM_PATHS,
    Network,
    RecoveredVm,
    adopted,
    marks,
    moved,
    on_luns,
    recovered_vm,
)
from atoll.vsphere.session import Session
from atoll.vsphere.tasks import await_task

_SECONDS = 300.0
_MOVE_SECONDS = 7 * 86400.0
_POLL_SECONDS = 0.1
_MOVED_OR_COPIED = "msg.uuid.altered"


@dataclass(frozen=True, slots=True)
class Identity:
    """The BIOS UUID of a VM, as vSphere writes it; empty for a new one."""

    bios_uuid: str = ""


class RecoveredVms:
    """Raises VCenterUnreachableError, AuthenticationError and VCenterOperationError as the session does."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, mark: str, datastores: Collection[str] = ()) -> RecoveredVm | None:
        """The VM of a recovery: the one with its mark, or whose VMX lies on one of the datastores.

        VCenterOperationError when there are several.
        """
        found = [
            vm
            for vm in self.all()
            if vm.mark == mark or vm.vmx.partition("]")[0].removeprefix("[") in datastores
        ]
        if len(found) > 1:
            raise VCenterOperationError(
                f"{', '.join(vm.name for vm in found)} all look like the VM of one recovery; take those "
                "out of vCenter's inventory that somebody else registered from its datastores."
            )
        return found[0] if found else None

    def all(self) -> list[RecoveredVm]:
        """Every VM whose configuration vCenter can tell."""
        pages = self._session.page_objects

        def read(content: Any) -> list[RecoveredVm]:
            return [
                recovered_vm(row)
                for row in read_all(content, {vim.VirtualMachine: VM_PATHS}, pages)
            ]

        return self._session.call("list its VMs", read)

    def place(self, wanted: WantedPlace, datastores: Collection[str]) -> Place:
        """The ids of a place, on whose host these datastores are mounted; VCenterOperationError."""
        pages = self._session.page_objects
        return self._session.call(
            "list its places", lambda content: Places.read(content, pages).find(wanted, datastores)
        )

    def create(
        self,
        hardware: VmHardware,
        wanted: WantedPlace,
        naas: Sequence[str],
        identity: Identity,
        mark: str,
    ) -> tuple[str, tuple[str, ...]]:
        """Make a VM whose disks are these LUNs, in their order, its own files on `wanted.datastore`.

        The host must see the LUNs. Its id, and sentences about what is not as it was.
        """
        place = self.place(wanted, ())
        made = import_spec(hardware, place, wanted)
        config = on_luns(made.spec.configSpec, naas, mark)
        if identity.bios_uuid:
            config.uuid = identity.bios_uuid

        def begin(content: Any) -> Any:
            return bound(content, vim.Folder, place.folder).CreateVM_Task(
                config,
                bound(content, vim.ResourcePool, place.pool),
                bound(content, vim.HostSystem, place.host),
            )

        vm = self._run(f"make VM {hardware.name}", begin)
        return str(vm._moId), made.told

    def register(self, vmx: str, name: str, wanted: WantedPlace) -> str:
        """Register a configuration file, `[datastore] folder/x.vmx`, that the host has mounted; its id."""
        place = self.place(wanted, ())

        def begin(content: Any) -> Any:
            return bound(content, vim.Folder, place.folder).RegisterVM_Task(
                vmx,
                name,
                False,
                bound(content, vim.ResourcePool, place.pool),
                bound(content, vim.HostSystem, place.host),
            )

        return str(self._run(f"register VM {name} from {vmx}", begin)._moId)

    def adopt(
        self, moref: str, paths: Mapping[int, str], network: Network, mark: str, *, keep: bool
    ) -> None:
        """See that a registered VM has the copied disks at `paths`, by device key, and no others.

        VCenterOperationError when it has others after that: it would write on production.
        """
        what = "give a registered VM the copies of its disks"

        def begin(content: Any) -> Any:
            (row,) = read_objects(
                content, vim.VirtualMachine, [moref], ("config.hardware.device",), 1
            )
            devices = row.get("config.hardware.device") or ()
            spec = adopted(devices, paths, network, mark, keep=keep)
            return bound(content, vim.VirtualMachine, moref).ReconfigVM_Task(spec)

        self._run(what, begin)
        known = set(paths.values())
        for disk in self.look(moref).disks:
            if disk.path not in known:
                raise VCenterOperationError(
                    f"The VM that was registered has disk {disk.path}, which is none of the copies, so "
                    "it is not powered on; end the recovery."
                )

    def look(self, moref: str) -> RecoveredVm:
        """A VM as it is now; UnknownVmError when it is gone."""

        def read(content: Any) -> RecoveredVm:
            return recovered_vm(_row(content, moref, VM_PATHS))

        return self._session.call("look at a recovered VM", read)

    def power_on(self, moref: str, *, keep: bool) -> None:
        """Power it on; on is success. The host's question whether it was moved is answered.

        `keep` says that it was, so that it keeps its UUID. VCenterOperationError for another
        question, which stays for an admin to answer.
        """
        what = "power on the recovered VM"
        task = self._session.call(
            what, lambda content: bound(content, vim.VirtualMachine, moref).PowerOnVM_Task()
        )
        deadline = time.monotonic() + _SECONDS
        while not self._over(what, task):
            if time.monotonic() > deadline:
                raise VCenterOperationError(
                    f"vCenter did not {what} within {_SECONDS:g} s; look at its tasks."
                )
            self._session.call(what, lambda content: _answer(content, moref, keep=keep))
            time.sleep(_POLL_SECONDS)

    def power_off(self, moref: str) -> None:
        """Switch it off hard; off is success."""
        if not self.look(moref).powered_on:
            return
        self._run(
            "power off the recovered VM",
            lambda content: bound(content, vim.VirtualMachine, moref).PowerOffVM_Task(),
        )

    def unregister(self, moref: str) -> None:
        """Take it out of the inventory; its files stay."""
        self._session.call(
            "unregister the recovered VM",
            lambda content: bound(content, vim.VirtualMachine, moref).UnregisterVM(),
        )

    def destroy(self, moref: str) -> None:
        """Delete it with its own files; of a mapping the LUN behind stays."""
        self._run(
            "delete the recovered VM",
            lambda content: bound(content, vim.VirtualMachine, moref).Destroy_Task(),
        )

    def move(self, moref: str, datastore: str) -> None:
        """Storage vMotion to a datastore, by name; takes as long as the disks are large."""
        vm = self.look(moref)
        what = f"move VM {vm.name} to datastore {datastore}"
        pages = self._session.page_objects

        def begin(content: Any) -> Any:
            rows = read_all(content, {vim.Datastore: ("name",)}, pages)
            found = [row for row in rows if row.get("name") == datastore]
            if not found:
                raise VCenterOperationError(f"vCenter knows no datastore {datastore}.")
            spec = moved(bound(content, vim.Datastore, found[0].moref), vm.disks)
            return bound(content, vim.VirtualMachine, moref).RelocateVM_Task(spec)

        self._run(what, begin, _MOVE_SECONDS)

    def unmark(self, moref: str) -> None:
        """Let it be a VM like any other."""
        spec = vim.vm.ConfigSpec(extraConfig=marks(""))
        self._run(
            "take the mark off a recovered VM",
            lambda content: bound(content, vim.VirtualMachine, moref).ReconfigVM_Task(spec),
        )

    def _over(self, what: str, task: Any) -> bool:
        def state(content: Any) -> tuple[str, Any]:
            (row,) = read_objects(content, vim.Task, [task._moId], ("info.state", "info.error"), 1)
            return str(row.get("info.state")), row.get("info.error")

        state_now, error = self._session.call(what, state)
        if state_now == "error" and not isinstance(error, vim.fault.InvalidPowerState):

            def fail(content: Any) -> None:
                raise error

            self._session.call(what, fail)
        return state_now in ("success", "error")

    def _run(self, what: str, begin: Callable[[Any], Any], seconds: float = _SECONDS) -> Any:
        """Begin a task and wait for its result."""
        task = self._session.call(what, begin)
        return self._session.call(what, lambda content: await_task(content, task, what, seconds))


def _answer(content: Any, moref: str, *, keep: bool) -> None:
    """Answer the question that a VM asks, if it asks one."""
    question = _row(content, moref, ("runtime.question",)).get("runtime.question")
    if question is None:
        return
    asked = {str(each.id) for each in question.message or ()}
    wanted = re.compile("moved" if keep else "copied", re.IGNORECASE)
    for choice in question.choice.choiceInfo if _MOVED_OR_COPIED in asked else ():
        if wanted.search(f"{choice.label} {choice.summary}"):
            bound(content, vim.VirtualMachine, moref).AnswerVM(question.id, choice.key)
            return
    raise VCenterOperationError(
        f"The host asks about the recovered VM: {question.text.strip()} Answer it in vCenter."
    )


def _row(content: Any, moref: str, paths: Sequence[str]) -> Row:
    try:
        (row,) = read_objects(content, vim.VirtualMachine, [moref], paths, 1)
    except vmodl.fault.ManagedObjectNotFound as error:
        raise UnknownVmError(
            "The recovered VM is gone from vCenter; end the recovery with --discard."
        ) from error
    return row
