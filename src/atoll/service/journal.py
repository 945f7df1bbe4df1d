"""Which runs have begun and not ended, on disk, so that a crash is noticed and cleaned up.

One JSON file a run in `runs/`, written before anything is touched and removed
when nothing of the run needs cleaning any more. Its process keeps it locked: a
record that can be locked is a dead run's. The kernel drops the lock when the
process dies, however it dies.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from atoll.model.consistency import ConsistencyProof
from atoll.model.errors import ConfigurationError
from atoll.model.plan import Plan
from atoll.repository.records import from_json, to_json
from atoll.service.filelocks import lock_file, locked

_LOOK_AGAIN_SECONDS = 0.05
PATIENCE_SECONDS = 900.0
"""For other runs to let go of the same guests; a hold by VMware snapshots may take minutes."""


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """What a run copies once its guests are let go and its snapshots, all called `snapshot`, are proven.

    `proofs` and `parents`, the ids of the points that increments are measured from, are by instance
    UUID. `reads` are the snapshots that are read or measured from, (LUN group, name).
    """

    plan: Plan
    snapshot: str
    proofs: dict[str, ConsistencyProof]
    parents: dict[str, str]
    reads: tuple[tuple[str, str], ...]
    copy: str | None = None
    """Which copy of the settings took the repository's place."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What must be known to clean up after a run: its guests and what its holds are called.

    With a `copying`, what must be known to go on with it: nobody is held for it any more.
    """

    run: str
    vms: tuple[str, ...]
    holds: tuple[str, ...]
    copying: CopyOrder | None = None


class Journal:
    """The runs recorded in one state directory, of this process and of others."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runs = directory / "runs"
        self._groups = directory / "groups"
        self._mine: dict[str, int] = {}
        try:
            for each in (self._runs, self._groups):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot write the state directory {directory}: {error.strerror}."
            ) from error

    def begin(self, record: RunRecord) -> None:
        """Record a run before it touches anything. It is alive until `end`, `abandon`, or death."""
        try:
            self._write(record)
        except OSError as error:
            self.abandon(record.run)
            raise ConfigurationError(
                f"Cannot record the run in {self._runs}: {error.strerror}; nothing was begun."
            ) from error

    def note(self, record: RunRecord) -> None:
        """Record more of a run that goes on here; ConfigurationError, and the old record, if it cannot be."""
        try:
            self._write(record)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot record the run in {self._runs}: {error.strerror}; run again."
            ) from error

    def _write(self, record: RunRecord) -> None:
        path = self._path(record.run)
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)  # of one who was killed in here
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(json.dumps(to_json(record)).encode())
            os.fsync(descriptor)
            temporary.rename(path)
        except BaseException:
            os.close(descriptor)
            raise
        # Locked before it has its name, and the one before until then.
        older = self._mine.get(record.run)
        self._mine[record.run] = descriptor
        if older is not None:
            os.close(older)
        self._sync()

    def touch(self, run: str) -> None:
        """A run that goes on here got further."""
        os.utime(self._mine[run])

    def take(self, run: str, patience_seconds: float = 1.0) -> RunRecord | None:
        """Have a dead run go on here, alive from now on; None if it is not dead, or in another's hands.

        Who only looks whether it is dead has it for a moment. ConfigurationError when its record
        cannot be read.
        """
        path = self._path(run)
        limit = time.monotonic() + patience_seconds
        while (descriptor := lock_file(path, fcntl.LOCK_EX, create=False)) is None:
            if time.monotonic() > limit or not path.exists():
                return None
            time.sleep(_LOOK_AGAIN_SECONDS)
        self._mine[run] = descriptor
        try:
            return _read(path)
        except ConfigurationError:
            self.abandon(run)
            raise

    def last_seen(self, run: str) -> float:
        """When a run was recorded or got further last, in seconds since the epoch; 0 if it has ended."""
        try:
            return self._path(run).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def copying(self) -> list[RunRecord]:
        """The runs that copy, or copied when they died; whose hands they are in is not asked.

        ConfigurationError when a record cannot be read.
        """
        found = []
        for path in sorted(self._runs.glob("*.json")):
            with suppress(FileNotFoundError):  # it has ended
                found.append(_read(path))
        return [record for record in found if record.copying is not None]

    def end(self, run: str) -> None:
        """Forget a run that left nothing to clean. Repeatable."""
        self._path(run).unlink(missing_ok=True)
        self._sync()
        self.abandon(run)

    def abandon(self, run: str) -> None:
        """Leave a run, unless it ended, for whoever cleans up next, as if its process had died."""
        descriptor = self._mine.pop(run, None)
        if descriptor is not None:
            os.close(descriptor)

    def alive(self) -> set[str]:
        """The runs that are at work now, and those that somebody clears up after at this moment."""
        with self.dead() as records:
            return {path.stem for path in self._runs.glob("*.json")} - {
                record.run for record in records
            }

    @contextmanager
    def dead(
        self, goes_on: Callable[[RunRecord], bool] = lambda record: False
    ) -> Iterator[Sequence[RunRecord]]:
        """Runs whose process died, oldest first; nobody else gets them while the block lasts.

        Without those that died while they copied and of which `goes_on` says that somebody may go on.
        ConfigurationError when a record cannot be read.
        """
        with ExitStack() as stack:
            records = []
            for path in sorted(self._runs.glob("*.json")):
                descriptor = lock_file(path, fcntl.LOCK_EX, create=False)
                if descriptor is None:
                    continue
                with ExitStack() as taken:
                    taken.callback(os.close, descriptor)
                    record = _read(path)
                    if record.copying is None:
                        stack.push(taken.pop_all())
                if record.copying is not None:
                    # Who wants to go on with it must not find it in other hands meanwhile.
                    if goes_on(record):
                        continue
                    descriptor = lock_file(path, fcntl.LOCK_EX, create=False)
                    if descriptor is None:
                        continue
                    stack.callback(os.close, descriptor)
                records.append(record)
            yield records

    @contextmanager
    def tidying(self, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Wait until nobody tidies and nobody is held, and keep both from beginning.

        What takes the storage's locks must not make a guest wait that is held.
        RunConflictError when that takes longer than `patience_seconds`.
        """
        said = (
            "Another run has been holding guests or tidying the site for too long; look at what "
            "the atoll processes of this machine wait for."
        )
        with locked(self._directory / "lock", fcntl.LOCK_EX, said, patience_seconds):
            yield

    @contextmanager
    def holding(
        self,
        groups: Sequence[str],
        patience_seconds: float = PATIENCE_SECONDS,
        waits: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Wait until no other run holds guests of these LUN groups, and until nobody tidies.

        `waits` is called when that is not so at once.
        RunConflictError when that takes longer than `patience_seconds`.
        """
        deadline = time.monotonic() + patience_seconds
        with ExitStack() as stack:
            for group in sorted(set(groups)):  # one order for all, or two could wait for ever
                said = f"LUN group {group} is still being held by another run; try again later."
                path = self._groups / f"{group}.lock"
                left = deadline - time.monotonic()
                stack.enter_context(locked(path, fcntl.LOCK_EX, said, left, waits))
            # Last: who waits for a group keeps nobody from tidying.
            said = "The site is still being tidied; try again later."
            lock, left = self._directory / "lock", deadline - time.monotonic()
            stack.enter_context(locked(lock, fcntl.LOCK_SH, said, left, waits))
            yield

    def _path(self, run: str) -> Path:
        return self._runs / f"{run}.json"

    def _sync(self) -> None:
        descriptor = os.open(self._runs, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> RunRecord:
    try:
        raw = json.loads(path.read_text())
        try:
            return from_json(RunRecord, raw)
        except ValueError:  # another version copies by other orders
            return from_json(RunRecord, {**raw, "copying": None})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"The record {path} of a run cannot be read ({error}); see `atoll agent list` "
            "that no guest is held, then remove the file."
        ) from error
