"""Which VMs are recovered in place, on disk, so that whatever is killed can be seen and ended.

A directory a recovery, named by its id: `record.json`, written before anything is touched and gone
when nothing is left; below it what a recovery from the repository keeps. A command that works on one
has it locked. The kernel drops locks when their process dies, however it dies.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from atoll.model.errors import ConfigurationError, UnknownPointError
from atoll.service.filelocks import lock_file, locked

Source = Literal["snapshot", "repository"]
Stage = Literal["begun", "running", "ending"]

_PATIENCE_SECONDS = 60.0
_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Recovery:
    """One recovery. `id` (8 hex digits) names its clones, LUNs and directory.

    `initiator` is the host's. `datastore` has the VM's own files when it is made from the repository, on
    whose `port` the host finds its `disks`, so many. `keep_on` is where `end --keep` moves it; while it
    is `ending` without, it is discarded. `began_at` is in seconds since the epoch.
    """

    id: str
    name: str
    source: Source
    vm: str
    run: str
    point: str
    host: str
    initiator: str
    datastore: str
    disks: int
    port: int
    began_at: float
    stage: Stage
    keep_on: str = ""

    @property
    def reference(self) -> str:
        """The VM and run it is of."""
        return f"{self.vm}@{self.run}"


@dataclass(frozen=True, slots=True)
class RecoverOptions:
    """How a VM is to be recovered.

    `name` is the new VM's, empty for one made of the old one's and the run's. `datastore` takes the
    files of a VM from the repository. `keep` its UUID and its cards' addresses; cards are
    `connected` or not, to their networks or to what `mapped` has for them. `config` are the settings
    that the process which serves disks is started with, None for the usual ones.
    """

    host: str
    name: str = ""
    datastore: str = ""
    folder: str = ""
    pool: str = ""
    keep: bool = False
    connected: bool = False
    mapped: Mapping[str, str] = field(default_factory=dict)
    power_on: bool = True
    config: Path | None = None


class Recoveries:
    """The recoveries recorded in one directory, of this process and of others."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def directory(self, recovery: str) -> Path:
        """A recovery's own, by id."""
        return self._directory / recovery

    def new_id(self) -> str:
        """An id that none has."""
        return secrets.token_hex(4)

    def put(self, record: Recovery) -> None:
        """Write it down, whole or not at all; ConfigurationError when that fails."""
        place = self.directory(record.id)
        temporary = place / "record.tmp"
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(place / "record.json")
            for each in (place, self._directory):
                _sync(each)
        except OSError as error:
            raise ConfigurationError(
                f"The recovery cannot be recorded in {place}: {error.strerror}; nothing more was done."
            ) from error

    def all(self) -> list[Recovery]:
        """Every recovery, oldest first; ConfigurationError when a record cannot be read."""
        found = [
            record
            for path in sorted(self._directory.glob("*/record.json"))
            if _ID.fullmatch(path.parent.name) and (record := _read(path)) is not None
        ]
        return sorted(found, key=lambda record: (record.began_at, record.id))

    def find(self, name: str) -> Recovery:
        """By the VM's name or the id; UnknownPointError."""
        found = self.all()
        for record in found:
            if name in (record.id, record.name):
                return record
        known = ", ".join(record.name for record in found) or "none"
        raise UnknownPointError(f"There is no recovery {name}; there are: {known}.")

    def read(self, recovery: str) -> Recovery | None:
        """By its id, as it is now."""
        return _read(self.directory(recovery) / "record.json")

    def forget(self, recovery: str) -> None:
        """It left nothing; its directory goes. Absent is success."""
        place = self.directory(recovery)
        # Last of all what says that there is something.
        for entry in sorted(place.glob("*"), key=lambda path: path.name == "record.json"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        if place.exists():
            place.rmdir()
        self._lock_path(recovery).unlink(missing_ok=True)

    @contextmanager
    def working(self, recovery: str) -> Iterator[None]:
        """Keep other commands from a recovery while the block lasts; RunConflictError when one is at it."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        said = "Another command is working on this recovery; try again when it has ended."
        with locked(self._lock_path(recovery), fcntl.LOCK_EX, said, _PATIENCE_SECONDS):
            yield

    def is_worked_on(self, recovery: str) -> bool:
        """Whether a command is at it now."""
        return self._is_locked(self._lock_path(recovery))

    def is_served(self, recovery: str) -> bool:
        """Whether the process lives that serves its disks."""
        return self._is_locked(self.serving_lock(recovery))

    def serving_lock(self, recovery: str) -> Path:
        """The file that the process has locked that serves its disks."""
        return self.directory(recovery) / "serving.lock"

    def _is_locked(self, path: Path) -> bool:
        if not path.exists():
            return False
        descriptor = lock_file(path, fcntl.LOCK_EX, create=False)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None and path.exists()

    def _lock_path(self, recovery: str) -> Path:
        return self._directory / f"{recovery}.lock"


def _read(path: Path) -> Recovery | None:
    try:
        return Recovery(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"The record {path} of a recovery cannot be read ({error}); see in vCenter what became of "
            "its VM, then remove the directory."
        ) from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
