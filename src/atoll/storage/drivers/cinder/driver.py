"""The driver `cinder`: settings, and what the engine is given."""

from pathlib import Path
from tempfile import TemporaryDirectory

from atoll.model.errors import StorageConflictError
from atoll.storage.backend import Place, VolumeBackend
from atoll.storage.drivers.cinder.array_path import ArrayPath
from atoll.storage.drivers.cinder.backend import CinderBackend
from atoll.storage.drivers.cinder.data_path import DataPath
from atoll.storage.drivers.cinder.facts import Facts
from atoll.storage.drivers.cinder.own_target import OwnTarget
from atoll.storage.drivers.cinder.remembered import Remembered
from atoll.storage.drivers.cinder.settings import Settings
from atoll.storage.drivers.cinder.sidecars import run_driver

__all__ = ["Settings", "create", "open_backend", "state_directory"]


def state_directory(name: str, settings: Settings) -> Path:
    """Where the records are, and what Cinder's driver keeps."""
    return settings.directory(name)


def create(name: str, settings: Settings) -> None:
    """See that the array's driver starts, and that there is a way to present its volumes."""
    directory = settings.directory(name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="atoll-cinder-") as run:
        sidecar = run_driver(name, settings, Path(run), directory, directory / "cinder-init.log")
        try:
            facts = Facts(**sidecar.call("facts"))
        finally:
            sidecar.close()
    if not settings.served_here and not facts.protocols:
        raise StorageConflictError(
            f"{settings.volume_driver} presents volumes by {facts.protocol}, and Atoll's hosts take "
            "iSCSI and Fibre Channel; use the array's driver for one of these."
        )
    if facts.protocols == {"fc"} and settings.reader_driver is None:
        raise StorageConflictError(
            f"{settings.volume_driver} presents volumes by Fibre Channel alone, and {name} reads "
            "snapshots over iSCSI; set reader_driver to the same array's driver for iSCSI."
        )


def open_backend(name: str, settings: Settings, place: Place) -> VolumeBackend:
    """The array, cleared of what dead readers left on it."""
    directory = settings.directory(name)
    remembered = Remembered(place.notes)
    sidecar = run_driver(name, settings, place.run, directory)
    path: DataPath
    if settings.served_here:
        path = OwnTarget(settings, place)
    else:
        path = ArrayPath(settings, place, remembered, sidecar, directory / "chap.txt")
    path.clear()
    return CinderBackend(
        settings.volume_driver, remembered, sidecar, path, served_here=settings.served_here
    )
