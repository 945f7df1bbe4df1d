"""A pool: a directory on btrfs with Atoll's marker, and where everything in it lies."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.embedded.btrfs import is_btrfs, pool_errors
from atoll.storage.drivers.embedded.identity import check_name
from atoll.storage.drivers.embedded.records import Records

_MARKER = ".atoll-pool"
_RUN = Path("/run/atoll")
_MAKING = ".making-"
"""Begins the name of an object not yet recorded; no name of a group, LUN or snapshot can."""


@dataclass(frozen=True, slots=True)
class Pool:
    """An open pool. `name` is part of every target's IQN; `id` tells pools of one machine apart."""

    root: Path
    name: str
    id: str

    @property
    def records(self) -> Records:
        """The pool's memory."""
        return Records(self.root / "records.sqlite")

    @property
    def run(self) -> Path:
        """Sockets, locks and logs. Not in the pool: a UNIX socket's path ends at 107 bytes."""
        return _RUN / self.id

    @property
    def group_directory(self) -> Path:
        """Holds a subvolume for each group."""
        return self.root / "groups"

    def group(self, group: str) -> Path:
        """A group's subvolume."""
        return self.group_directory / group

    def image(self, group: str, lun: str) -> Path:
        """A LUN's bytes."""
        return self.group(group) / f"{lun}.img"

    @property
    def snapshots_directory(self) -> Path:
        """Holds a directory for each group that has snapshots."""
        return self.root / "snapshots"

    def snapshot_directory(self, group: str) -> Path:
        """Holds a read-only subvolume for each snapshot of a group."""
        return self.snapshots_directory / group

    def snapshot(self, group: str, name: str) -> Path:
        """A snapshot's subvolume."""
        return self.snapshot_directory(group) / name

    def snapshot_image(self, group: str, name: str, lun: str) -> Path:
        """A LUN's bytes as they were."""
        return self.snapshot(group, name) / f"{lun}.img"

    def relative(self, path: Path) -> str:
        """The path below the root, as the records keep it."""
        return str(path.relative_to(self.root))

    def free_bytes(self) -> int:
        """What can still be written."""
        with pool_errors(f"measure the pool at {self.root}"):
            status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    @contextmanager
    def lock(self, *groups: str) -> Iterator[None]:
        """Keep everyone else, in any process, from changing these groups. Ends with the process."""
        with ExitStack() as held, pool_errors(f"lock {', '.join(groups)} in {self.run}"):
            self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            for group in sorted(
                set(groups)
            ):  # one order for all, or two callers could wait for ever
                descriptor = os.open(
                    self.run / f"{group}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
                )
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            held_locks = held.pop_all()
        with held_locks:
            yield

    @contextmanager
    def lock_if_free(self, group: str) -> Iterator[bool]:
        """Lock a group unless somebody has it; yields whether it is ours."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            self.run / f"{group}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


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
            json.dump({"format": 1, "name": name, "id": secrets.token_hex(6)}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(marker)  # last: a directory with a marker is a whole pool
        sync_directory(root)


def open_pool(root: Path) -> Pool:
    """The pool at `root`; StorageUnreachableError when it is not there, mounted and marked."""
    _require_btrfs(root)
    try:
        marker = json.loads((root / _MARKER).read_text())
        pool = Pool(root, marker["name"], marker["id"])
    except FileNotFoundError as error:
        raise StorageUnreachableError(
            f"{root} carries no {_MARKER} file; mount the pool there, or create one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageUnreachableError(
            f"{root / _MARKER} is unreadable ({error}); check the pool's file system."
        ) from error
    if marker["format"] != 1:
        raise StorageUnreachableError(
            f"The pool at {root} has format {marker['format']}, this Atoll knows 1; use the "
            "version of Atoll that wrote it."
        )
    return pool


def making(path: Path) -> Path:
    """Where an object is made before the records know it."""
    return path.with_name(_MAKING + path.name)


def made_name(name: str) -> str | None:
    """The name an object being made is to get; None if `name` is not of one."""
    return name.removeprefix(_MAKING) if name.startswith(_MAKING) else None


def settle(path: Path) -> bool:
    """Give a recorded object its name, if whoever made it was cut short; whether it was needed.

    Only for paths that a record claims. Safe from many processes at once.
    """
    if os.path.lexists(path):
        return False
    try:
        making(path).rename(path)
    except FileNotFoundError:
        return False
    return True


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory last."""
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
