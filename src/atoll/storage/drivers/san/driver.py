"""The Linux SAN driver, as `atoll.storage.drivers` names it."""

from contextlib import closing
from pathlib import Path

from atoll.storage.backend import Place, VolumeBackend
from atoll.storage.drivers.san.backend import SanBackend, SanHelper
from atoll.storage.drivers.san.settings import Settings

__all__ = ["Settings", "create", "open_backend", "state_directory"]


def state_directory(name: str, settings: Settings) -> Path:
    """On Atoll's machine; what is in the pool is also in a book beside it."""
    return settings.state_directory or Path("/var/lib/atoll") / name


def create(name: str, settings: Settings) -> None:
    """Make the thin pool and its book in the volume group, and see that the server has all it needs."""
    with closing(SanHelper(name, settings)) as helper:
        helper.call("prepare", chunk_bytes=settings.chunk_bytes)


def open_backend(name: str, settings: Settings, place: Place) -> VolumeBackend:
    """The backend of the pool."""
    return SanBackend(name, settings, place.notes)
