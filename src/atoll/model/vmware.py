"""VMware snapshots that Atoll took, and what became of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VmwareSnapshot:
    """A VMware snapshot that exists. Times are seconds since the epoch by vCenter's clock.

    `quiesced` is vCenter's word on whether VMware Tools held the guest's file
    systems while it was made. `began_at` and `ended_at` are those of vCenter's
    task, `created_at` is the snapshot's own. `vm` is the VM's name.
    """

    instance_uuid: str
    vm: str
    name: str
    moref: str
    quiesced: bool
    created_at: float
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class LeftoverSnapshot:
    """A VMware snapshot of this site that nobody removed. `created_at` is by vCenter's clock."""

    instance_uuid: str
    vm: str
    name: str
    created_at: float
