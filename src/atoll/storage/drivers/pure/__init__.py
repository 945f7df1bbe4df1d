"""Pure Storage FlashArray over its REST API, by the vendor's SDK."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from atoll.model.errors import StorageConflictError
from atoll.storage.backend import Place, VolumeBackend
from atoll.storage.drivers.array import ArraySettings, proxy_of, read_secret
from atoll.storage.drivers.pure.backend import PureBackend
from atoll.storage.drivers.pure.hosts import list_ports
from atoll.storage.drivers.pure.names import Names
from atoll.storage.drivers.pure.session import ArrayRefusedError, FlashArray, value

_STATE = Path("/var/lib/atoll")
_OBJECT = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"


class Settings(ArraySettings):
    """A FlashArray. Volumes are made in `pod` and `volume_group`, if given.

    The API token is the first line of `api_token_file`. What is deleted can be
    recovered on the array for as long as that keeps it, unless `eradicate`.
    """

    api_token_file: Path
    pod: str | None = Field(default=None, pattern=_OBJECT)
    volume_group: str | None = Field(default=None, pattern=_OBJECT)
    eradicate: bool = False

    @model_validator(mode="after")
    def _secret_goes_with_user(self) -> Self:
        """A CHAP user without a secret proves nothing."""
        if self.initiator_user and not self.initiator_secret_file:
            raise ValueError("initiator_user needs initiator_secret_file")
        return self


def state_directory(name: str, settings: Settings) -> Path:
    """Where the records are."""
    return settings.state_directory or _STATE / name


def create(name: str, settings: Settings) -> None:
    """See that the array lets us in and can present, and make the volume group if there is none."""
    array = _array(settings)
    array.connect()
    if settings.pod is not None:
        array.call("get_pods", f"find pod {settings.pod}", names=[settings.pod])
    if settings.volume_group is not None:
        place = f"{settings.pod}::" if settings.pod else ""
        group = place + settings.volume_group
        try:
            array.call("get_volume_groups", f"find volume group {group}", names=[group])
        except ArrayRefusedError as error:
            if not error.absent:
                raise
            array.make(
                "post_volume_groups",
                f"create volume group {group}",
                names=[group],
                volume_group=array.model("VolumeGroupPost"),
            )
    if not any(value(port, "iqn") and value(port, "portal") for port in list_ports(array)):
        raise StorageConflictError(
            f"FlashArray {settings.host} has no iSCSI port, and {name} reads snapshots over iSCSI; "
            "give it one that this machine reaches."
        )


def open_backend(name: str, settings: Settings, place: Place) -> VolumeBackend:
    """The array, cleared of what dead readers left on it."""
    backend = PureBackend(
        _array(settings),
        Names(place.id, settings.pod, settings.volume_group),
        place,
        proxy_of(settings, place),
        eradicate=settings.eradicate,
    )
    backend.clear()
    return backend


def _array(settings: Settings) -> FlashArray:
    return FlashArray(settings, read_secret(settings.api_token_file))
