"""How still an application was held, and the proof of it."""

from dataclasses import dataclass
from enum import StrEnum

from atoll.model.vmware import VmwareSnapshot


class Consistency(StrEnum):
    """What a restore point promises, best first.

    `crash` is what a power cut leaves; `none` that the disks are not even of one instant.
    """

    APP = "app"
    FILESYSTEM = "filesystem"
    CRASH = "crash"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """An application as the agent held it.

    `position` is its own notion of time (LSN, GTID). `witness` is the answer of
    the query the admin gave for it, taken while it was held. `held` is False
    when it could not be held and `detail` says why.
    """

    kind: str
    name: str
    held: bool
    position: str
    witness: str | None
    flush_seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """One guest's hold, times in seconds since the epoch by the guest's own clock.

    `began_at` is just before the first application was asked to hold,
    `frozen_at` when the last file system was frozen, `thawed_at` when all was
    let go. `unbroken` is the agent's word that applications and file systems
    stayed held from `frozen_at` until it was asked to let go; otherwise
    `reason` says what broke it and `thawed_at` is when that was.
    `clock_offset_seconds` is guest minus director, `clock_error_seconds` how
    far that can be wrong (half the round trip). `freeze_seconds` is how long the
    guest's kernel took to freeze its file systems, 0 where nobody measured it.
    """

    run: str
    began_at: float
    frozen_at: float
    thawed_at: float
    lease_seconds: float
    unbroken: bool
    reason: str
    applications: tuple[ApplicationState, ...]
    filesystems: tuple[str, ...]
    clock_offset_seconds: float
    clock_error_seconds: float
    freeze_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """How long anything in the guest may have felt the hold."""
        return self.thawed_at - self.began_at


@dataclass(frozen=True, slots=True)
class GroupInstant:
    """When a LUN group was snapshot, by its storage's clock, and how long its writes were held back."""

    group: str
    started_at: float
    finished_at: float
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """Why a restore point may be called what it is called.

    `snapshot_started_at` and `snapshot_finished_at` enclose the instants of all
    `instants`, by the storage's clock; `group` is the first of their groups.
    Points of older versions have no `instants`. `reasons` says what was lost;
    empty when all that was found in the guest was held. `way` is how it was held
    (`direct` or `vmware`), empty when it was not, and `fell_back` why better ways
    were not gone. `vmware` is the VMware snapshot below which the disks were read.
    """

    vm: str
    consistency: Consistency
    reasons: tuple[str, ...]
    hold: Hold | None
    group: str
    snapshot: str
    snapshot_started_at: float
    snapshot_finished_at: float
    host_before: str
    host_after: str
    instants: tuple[GroupInstant, ...] = ()
    way: str = ""
    fell_back: tuple[str, ...] = ()
    vmware: VmwareSnapshot | None = None
