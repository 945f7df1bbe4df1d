"""What production did in each window of a benchmark, and how that compares with quiet ones."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from atoll_lab.guests.load import Rate
from bench.report import Figure, figure

STALLED = 0.1
"""A moment in which less than this share of a quiet window's throughput is done."""


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds since the epoch, by db1's clock."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began


class Kind(StrEnum):
    """What goes on in a window beside production."""

    QUIET = "nothing"
    RUN = "jobs read the run"
    LIMITED = "jobs read the run, slowly"
    HELD = "jobs read below VMware snapshots"
    MEMORY = "jobs read a copy in memory"


@dataclass(frozen=True, slots=True)
class Worked:
    """A window: `whole` with what was done before and after it for the jobs in `jobs`.

    `read` is MiB a second that they read. `snapshots` counts what vCenter and QEMU showed while
    they ran: VMware snapshots and delta files.
    """

    kind: Kind
    whole: Window
    jobs: Window
    read: float = 0.0
    rounds: int = 0
    snapshots: int = 0
    merge_seconds: float = 0.0
    delta_bytes: float = 0.0


def production_figures(windows: Sequence[Worked], rates: Sequence[Rate]) -> list[Figure]:
    """All figures, of windows in their order and what the load wrote down; see `jobs_figures`."""
    quiet = {
        number: _rate(rates, each.whole)
        for number, each in enumerate(windows)
        if each.kind is Kind.QUIET
    }
    usual = statistics.median(quiet.values())

    def of(kind: Kind) -> list[Worked]:
        return [each for each in windows if each.kind is kind]

    def ratio(kind: Kind, part: Callable[[Worked], Window]) -> list[float]:
        """Each over the nearest quiet windows before and after it."""
        found = []
        for number, each in enumerate(windows):
            if each.kind is kind:
                before = quiet[max(place for place in quiet if place < number)]
                after = quiet[min(place for place in quiet if place > number)]
                found.append(_rate(rates, part(each)) / statistics.mean((before, after)))
        return found

    def stalled(kind: Kind) -> list[float]:
        return [_stalled(rates, each.whole, usual * STALLED) for each in of(kind)]

    def none(name: str, ratios: list[float]) -> Figure:
        return figure(name, ratios, "ratio", "no jobs", 1.0)

    def jobs(each: Worked) -> Window:
        return each.jobs

    def whole(each: Worked) -> Window:
        return each.whole

    def merging(each: Worked) -> Window:
        return Window(each.whole.ended - each.merge_seconds, each.whole.ended)

    return [
        figure("pgbench_tps_no_jobs", list(quiet.values()), "tps"),
        none(
            "pgbench_ratio_quiet",
            [after / before for before, after in pairwise(quiet.values())],
        ),
        none("pgbench_ratio_20_jobs", ratio(Kind.RUN, jobs)),
        none("pgbench_ratio_20_jobs_with_capture", ratio(Kind.RUN, whole)),
        none("pgbench_ratio_20_jobs_from_memory", ratio(Kind.MEMORY, jobs)),
        none("pgbench_ratio_20_jobs_limited", ratio(Kind.LIMITED, jobs)),
        none("pgbench_ratio_held_vmware_snapshot", ratio(Kind.HELD, whole)),
        none("pgbench_ratio_held_while_jobs", ratio(Kind.HELD, jobs)),
        none("pgbench_ratio_held_while_merging", ratio(Kind.HELD, merging)),
        figure(
            "jobs_20_vmware_snapshots",
            [float(each.snapshots) for each in (*of(Kind.RUN), *of(Kind.LIMITED))],
            "snapshots",
        ),
        figure("jobs_20_stalled_seconds", stalled(Kind.RUN), "s"),
        figure("held_stalled_seconds", stalled(Kind.HELD), "s"),
        figure("held_merge_seconds", [each.merge_seconds for each in of(Kind.HELD)], "s"),
        figure("held_delta_bytes", [each.delta_bytes for each in of(Kind.HELD)], "bytes"),
        *(
            figure(f"{name}_read", [each.read for each in of(kind)], "MiB/s")
            for name, kind in (
                ("jobs_20", Kind.RUN),
                ("jobs_20_from_memory", Kind.MEMORY),
                ("jobs_20_limited", Kind.LIMITED),
                ("held_jobs", Kind.HELD),
            )
        ),
        figure("jobs_20_ended", [float(each.rounds) for each in of(Kind.RUN)], "jobs"),
        figure("held_jobs_ended", [float(each.rounds) for each in of(Kind.HELD)], "jobs"),
    ]


def _rate(rates: Sequence[Rate], window: Window) -> float:
    """Transactions a second in a window, each line of the load's record by how much of it is inside."""
    done = seconds = 0.0
    for inside, each in _inside(rates, window):
        done += inside * each
        seconds += inside
    if not seconds:
        raise RuntimeError(f"the load said nothing of {window}")
    return done / seconds


def _stalled(rates: Sequence[Rate], window: Window, least: float) -> float:
    """Seconds of a window with fewer than `least` transactions a second."""
    return sum(inside for inside, each in _inside(rates, window) if each < least)


def _inside(rates: Sequence[Rate], window: Window) -> Iterator[tuple[float, float]]:
    """Seconds inside the window and the rate in them; a line tells of the time since the last one."""
    for before, each in pairwise(rates):
        inside = min(each.at, window.ended) - max(before.at, window.began)
        if inside > 0:
            yield inside, each.per_second
