"""The embedded engine: btrfs keeps the LUNs and their snapshots, tgt serves them over iSCSI."""

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress

from atoll.storage.backend import Place, VolumeBackend
from atoll.storage.drivers.embedded.backend import EmbeddedBackend
from atoll.storage.drivers.embedded.pool import create_pool, open_pool
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.targets.tgt import Durability

__all__ = [
    "Settings",
    "create",
    "create_pool",
    "open_backend",
    "open_embedded",
    "state_directory",
]


class Settings(BaseModel):
    """`root` is the pool's directory; hosts reach LUNs at each of this machine's `portal_addresses`.

    Each group gets a port of its own out of `portal_ports` (first and last).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    durability: Durability = "disk"
    portal_addresses: tuple[IPvAnyAddress, ...] = Field(
        default=(IPv4Address("127.0.0.1"),), min_length=1
    )
    portal_ports: tuple[int, int] = (23260, 32259)


def state_directory(name: str, settings: Settings) -> Path:
    """Records are in the pool itself."""
    return settings.root


def create(name: str, settings: Settings) -> None:
    """Make the directory a pool."""
    create_pool(settings.root, name)


def open_backend(name: str, settings: Settings, place: Place) -> VolumeBackend:
    """The backend of the pool."""
    first, last = settings.portal_ports
    return EmbeddedBackend(
        open_pool(settings.root),
        place,
        [str(address) for address in settings.portal_addresses],
        range(first, last + 1),
        settings.durability,
    )


def open_embedded(
    root: Path,
    rules: Rules | None = None,
    *,
    durability: Durability = "disk",
    addresses: Sequence[str] = ("127.0.0.1",),
    ports: tuple[int, int] = (23260, 32259),
) -> ManagedEngine:
    """The engine of the pool at `root`, served on loopback unless told otherwise."""
    pool = open_pool(root)
    settings = Settings(
        root=root,
        durability=durability,
        portal_addresses=tuple(ip_address(address) for address in addresses),
        portal_ports=ports,
    )
    return ManagedEngine(
        pool.name, pool.records, lambda place: open_backend(pool.name, settings, place), rules
    )
