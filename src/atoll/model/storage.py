"""Storage nouns: LUN, LUN group, snapshots, portals."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lun:
    """A LUN as the storage knows it; `naa` is `naa.` and 32 lower-case hex digits."""

    name: str
    group: str
    size_bytes: int
    naa: str
    serial: str
    vendor: str = "ATOLL"
    product: str = "LUN"


@dataclass(frozen=True, slots=True)
class LunGroup:
    """LUNs that are always snapshot together (a consistency group)."""

    name: str
    luns: tuple[Lun, ...]
    clone_of: str | None = None
    """`group@snapshot` when this group is a writable clone, else None."""


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """One atomic snapshot of all LUNs of a group.

    `started_at` and `finished_at` enclose the instant of the snapshot, in
    seconds since the epoch by the storage's clock; `pause_seconds` is how long
    writes were held back. `lun_sizes` gives each LUN's size then, in bytes.
    """

    group: str
    name: str
    started_at: float
    finished_at: float
    pause_seconds: float
    lun_sizes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Portal:
    """Where an initiator finds a presented LUN."""

    address: str
    port: int
    target: str
    lun_number: int


@dataclass(frozen=True, slots=True)
class Presentation:
    """A LUN presented to initiators (IQNs), reachable over the portals."""

    lun: str
    group: str
    initiators: tuple[str, ...]
    portals: tuple[Portal, ...]


@dataclass(frozen=True, slots=True)
class PoolCapacity:
    """Bytes of a pool; `provisioned_bytes` is what all LUNs promise together."""

    total_bytes: int
    free_bytes: int
    provisioned_bytes: int
