"""How much is done at once, by all commands on a machine together, and how fast by each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings' section [limits], and what holds without it; each at least 1, but speeds.

    Speeds hold for one command on one machine; 0 is as fast as it goes.
    """

    host_tasks: int = 8
    """Tasks that vCenter works on at once for the island's host; that many it does by default."""
    host_luns: int = 256
    """Copies of LUNs that the island's host has at once. ESX sees 1,024 LUNs, whosever they are
    (vSphere 7 and 8, configuration maximums)."""
    storage_disks: int = 16
    """Disks copied at once from one storage system."""
    datastore_disks: int = 4
    """Disks copied at once from one datastore."""
    proxy_disks: int = 8
    """Disks copied at once by this machine."""
    proxy_served: int = 32
    """Mounts and exports that this machine serves at once."""
    read_mib_per_second: float = 0
    """Read from each storage system."""
    read_operations_per_second: float = 0
    """Reads of each storage system."""
    write_mib_per_second: float = 0
    """Written to the repository."""


DEFAULTS = Limits()
