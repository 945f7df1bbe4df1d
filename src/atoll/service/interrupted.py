"""Runs that died, or were cut off, while they copied: which of them can be gone on with.

Their guests were let go long before, and what the hold was worth is proven. So their snapshots are kept,
with those that increments are measured from, until somebody goes on with the run, gives it up, or too much
time has passed.
"""

import time
from collections.abc import Callable, Sequence

from atoll.repository.repository import Repository
from atoll.service.journal import CopyOrder, Journal, RunRecord
from atoll.storage.interface import StorageEngine


class InterruptedRuns:
    """Those of one site. `copy` is the copy of the settings in the repository's place, if one is."""

    def __init__(
        self,
        journal: Journal,
        engine: StorageEngine,
        repository: Callable[[], Repository],
        keep_seconds: float,
        copy: str | None,
        *,
        drop: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """With `drop` none is kept."""
        self._journal = journal
        self._engine = engine
        self._repository = repository
        self._keep_seconds = keep_seconds
        self._copy = copy
        self._drop = drop
        self._clock = clock

    def why_not(self, record: RunRecord) -> str:
        """A sentence: why nobody is to go on with a run; empty if somebody may."""
        order = record.copying
        if order is None:
            return "It had not come to copying."
        if self._drop:
            return "It was given up."
        if order.copy == self._copy and self.committed(record.run):
            return "Its restore points are there."
        if not self._keep_seconds:
            return "None is gone on with, as resume_hours in [director] says."
        seen = self._journal.last_seen(record.run)
        if self._clock() - seen >= self._keep_seconds:
            return f"Nobody went on with it for {self._keep_seconds / 3600:g} hours."
        gone = missing_snapshots(self._engine, order)
        if gone:
            return f"Its snapshot of LUN group {gone[0]} is gone, so nobody can go on with it."
        return ""

    def committed(self, run: str) -> bool:
        """Whether a run's restore points are in the repository."""
        return any(point.run == run for point in self._repository().points())

    def drop_draft(self, record: RunRecord) -> None:
        """Nobody is to go on with what has been copied of a run."""
        if record.copying is not None and record.copying.copy == self._copy:
            self._repository().drop_draft(record.run)

    def goes_on(self, record: RunRecord) -> bool:
        """Whether somebody may go on with a run."""
        return not self.why_not(record)

    def waiting(self) -> list[RunRecord]:
        """The runs that somebody may go on with, oldest first, of this repository; nobody has them."""
        alive = self._journal.alive()
        return [
            record
            for record in self._journal.copying()
            if record.copying is not None
            and record.copying.copy == self._copy
            and record.run not in alive
            and self.goes_on(record)
        ]


def missing_snapshots(engine: StorageEngine, order: CopyOrder) -> list[str]:
    """The LUN groups of a run that have its snapshot no more."""
    known = {group.name for group in engine.groups()}
    return [
        group
        for group in order.plan.groups
        if group not in known
        or all(snapshot.name != order.snapshot for snapshot in engine.snapshots(group))
    ]


def read_by(records: Sequence[RunRecord]) -> set[tuple[str, str]]:
    """(LUN group, name) of the snapshots that these runs copy from and measure from."""
    return {each for record in records if record.copying for each in record.copying.reads}
