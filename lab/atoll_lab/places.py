"""Where a lab keeps what it makes, and its name's rules."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import ConfigurationError

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,15}$")


@dataclass(frozen=True, slots=True)
class Places:
    """The directories and files of one lab, all below `root`."""

    name: str
    root: Path

    @property
    def storage(self) -> Path:
        """Backing file and mount point of the storage pool."""
        return self.root / "storage"

    @property
    def pool(self) -> Path:
        """The mounted pool."""
        return self.storage / "pool"

    @property
    def vcenter(self) -> Path:
        """State of the vCenter simulator."""
        return self.root / "vcenter"

    @property
    def guests(self) -> Path:
        """One directory a guest: pid file, sockets, console log, config drive."""
        return self.root / "guests"

    @property
    def agents(self) -> Path:
        """The director's certificate authority and enrolled agents."""
        return self.root / "agents"

    @property
    def repository(self) -> Path:
        """Where restore points go."""
        return self.root / "repository"

    @property
    def state(self) -> Path:
        """The director's journal and work directory."""
        return self.root / "state"

    @property
    def settings(self) -> Path:
        """Atoll's settings for this site."""
        return self.root / "atoll.toml"

    @property
    def record(self) -> Path:
        """What the lab itself must remember."""
        return self.root / "lab.json"


def labs_root() -> Path:
    """The directory of all labs: $ATOLL_LAB_ROOT or /var/lib/atoll-lab."""
    return Path(os.environ.get("ATOLL_LAB_ROOT", "/var/lib/atoll-lab"))


def places(name: str) -> Places:
    """The places of the lab of that name, which need not exist."""
    if not NAME.match(name):
        raise ConfigurationError(
            f"{name!r} is no name for a lab: use up to 16 lower-case letters, digits and dashes."
        )
    return Places(name=name, root=labs_root() / name)
