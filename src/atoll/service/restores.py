"""Which VMs are being restored into vSphere, on disk, so that a killed restore can be ended.

A file a restore, named by its id, written before vCenter is asked for anything and gone when its VM
is one like any other. Whoever restores has the file locked, and the kernel drops that lock when
the process dies, however it dies.
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from atoll.model.errors import ConfigurationError
from atoll.service.filelocks import lock_file

_FILE = re.compile(r"[0-9a-f]{8}\.json")


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore of a VM that is to be called `name`.

    `stage` is `importing` while the VM in vCenter may be half, then it can only be deleted, and
    `settling` once it is whole, then it takes its place: that of the VM `replaces` (id), if any, and
    it gets the UUIDs that are not empty.
    """

    id: str
    name: str
    stage: Literal["importing", "settling"]
    replaces: str = ""
    bios_uuid: str = ""
    instance_uuid: str = ""


class Restores:
    """The restores recorded in one directory, of this process and of others."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def begun(self, name: str) -> Iterator["OpenRestore"]:
        """A new restore, on record while the block lasts and after it unless it was closed."""
        record = Restore(secrets.token_hex(4), name, "importing")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = lock_file(self._lock(record.id), fcntl.LOCK_EX)
        except OSError as error:
            raise _unwritable(self._directory, error) from error
        assert lock is not None, "nobody else can have a file of a name just made up"
        try:
            opened = OpenRestore(self._directory / f"{record.id}.json", record)
            opened.put(record)
            yield opened
        finally:
            self._end(record.id, lock)

    @contextmanager
    def dead(self) -> Iterator[list["OpenRestore"]]:
        """Those whose process died, locked while the block lasts; ConfigurationError for a bad record."""
        locks: dict[str, int] = {}
        try:
            found = []
            for path in sorted(self._directory.glob("*.json")):
                if not _FILE.fullmatch(path.name):
                    continue
                lock = lock_file(self._lock(path.stem), fcntl.LOCK_EX)
                if lock is None:
                    continue
                locks[path.stem] = lock
                record = _read(path)
                if record is not None:
                    found.append(OpenRestore(path, record))
            yield found
        finally:
            for name, lock in locks.items():
                self._end(name, lock)

    def _end(self, name: str, lock: int) -> None:
        # While it is locked: whoever waits for it looks whether it is still at its path.
        if not (self._directory / f"{name}.json").exists():
            self._lock(name).unlink(missing_ok=True)
        os.close(lock)

    def _lock(self, name: str) -> Path:
        return self._directory / f"{name}.lock"


class OpenRestore:
    """A restore whose record this process may change."""

    def __init__(self, path: Path, record: Restore) -> None:
        self._path = path
        self.record = record

    def put(self, record: Restore) -> None:
        """Write it down, whole or not at all; ConfigurationError when that fails."""
        temporary = self._path.with_suffix(".tmp")
        try:
            with temporary.open("w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
            _sync(self._path.parent)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self.record = record

    def settling(self, replaces: str, bios_uuid: str, instance_uuid: str) -> None:
        """Its VM is whole and only has to take its place."""
        self.put(
            replace(
                self.record,
                stage="settling",
                replaces=replaces,
                bios_uuid=bios_uuid,
                instance_uuid=instance_uuid,
            )
        )

    def close(self) -> None:
        """Nothing is left of it but, perhaps, a VM like any other."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".tmp").unlink(missing_ok=True)


def _read(path: Path) -> Restore | None:
    try:
        return Restore(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"The record {path} of a restore cannot be read ({error}); see in vCenter what became of "
            "its VM, then remove the file."
        ) from error


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"The restore cannot be recorded in {path}: {error.strerror}; nothing more was done."
    )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
