"""What the simulator asks of the guests behind its VMs, whoever runs them."""

from collections.abc import Mapping
from typing import Protocol


class GuestHook(Protocol):
    """Real guests that follow VMware snapshots. A VM without a guest is passed over in silence.

    Calls take as long as the guest needs; what they raise becomes the task's error.
    """

    def take_snapshot(self, vm: str, quiesce: bool) -> bool:
        """From now on the VM's disks stand still and it writes elsewhere.

        Returns whether the guest was quiesced while that was begun.
        """
        ...

    def merge_snapshot(self, vm: str) -> None:
        """Put what was written since back into the disks. Harmless without a snapshot."""
        ...

    def guestinfo(self, vm: str) -> Mapping[str, str]:
        """What the guest has set since it was started, by key."""
        ...


class NoGuests:
    """VMs that are only told of: quiescing succeeds, nothing is ever set."""

    def take_snapshot(self, vm: str, quiesce: bool) -> bool:
        return quiesce

    def merge_snapshot(self, vm: str) -> None:
        """There is nothing to merge."""

    def guestinfo(self, vm: str) -> Mapping[str, str]:
        return {}
