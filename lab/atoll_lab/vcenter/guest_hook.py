"""What the simulator asks of the guests behind its VMs, whoever runs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll_lab.vcenter.vmfs_files import LunRange

GuestDisk = LunRange | Path
"""A disk of a guest: a range of a LUN, or a file with its bytes."""


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """What a guest is started with; its network leads out only when `connected`."""

    vm: str
    memory_bytes: int
    cpus: int
    disks: Sequence[GuestDisk]
    connected: bool


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

    def follows(self, vm: str) -> bool:
        """Whether the VM's guest is to be started and stopped with its power state."""
        ...

    def start(self, plan: GuestPlan) -> None:
        """Power the guest on; returns when it runs."""
        ...

    def stop(self, vm: str) -> None:
        """Cut the guest's power. None is success."""
        ...

    def move_disks(self, vm: str, disks: Sequence[GuestDisk], files: Sequence[Path]) -> None:
        """Let each disk be a file instead, with what it holds, while the guest runs or is off."""
        ...


class NoGuests:
    """VMs that are only told of: quiescing succeeds, nothing is ever set."""

    def take_snapshot(self, vm: str, quiesce: bool) -> bool:
        return quiesce

    def merge_snapshot(self, vm: str) -> None:
        """There is nothing to merge."""

    def guestinfo(self, vm: str) -> Mapping[str, str]:
        return {}

    def follows(self, vm: str) -> bool:
        return False

    def start(self, plan: GuestPlan) -> None:
        """There is nothing to start."""

    def stop(self, vm: str) -> None:
        """There is nothing to stop."""

    def move_disks(self, vm: str, disks: Sequence[GuestDisk], files: Sequence[Path]) -> None:
        """There is nothing to move."""
