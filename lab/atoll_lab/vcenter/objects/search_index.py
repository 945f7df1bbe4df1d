"""The SearchIndex: objects by UUID or name."""

from typing import Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers


class SearchIndex(Managed):
    """Finds VMs and hosts without a walk through the inventory."""

    kind = vim.SearchIndex

    @answers("FindAllByUuid")
    def find_all_by_uuid(
        self,
        call: Call,
        uuid: str,
        vmSearch: bool,
        datacenter: Any = None,
        instanceUuid: bool = False,
    ) -> list[Any]:
        """VMs of that instance or BIOS UUID."""
        if not vmSearch:
            return []
        return [
            vm.ref
            for vm in self.site.vms()
            if uuid.lower() == (vm.state.instance_uuid if instanceUuid else vm.state.bios_uuid)
        ]

    @answers("FindByUuid")
    def find_by_uuid(
        self,
        call: Call,
        uuid: str,
        vmSearch: bool,
        datacenter: Any = None,
        instanceUuid: bool = False,
    ) -> Any:
        """The first VM of that UUID."""
        found = self.find_all_by_uuid(call, uuid, vmSearch, datacenter, instanceUuid)
        return found[0] if found else None
