"""What happens between PowerOnVM_Task and a running guest: a question, and where its disks are."""

import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from atoll.model.errors import AtollError
from atoll_lab.vcenter.guest_hook import GuestDisk
from atoll_lab.vcenter.state import DiskState, VmState, new_uuid
from atoll_lab.vcenter.vmfs_files import range_of, volume_on

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.virtual_machine import VirtualMachine

_ANSWER_SECONDS = 600.0
_CANCEL, _MOVED, _COPIED = "0", "1", "2"


class Question:
    """The question whether a VM was moved or copied, which ESX asks when its file lies elsewhere.

    Message and choices are ESX's (`msg.uuid.altered`).
    """

    def __init__(self, vm: str) -> None:
        self.id = uuid.uuid4().hex[:8]
        self._vm = vm
        self._answer = ""
        self._answered = threading.Event()

    def info(self) -> Any:
        """As `runtime.question` tells it."""
        choices = (
            (_CANCEL, "button.uuid.cancel", "Cancel"),
            (_MOVED, "button.uuid.movedTheVM", "I Moved It"),
            (_COPIED, "button.uuid.copiedTheVM", "I Copied It"),
        )
        text = f"This virtual machine ({self._vm}) might have been moved or copied."
        return vim.vm.QuestionInfo(
            id=self.id,
            text=text,
            choice=vim.option.ChoiceOption(
                choiceInfo=[
                    vim.ElementDescription(key=key, label=label, summary=summary)
                    for key, label, summary in choices
                ],
                defaultIndex=2,
            ),
            message=[vim.vm.Message(id="msg.uuid.altered", text=text)],
        )

    def answer(self, choice: str) -> None:
        """Give the answer; InvalidArgument for one that is no choice."""
        if choice not in (_CANCEL, _MOVED, _COPIED):
            raise vmodl.fault.InvalidArgument(msg=f"{choice} is none of the choices")
        self._answer = choice
        self._answered.set()

    def wait(self) -> bool | None:
        """Whether it was copied; None when it is not to be powered on."""
        if not self._answered.wait(_ANSWER_SECONDS) or self._answer == _CANCEL:
            return None
        return self._answer == _COPIED


def settle_identity(state: VmState, *, copied: bool) -> None:
    """What ESX does upon the answer: a copy gets another UUID, and its cards other addresses."""
    state.copied = False
    if not copied:
        return
    state.bios_uuid = new_uuid()
    for number, nic in enumerate(state.nics):
        if nic.address_type != "manual":
            nic.mac = f"00:50:56:80:{uuid.uuid4().bytes[0]:02x}:{number:02x}"


def guest_disks(vm: "VirtualMachine") -> list[GuestDisk]:
    """Where a VM's host finds its disks now; GenericVmConfigFault for one that it cannot open."""
    return [_guest_disk(vm, disk) for disk in vm.state.disks]


def _guest_disk(vm: "VirtualMachine", disk: DiskState) -> GuestDisk:
    site, host = vm.site, vm.site.host(vm.state.host).state
    if disk.image:
        return Path(site.disk_directory(vm.moid) / disk.image)
    seen = {lun.naa: lun for lun in host.luns if lun.naa not in host.detached}
    if disk.kind == "rdm":
        if disk.lun not in seen:
            raise _cannot_open(vm, disk, f"the host has no LUN {disk.lun}")
        return range_of(seen[disk.lun], host.iqn, 0, disk.size_bytes)
    store = site.datastore(disk.datastore)
    if not store.reachable_from(host.moid) or store.state.local_to is not None:
        raise _cannot_open(vm, disk, "its datastore is not on LUNs that the host sees")
    try:
        with volume_on(site.fabric, host, store.state.extents) as (volume, luns):
            found = volume.disk_map(disk.path)
    except (AtollError, KeyError) as error:
        raise _cannot_open(vm, disk, str(error)) from error
    starts = {int(start) for start in found.lun_offset - found.disk_offset}
    if len(starts) != 1 or len(set(found.lun_index)) != 1:
        raise _cannot_open(vm, disk, "the lab runs guests from disks in one piece alone")
    lun = luns[found.luns[int(found.lun_index[0])]]
    return range_of(lun, host.iqn, starts.pop(), found.size_bytes)


def _cannot_open(vm: "VirtualMachine", disk: DiskState, why: str) -> Any:
    reason = f"Cannot open the disk {disk.path} of {vm.state.name}: {why}"
    return vim.fault.GenericVmConfigFault(msg=reason, reason=reason)
