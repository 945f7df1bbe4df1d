"""How vSphere numbers devices: keys of controllers by their bus, keys of disks by controller and unit."""

from typing import Any

from pyVmomi import vim

_Device = vim.vm.device
_FIRST = (  # of controllers and of their disks, units a controller
    (_Device.VirtualSCSIController, 1000, 2000, 16),
    (_Device.VirtualAHCIController, 15000, 16000, 30),
    (_Device.VirtualNVMEController, 31000, 31000, 15),
    (_Device.VirtualIDEController, 200, 3000, 2),
)


def first_keys(kind: Any) -> tuple[int, int, int] | None:
    """The first key of a kind of controller, that of its disks, and how many disks one has."""
    for known, first, first_disk, units in _FIRST:
        if issubclass(kind, known):
            return first, first_disk, units
    return None


def disk_key(controller: int, unit: int) -> int:
    """The key of the disk at a unit of a controller, by its key; KeyError for no controller."""
    for _, first, first_disk, units in _FIRST:
        if 0 <= controller - first < 4:
            return first_disk + units * (controller - first) + unit
    raise KeyError(controller)
