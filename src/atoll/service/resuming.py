"""Going on with a run that was cut off while it copied: what is left of its snapshots, then its points."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from atoll.model.errors import (
    AtollError,
    RunConflictError,
    StorageUnreachableError,
    UnknownPointError,
)
from atoll.model.points import RestorePoint
from atoll.model.progress import Progress
from atoll.model.storage import GroupSnapshot
from atoll.service.cataloguing import note_filters
from atoll.service.copy_run import copy_run
from atoll.service.interrupted import InterruptedRuns
from atoll.service.journal import CopyOrder, RunRecord
from atoll.service.retire import delete_unread
from atoll.service.site import Site
from atoll.storage.interface import StorageEngine


@dataclass(frozen=True, slots=True)
class Resumed:
    """A run that was gone on with; without `points` it had to be given up. `said` are sentences."""

    run: str
    points: tuple[RestorePoint, ...]
    copied_before_bytes: int
    said: tuple[str, ...]


def may_pass(error: BaseException) -> bool:
    """Whether a copy that ended so is worth going on with: it was interrupted, or the cause may pass."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, AtollError) and error.retryable
    )


def kept_note(run: str) -> str:
    """A sentence for whoever sees a copy end before its time."""
    return (
        f"The snapshots of run {run} and what has been copied of them are kept: `atoll resume`, or the "
        "next backup of one of its VMs, goes on with it, and `atoll cleanup --drop-interrupted` gives it "
        "up."
    )


def waiting_runs(site: Site) -> list[str]:
    """A sentence for each run that somebody may go on with: how far it got, and for how long it is kept."""
    interrupted = site.interrupted()
    waiting = interrupted.waiting() if interrupted else []
    if not waiting:
        return []
    drafts = site.repository().drafts()
    said = []
    for record in waiting:
        draft = drafts.get(record.run)
        read = sum(disk.read_bytes for disk in draft.disks) if draft else 0
        until = time.localtime(site.journal().last_seen(record.run) + site.resume_seconds)
        said.append(
            f"Run {record.run} of {_names(record)} was cut off while it copied, with "
            f"{_size(read)} read; `atoll resume`, or a backup of one of its VMs, goes on with it until "
            f"{time.strftime('%Y-%m-%d %H:%M', until)}, and `atoll cleanup --drop-interrupted` gives "
            "it up."
        )
    return said


def resume_runs(site: Site, reference: str | None, progress: Progress) -> list[Resumed]:
    """Go on with the run named so, or by the beginning of its name, or with all; oldest first.

    UnknownPointError if none is called so or several are, RunConflictError if it is in other hands.
    AtollError as of a backup; then the run is kept if its cause may pass.
    """
    interrupted = site.interrupted()
    waiting = interrupted.waiting() if interrupted else []
    if interrupted is None or (reference is None and not waiting):
        return []
    if reference is not None:
        found = [record for record in waiting if record.run == reference] or [
            record for record in waiting if reference and record.run.startswith(reference)
        ]
        if len(found) != 1:
            known = ", ".join(record.run for record in found or waiting) or "none"
            raise UnknownPointError(
                f"{reference!r} names {'several runs' if found else 'no run'} to go on with; these "
                f"were cut off while they copied: {known}."
            )
        waiting = found
    return _resume(site, interrupted, waiting, progress, must=reference is not None)


def resume_runs_of(site: Site, names: Sequence[str], progress: Progress) -> list[Resumed]:
    """Go on with the runs of these VMs, by name or instance UUID, that nobody else goes on with."""
    interrupted = site.interrupted()
    waiting = interrupted.waiting() if interrupted else []
    wanted = [record for record in waiting if not set(names).isdisjoint(_vms(record))]
    if interrupted is None or not wanted:
        return []
    return _resume(site, interrupted, wanted, progress, must=False)


def _resume(
    site: Site,
    interrupted: InterruptedRuns,
    wanted: Sequence[RunRecord],
    progress: Progress,
    *,
    must: bool,
) -> list[Resumed]:
    done = []
    for each in wanted:
        journal = site.journal()
        record = journal.take(each.run)
        if record is None or record.copying is None:
            if must:
                raise RunConflictError(
                    f"Another command goes on with run {each.run}, or has just finished it; see with "
                    "`atoll points`."
                )
            continue
        try:
            done.append(_GoingOn(site, interrupted, record, record.copying, progress).run())
        finally:
            journal.abandon(record.run)
    return done


class _GoingOn:
    """One run, whose record is this process's."""

    def __init__(
        self,
        site: Site,
        interrupted: InterruptedRuns,
        record: RunRecord,
        order: CopyOrder,
        progress: Progress,
    ) -> None:
        self._site = site
        self._interrupted = interrupted
        self._record = record
        self._order = order
        self._progress = progress

    def run(self) -> Resumed:
        """Its points, committed; or why it was given up. AtollError if it is kept for another time."""
        site, order = self._site, self._order
        repository = site.repository()
        with ExitStack() as pinned:
            own = [(group, order.snapshot) for group in order.plan.groups]
            pinned.enter_context(site.pins().reading(own))
            why = self._interrupted.why_not(self._record)
            if why:
                return self._give_up(why, pinned.close)
            draft = repository.drafts().get(self._record.run)
            before = sum(disk.read_bytes for disk in draft.disks) if draft else 0
            self._progress.note(
                "", f"going on with run {self._record.run}, of which {_size(before)} had been read"
            )
            try:
                with ExitStack() as reading:
                    parents = self._parents(reading)
                    snapshots = _snapshots(site.engine(), order)
                    made = copy_run(site, order, snapshots, parents, self._progress)
                self._progress.stage("", "commit")
                repository.commit(made)
            except BaseException as error:
                repository.abandon()
                if may_pass(error):
                    error.add_note(kept_note(self._record.run))
                    raise
                if isinstance(error, AtollError):
                    return self._give_up(f"It could not be gone on with: {error}", pinned.close)
                with suppress(AtollError):  # what was a defect this time would be one the next
                    self._give_up("", pinned.close)
                raise
            left = ""
            try:
                self._end()
            except AtollError as error:
                # The points are there; what could not be tidied the next run tidies.
                left = f" What it left could not be cleared yet: {error}"
        note_filters(repository, made)
        points = ", ".join(f"{point.vm}@{point.run}" for point in made)
        return Resumed(
            self._record.run,
            tuple(made),
            before,
            (
                f"Went on with run {self._record.run}, which was cut off while it copied; "
                f"{_size(before)} of {_size(_read(made))} had been read before, and {points} is "
                f"complete now.{left}",
            ),
        )

    def _parents(self, reading: ExitStack) -> dict[str, RestorePoint]:
        """As they were when it began; a point that is gone, or whose snapshot goes just now, is none."""
        known = {point.id: point for point in self._site.repository().points()}
        parents = {}
        for uuid, name in self._order.parents.items():
            point = known.get(name)
            if point is None:
                continue
            with suppress(RunConflictError):
                snapshots = [(group, point.snapshot) for group in point.groups]
                reading.enter_context(self._site.pins().reading(snapshots))
                parents[uuid] = point
        return parents

    def _end(self) -> None:
        """Whoever tidies has the lock: he either saw the points or finds the record and the pins."""
        self._site.repository().drop_draft(self._record.run)
        journal = self._site.journal()
        with journal.tidying():
            journal.end(self._record.run)

    def _give_up(self, why: str, unpin: Callable[[], None]) -> Resumed:
        site, run = self._site, self._record.run
        if self._interrupted.committed(run):
            self._end()
            return Resumed(run, (), 0, ())
        self._interrupted.drop_draft(self._record)
        unpin()
        with site.journal().tidying():
            # What somebody reads goes with whoever tidies after that.
            delete_unread(site.engine(), self._order.snapshot, site.pins())
            site.journal().end(run)
        said = f"Run {run}, which was cut off while it copied, was given up. {why}"
        return Resumed(run, (), 0, (said,))


def _snapshots(engine: StorageEngine, order: CopyOrder) -> dict[str, GroupSnapshot]:
    found = {}
    for group in order.plan.groups:
        for snapshot in engine.snapshots(group):
            if snapshot.name == order.snapshot:
                found[group] = snapshot
    if len(found) < len(order.plan.groups):
        raise StorageUnreachableError(
            f"The storage does not show all snapshots {order.snapshot} any more; run again."
        )
    return found


def _vms(record: RunRecord) -> set[str]:
    vms = record.copying.plan.vms if record.copying else ()
    return {name for vm in vms for name in (vm.vm.name, vm.vm.instance_uuid)}


def _names(record: RunRecord) -> str:
    vms = record.copying.plan.vms if record.copying else ()
    return ", ".join(vm.vm.name for vm in vms)


def _read(points: Sequence[RestorePoint]) -> int:
    return sum(disk.read_bytes for point in points for disk in point.disks)


def _size(count: int) -> str:
    if not count:
        return "nothing"
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
