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
from atoll.service.journal import Journal
from atoll.service.pins import Pins
from atoll.service.slots import Slots
from atoll.storage.interface import StorageEngine
from atoll.vsphere.client import VCenter


@dataclass(frozen=True, slots=True)
class IslandPlace:
    """The island's host by its name in vCenter, and where its placeholders are kept."""

    host: str
    home: str
    folder: str


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
    island: IslandPlace | None
    work_directory: Path
    close: Callable[[], None]
    """Log out of vCenter and let go of the repository, if they were opened."""
    copy: str | None = None
    """The copy that is this site's repository for now, None for the repository itself."""
