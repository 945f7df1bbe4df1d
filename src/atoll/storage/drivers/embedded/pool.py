"""A pool: a directory on btrfs with Atoll's marker, and where everything in it lies."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.embedded.btrfs import is_btrfs, pool_errors
from atoll.storage.identity import check_name
from atoll.storage.records import Records

_MARKER = ".atoll-pool"
_FORMAT = 2
_MAKING = ".making-"
"""Begins the name of a group's subvolume until it is whole."""


@dataclass(frozen=True, slots=True)
class Pool:
    """An open pool. Groups, volumes and snapshots lie under their ids."""

    root: Path
    name: str

    @property
    def records(self) -> Records:
        """The pool's memory."""
        return Records(self.root / "records.sqlite")

    @property
    def group_directory(self) -> Path:
        """Holds a subvolume for each group."""
        return self.root / "groups"

    def group(self, group: str) -> Path:
        """A group's subvolume."""
        return self.group_directory / group

    def unfinished_group(self, group: str) -> Path:
        """Where a group's subvolume is made."""
        return self.group_directory / f"{_MAKING}{group}"

    def image(self, group: str, volume: str) -> Path:
        """A volume's bytes."""
        return self.group(group) / f"{volume}.img"

    def images(self, volume: str) -> list[Path]:
        """Where a volume is: one place, or two while it moves."""
        return [
            directory / f"{volume}.img"
            for directory in self.group_directory.iterdir()
            if (directory / f"{volume}.img").exists()
        ]

    def volumes(self) -> dict[str, int]:
        """Size in bytes of every volume there is."""
        return {
            path.stem: path.stat().st_size
            for directory in self.group_directory.iterdir()
            if not directory.name.startswith(_MAKING)
            for path in directory.glob("*.img")
        }

    def groups(self) -> set[str]:
        """Every group there is, whole or not."""
        return {path.name.removeprefix(_MAKING) for path in self.group_directory.iterdir()}

    @property
    def snapshots_directory(self) -> Path:
        """Holds a read-only subvolume for each snapshot."""
        return self.root / "snapshots"

    def snapshot(self, snapshot: str) -> Path:
        """A snapshot's subvolume."""
        return self.snapshots_directory / snapshot

    def snapshot_image(self, snapshot: str, volume: str) -> Path:
        """A volume's bytes as they were."""
        return self.snapshot(snapshot) / f"{volume}.img"


def create_pool(root: Path, name: str) -> None:
    """Make the directory `root`, on a mounted btrfs, a pool; a pool of that name stays as it is.

    StorageUnreachableError when it is missing or not btrfs, StorageConflictError
    when it is a pool of another name.
    """
    check_name("pool", name)
    _require_btrfs(root)
    marker = root / _MARKER
    if marker.exists():
        existing = open_pool(root)
        if existing.name != name:
            raise StorageConflictError(
                f"{root} is already the pool {existing.name}, not {name}; choose another directory."
            )
        return
    with pool_errors(f"create a pool at {root}"):
        for part in ("groups", "snapshots"):
            # Every guest's disks lie below, with all their secrets.
            (root / part).mkdir(mode=0o700, exist_ok=True)
        Records(root / "records.sqlite").create()
        fresh = marker.with_name(f"{_MARKER}.new")
        with fresh.open("w") as file:
            json.dump({"format": _FORMAT, "name": name}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(marker)  # last: a directory with a marker is a whole pool
        sync_directory(root)


def open_pool(root: Path) -> Pool:
    """The pool at `root`; StorageUnreachableError when it is not there, mounted and marked."""
    _require_btrfs(root)
    try:
        marker = json.loads((root / _MARKER).read_text())
        pool = Pool(root, marker["name"])
        version = marker["format"]
    except FileNotFoundError as error:
        raise StorageUnreachableError(
            f"{root} carries no {_MARKER} file; mount the pool there, or create one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageUnreachableError(
            f"{root / _MARKER} is unreadable ({error}); check the pool's file system."
        ) from error
    if version != _FORMAT:
        raise StorageUnreachableError(
            f"The pool at {root} has format {version}, this Atoll knows {_FORMAT}; use the "
            "version of Atoll that wrote it."
        )
    return pool


def sync_directory(path: Path) -> None:
    """Make renames, new names and removals in a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_btrfs(root: Path) -> None:
    try:
        found = is_btrfs(root)
    except OSError as error:
        raise StorageUnreachableError(
            f"The pool directory {root} cannot be opened: {error.strerror}; mount it or correct "
            "the setting."
        ) from error
    if not found:
        raise StorageUnreachableError(
            f"{root} is not on btrfs; mount the pool there (an unmounted pool looks like this)."
        )
