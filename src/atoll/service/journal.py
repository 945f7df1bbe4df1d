"""Which runs have begun and not ended, on disk, so that a crash is noticed and cleaned up.

One JSON file a run in `runs/`, written before anything is touched and removed
when nothing of the run needs cleaning any more. A lock file says whether a
run is alive; the kernel drops the lock when its process dies, however it dies.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll.model.errors import ConfigurationError, RunConflictError


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What must be known to clean up after a run: its guests and what its holds are called."""

    run: str
    vms: tuple[str, ...]
    holds: tuple[str, ...]


class Journal:
    """The runs recorded in one state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runs = directory / "runs"
        try:
            self._runs.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot write the state directory {directory}: {error.strerror}."
            ) from error

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the site's one run at a time; RunConflictError when another is alive."""
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunConflictError(
                    "Another run of this site is still working; wait for it to end."
                ) from error
            yield
        finally:
            os.close(descriptor)

    def begin(self, record: RunRecord) -> None:
        """Record a run before it touches anything."""
        path = self._runs / f"{record.run}.json"
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("w") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            self._sync()
        except OSError as error:
            raise ConfigurationError(
                f"Cannot record the run in {self._runs}: {error.strerror}; nothing was begun."
            ) from error

    def end(self, run: str) -> None:
        """Forget a run that left nothing to clean."""
        (self._runs / f"{run}.json").unlink(missing_ok=True)
        self._sync()

    def unfinished(self) -> list[RunRecord]:
        """Runs that began and did not end, oldest first. Call it inside `exclusive`."""
        records = []
        for path in sorted(self._runs.glob("*.json")):
            try:
                raw = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"The record {path} of a run cannot be read ({error}); see `atoll agent list` "
                    "that no guest is held, then remove the file."
                ) from error
            records.append(RunRecord(raw["run"], tuple(raw["vms"]), tuple(raw["holds"])))
        return records

    def _sync(self) -> None:
        descriptor = os.open(self._runs, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
