"""What a job works with: one site's storage, vCenter, agents and repository."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.director.policy import HoldPolicy
from atoll.guests.authority import Authority
from atoll.guests.interface import GuestAgent
from atoll.model.limits import Limits
from atoll.model.retention import Retention
from atoll.repository.repository import Repository
from atoll.service.interrupted import InterruptedRuns
from atoll.service.journal import Journal
from atoll.service.pins import Pins
from atoll.service.slots import Slots
from atoll.storage.interface import StorageEngine
from atoll.storage.targets.tgt import Durability
from atoll.vsphere.client import VCenter


@dataclass(frozen=True, slots=True)
class IslandPlace:
    """The island's host by its name in vCenter, and where its placeholders are kept."""

    host: str
    home: str
    folder: str


@dataclass(frozen=True, slots=True)
class RecoveryPlace:
    """Where recoveries from the repository keep what is written, and where hosts reach their disks.

    Without a `directory` it is beside the site's other state. `ports` are the first and the last.
    """

    directory: Path | None = None
    addresses: tuple[str, ...] = ("127.0.0.1",)
    ports: tuple[int, int] = (22260, 23259)
    durability: Durability = "disk"


@dataclass(frozen=True)
class Site:
    """Opened lazily: each field is called when a job needs it, so `atoll points` needs no vCenter.

    `repository` raises ConfigurationError unless `has_repository`; a site that only captures needs
    none. `identity` marks what is the site's own on the storage and in vCenter.
    `agents` gives the channel of each enrolled guest by instance UUID; `renew_agents`
    renews the certificates that are due and gives a sentence for each that could not be.
    """

    vcenter: Callable[[], VCenter]
    engine: Callable[[], StorageEngine]
    repository: Callable[[], Repository]
    has_repository: bool
    identity: Callable[[], str]
    agents: Callable[[], Mapping[str, GuestAgent]]
    renew_agents: Callable[[], Sequence[str]]
    authority: Callable[[], Authority]
    journal: Callable[[], Journal]
    pins: Callable[[], Pins]
    slots: Callable[[], Slots]
    limits: Limits
    retention: Retention
    lock_days: int | None
    """For how long the repository's store lets nobody remove what is written; None if it does."""
    hold: HoldPolicy
    resume_seconds: float
    """For how long a run that was cut off while it copied is kept to be gone on with."""
    island: IslandPlace | None
    work_directory: Path
    close: Callable[[], None]
    """Log out of vCenter and let go of the repository, if they were opened."""
    recovery: RecoveryPlace = RecoveryPlace()
    catalogue: bool = True
    """Whether restore points get catalogues of their files."""
    copy: str | None = None
    """The copy that is this site's repository for now, None for the repository itself."""

    def interrupted(self, *, drop: bool = False) -> InterruptedRuns | None:
        """Runs that were cut off while they copied; with `drop` none is kept. None without a repository."""
        if not self.has_repository:
            return None
        return InterruptedRuns(
            self.journal(),
            self.engine(),
            self.repository,
            self.resume_seconds,
            self.copy,
            drop=drop,
        )
