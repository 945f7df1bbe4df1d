"""Ceph RBD as a driver: its settings, and how it is opened."""

from ipaddress import IPv4Address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, field_validator

from atoll.model.errors import StorageUnreachableError
from atoll.storage.backend import Place, VolumeBackend
from atoll.storage.drivers.ceph.access import Access
from atoll.storage.drivers.ceph.backend import CephBackend
from atoll.storage.targets.tgt.rbd import MODULE

_PLAIN = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


class Settings(BaseModel):
    """LUNs are images in `pool` of the cluster that `conf` describes.

    Atoll and its iSCSI daemons are `client.<user>`, whose key is in `keyring`, or
    where `conf` says. Hosts reach LUNs at each of this machine's
    `portal_addresses`; each group gets a port of its own out of `portal_ports`
    (first and last). Records are in `state_directory`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    conf: Path = Path("/etc/ceph/ceph.conf")
    pool: str = Field(pattern=f"^{_PLAIN}$")
    user: str = Field(default="atoll", pattern=f"^{_PLAIN}$")
    keyring: Path | None = None
    portal_addresses: tuple[IPvAnyAddress, ...] = Field(
        default=(IPv4Address("127.0.0.1"),), min_length=1
    )
    portal_ports: tuple[int, int] = (23260, 32259)
    state_directory: Path | None = None

    @field_validator("conf")
    @classmethod
    def _can_be_told_to_tgtd(cls, conf: Path) -> Path:
        if set(str(conf)) & set(",;"):
            raise ValueError("the path of Ceph's settings may hold no comma and no semicolon")
        return conf


def state_directory(name: str, settings: Settings) -> Path:
    """Where records are kept; not in the pool, which is the cluster's."""
    return settings.state_directory or Path("/var/lib/atoll") / name


def create(name: str, settings: Settings) -> None:
    """Check that the pool can be used; whoever runs the cluster makes it."""
    if not MODULE.exists():
        raise StorageUnreachableError(
            f"The iSCSI daemon cannot open RBD images: {MODULE} is missing; install tgt-rbd."
        )
    directory = state_directory(name, settings)
    with _access(name, settings, "0" * 12, directory).sidecars().borrowed() as sidecar:
        sidecar.call("check")


def open_backend(name: str, settings: Settings, place: Place) -> VolumeBackend:
    """The backend of the pool."""
    first, last = settings.portal_ports
    return CephBackend(
        _access(name, settings, place.id, place.run),
        place,
        [str(address) for address in settings.portal_addresses],
        range(first, last + 1),
    )


def _access(name: str, settings: Settings, system: str, run: Path) -> Access:
    return Access(name, settings.conf, settings.pool, settings.user, settings.keyring, system, run)
