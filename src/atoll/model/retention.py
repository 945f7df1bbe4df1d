"""Which restore points stay and why, and holds that nothing overrides. Pure: no clock, no I/O.

The rules are those that backup software has in common (grandfather, father, son), with the details of
restic's `forget`: of each hour, day, ISO week, month or year the newest point counts, for the last so
many of them that have a point; while there are fewer, the oldest point stays too, so that history grows
to its full length.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from fnmatch import fnmatchcase

from atoll.model.consistency import Consistency
from atoll.model.points import RestorePoint

CLOCK_TOLERANCE_SECONDS = 3600.0
"""Clocks of storage systems may be ahead by this much before a point counts as dated in the future."""

_BEST_FIRST = tuple(Consistency)


class Why(StrEnum):
    """Why a point stays: the first ones whatever the rules say, the others by a rule."""

    HOLD = "hold"
    NEWEST = "newest"
    CONSISTENT = "consistent"
    FUTURE = "future"
    IMMUTABLE = "immutable"
    NO_RULE = "no rule"
    LAST = "last"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"
    WITHIN = "within"


@dataclass(frozen=True, slots=True)
class Keep:
    """How many points of a VM stay by each rule, 0 where there is no such rule; all 0: all stay.

    Everything younger than `within_seconds` stays.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_seconds: float = 0.0

    @property
    def everything(self) -> bool:
        """Whether there is no rule, so that nothing goes."""
        return self == Keep()


@dataclass(frozen=True, slots=True)
class VmRule:
    """What holds instead of the general rules for VMs whose name matches one of the patterns."""

    vms: tuple[str, ...]
    keep: Keep

    def matches(self, vm: str) -> bool:
        """`*`, `?` and `[…]` as in a shell; vCenter does not tell names apart by case, nor does this."""
        return any(fnmatchcase(vm.casefold(), pattern.casefold()) for pattern in self.vms)


@dataclass(frozen=True, slots=True)
class Retention:
    """The whole policy. The first of `rules` that matches a VM replaces `keep` altogether.

    `zone` says when days begin.
    """

    keep: Keep = Keep()
    rules: tuple[VmRule, ...] = ()
    zone: tzinfo = UTC

    def of(self, vm: str) -> Keep:
        """The rules for a VM of that name."""
        return next((rule.keep for rule in self.rules if rule.matches(vm)), self.keep)


@dataclass(frozen=True, slots=True)
class PointHold:
    """Somebody's word that a point must stay, until a time (seconds since the epoch) or released.

    `name` is 32 hex digits, used once.
    """

    name: str
    point: str
    reason: str
    who: str
    placed_at: float
    until: float | None = None

    def in_force(self, now: float) -> bool:
        """Whether its time is not over."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class Holds:
    """All holds. Those that cannot be read, by object name, may be on any point, so on every one."""

    found: tuple[PointHold, ...] = ()
    damaged: tuple[str, ...] = ()

    def on(self, point: str, now: float) -> list[PointHold]:
        """Those in force on a point that can be read."""
        return [hold for hold in self.found if hold.point == point and hold.in_force(now)]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a point stays, and what of it: the period, the hold's reason."""

    why: Why
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.why} ({self.detail})" if self.detail else self.why.value


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a point; without a reason to stay it goes."""

    point: RestorePoint
    reasons: tuple[Reason, ...]

    @property
    def goes(self) -> bool:
        """Whether nothing keeps it."""
        return not self.reasons


def judge(
    points: Iterable[RestorePoint],
    retention: Retention,
    now: float,
    holds: Holds = Holds(),
    immutable_since: float | None = None,
) -> list[Verdict]:
    """What becomes of each point, by VM name and then oldest first; the order given is no matter.

    VMs are told apart by instance UUID; a VM's name is that of its newest point. Whatever the rules
    say, these stay: a VM's newest point; the newest of the best consistency the VM has; points on
    hold; points dated later than `now`, which take nobody's place either; points made after
    `immutable_since`. Ages are counted from the newest point there is of any VM, not from `now`: when
    backups stop, nothing grows old. Two points of one instant count in the order of their ids.
    """
    by_vm: defaultdict[str, list[RestorePoint]] = defaultdict(list)
    for point in sorted(points, key=_instant, reverse=True):
        by_vm[point.instance_uuid].append(point)
    past = now + CLOCK_TOLERANCE_SECONDS
    times = [of_vm.created_at for each in by_vm.values() for of_vm in each]
    latest = max((time for time in times if time <= past), default=now)
    verdicts = []
    for of_vm in sorted(by_vm.values(), key=lambda each: (each[0].vm, each[0].instance_uuid)):
        reasons: defaultdict[str, list[Reason]] = defaultdict(list)
        for point, reason in _protected(of_vm, past, now, holds, immutable_since):
            reasons[point.id].append(reason)
        known = [point for point in of_vm if point.created_at <= past]
        for point, reason in _by_rules(known, retention.of(of_vm[0].vm), latest, retention.zone):
            reasons[point.id].append(reason)
        verdicts += [Verdict(point, tuple(reasons[point.id])) for point in reversed(of_vm)]
    return verdicts


def _instant(point: RestorePoint) -> tuple[float, str]:
    return point.created_at, point.id


_Kept = Iterator[tuple[RestorePoint, Reason]]


def _protected(
    newest_first: Sequence[RestorePoint],
    past: float,
    now: float,
    holds: Holds,
    immutable_since: float | None,
) -> _Kept:
    """What stays whatever the rules say."""
    for point in newest_first:
        for hold in holds.on(point.id, now):
            yield point, Reason(Why.HOLD, hold.reason)
        for name in holds.damaged:
            yield point, Reason(Why.HOLD, f"{name} cannot be read")
        if point.created_at > past:
            yield point, Reason(Why.FUTURE)
        elif immutable_since is not None and point.created_at > immutable_since:
            yield point, Reason(Why.IMMUTABLE)
    known = [point for point in newest_first if point.created_at <= past]
    if known:
        yield known[0], Reason(Why.NEWEST)
        best = min(known, key=lambda point: _BEST_FIRST.index(point.proof.consistency))
        yield best, Reason(Why.CONSISTENT, f"the newest that is {best.proof.consistency}")


def _by_rules(
    newest_first: Sequence[RestorePoint], keep: Keep, latest: float, zone: tzinfo
) -> _Kept:
    if keep.everything:
        for point in newest_first:
            yield point, Reason(Why.NO_RULE)
        return
    for number, point in enumerate(newest_first[: keep.last], 1):
        yield point, Reason(Why.LAST, f"{number} of {keep.last}")
    for why, count, period in (
        (Why.HOURLY, keep.hourly, _hour),
        (Why.DAILY, keep.daily, _day),
        (Why.WEEKLY, keep.weekly, _week),
        (Why.MONTHLY, keep.monthly, _month),
        (Why.YEARLY, keep.yearly, _year),
    ):
        for point, detail in _newest_of_each(newest_first, count, period, zone):
            yield point, Reason(why, detail)
    for point in newest_first:
        if latest - point.created_at < keep.within_seconds:
            yield point, Reason(Why.WITHIN)


def _newest_of_each(
    newest_first: Sequence[RestorePoint],
    count: int,
    period: Callable[[datetime], str],
    zone: tzinfo,
) -> Iterator[tuple[RestorePoint, str]]:
    """The newest point of each of the last `count` periods that have one, or all and the oldest."""
    met: set[str] = set()
    for point in newest_first:
        if len(met) == count:
            return
        name = period(datetime.fromtimestamp(point.created_at, zone))
        if name not in met:
            met.add(name)
            yield point, name
        elif point is newest_first[-1]:
            yield point, "the oldest"


def _hour(at: datetime) -> str:
    # With the offset, or the hour that summer time repeats would be one.
    return at.strftime("%Y-%m-%d %H:00%z")


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d")


def _week(at: datetime) -> str:
    year, week, _ = at.isocalendar()
    return f"{year}-W{week:02}"


def _month(at: datetime) -> str:
    return at.strftime("%Y-%m")


def _year(at: datetime) -> str:
    return at.strftime("%Y")
