"""ExportVm: a lease under which the disks of a VM that is off are read as streams.

Source: vSphere Web Services API, VirtualMachine.ExportVm: privilege VApp.Export, InvalidPowerState
for a VM that is not off. Only what was imported here can be exported: its disks are files of the
simulator's.
"""

import uuid
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.authorization import require_privilege
from atoll_lab.vcenter.objects.base import Call, answers
from atoll_lab.vcenter.objects.http_nfc_lease import HttpNfcLease

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.virtual_machine import VirtualMachine


class ExportLease(HttpNfcLease):
    """A lease whose VM is whole, and stays whatever ends it."""

    exports = True

    def fail(self, fault: Any) -> None:
        """It ends with an error. Done stays done."""
        with self.site.registry.changing():
            if self._state in ("done", "error"):
                return
            self._state, self._error = "error", fault
            self._unwind()

    @answers("HttpNfcLeaseComplete")
    def complete(self, call: Call) -> None:
        """Nothing more is read; InvalidState."""
        with self.site.registry.changing():
            self._require_ready()
            self._state = "done"
            self._unwind()


def export_vm(vm: "VirtualMachine", call: Call) -> Any:
    """Begin an export and return its lease, which is ready at once."""
    site = vm.site
    require_privilege(site, call.session.user or "", vm, "VApp.Export")
    with site.change():
        if vm.state.powered_on:
            raise vim.fault.InvalidPowerState(
                msg="The VM is not off", requestedState="poweredOff", existingState="poweredOn"
            )
        if any(not disk.image for disk in vm.state.disks):
            raise vmodl.fault.NotSupported(msg="The simulator exports what was imported")
        kinds = {each.key: (each.kind, each.bus) for each in vm.state.controllers}
        names = {}
        for disk in vm.state.disks:
            kind, bus = kinds.get(disk.controller, ("VirtualIDEController", disk.controller - 200))
            names[disk.key] = f"{kind}{bus}:{disk.unit}"
        lease = ExportLease(
            site,
            f"session[{uuid.uuid4()}]{uuid.uuid4()}",
            call.session.key,
            str(uuid.uuid4()),
            site.lease_seconds,
        )
        site.registry.add(lease)
        site.leases[lease.ticket] = lease
    lease.begin(vm.moid, names)
    return lease.ref
