"""Storage nouns: LUN, LUN group, snapshots, portals, pools and what an engine can do."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Lun:
    """A LUN as the storage knows it; `naa` is `naa.` and 32 lower-case hex digits.

    `volume` is what the engine calls it behind the scenes, the same for as long
    as it exists. `lost` when the engine no longer has it, which reconcile finds.
    """

    name: str
    group: str
    size_bytes: int
    naa: str
    serial: str
    vendor: str = "ATOLL"
    product: str = "LUN"
    volume: str = ""
    lost: bool = False


@dataclass(frozen=True, slots=True)
class LunGroup:
    """LUNs that are always snapshot together (a consistency group)."""

    name: str
    luns: tuple[Lun, ...]
    clone_of: str | None = None
    """`group@snapshot` when this group is a clone, else None."""
    read_only: bool = False
    """Initiators can only read; clones alone can be so."""


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """One atomic snapshot of all LUNs of a group.

    `started_at` and `finished_at` enclose the instant of the snapshot, in
    seconds since the epoch by the storage's clock; `pause_seconds` is how long
    writes were held back. `lun_sizes` gives each LUN's size then, in bytes.
    It may be deleted from `expires_at` on (seconds since the epoch); None is never.
    """

    group: str
    name: str
    started_at: float
    finished_at: float
    pause_seconds: float
    lun_sizes: tuple[tuple[str, int], ...]
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Portal:
    """Where an initiator finds a presented LUN."""

    address: str
    port: int
    target: str
    lun_number: int


@dataclass(frozen=True, slots=True)
class Presentation:
    """A LUN presented to initiators (IQNs), reachable over each of the portals."""

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

    @property
    def used_share(self) -> float:
        """How full it is, from 0 to 1."""
        return 1 - self.free_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def overcommit_ratio(self) -> float:
        """What is promised for each byte there is."""
        return self.provisioned_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class PoolDevice:
    """A disk of a pool. `used_bytes` is what must move elsewhere before it can go."""

    path: str
    size_bytes: int
    used_bytes: int
    errors: int = 0
    missing: bool = False


@dataclass(frozen=True, slots=True)
class DurabilityChoice:
    """A way to acknowledge writes: when that is, what a crash of the storage's host loses.

    `writes_per_second` was measured on the pool, 4 KiB each, one at a time.
    """

    name: str
    chosen: bool
    acknowledged_when: str
    crash_loses: str
    writes_per_second: float


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, so that callers need not try.

    `changed_extents`: `listed` by the storage, or `compared`, when everything
    counts as changed and the repository's hashes find out. `direct_read`: a
    snapshot is read from the engine, not over iSCSI. `protocols` says how LUNs
    can reach initiators; none means that the engine cannot present. `chap`: they
    can be given CHAP accounts; where not, the storage chooses those. LUN sizes are
    multiples of `unit_bytes`.
    """

    changed_extents: Literal["listed", "compared"] = "listed"
    direct_read: bool = True
    read_only_clones: bool = True
    revert: bool = True
    protocols: frozenset[Literal["iscsi", "fc"]] = frozenset({"iscsi"})
    chap: bool = True
    unit_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class PoolAlarm:
    """A threshold of a pool that was passed: `level` says how soon somebody must act."""

    level: Literal["warning", "critical"]
    text: str
