"""Which points stay: the laws that hold for all rules, and the rules one by one."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.consistency import Consistency
from atoll.model.points import RestorePoint
from atoll.model.retention import Holds, Keep, PointHold, Retention, VmRule, Why, judge
from repository_parts import point

HOUR, DAY = 3600, 86400
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()


def made(
    at: float, *, vm: str = "db1", uuid: str = "", word: str = "app", identity: str = ""
) -> RestorePoint:
    plain = point(identity or f"{at:015.3f}-{vm}", vm=vm, at=at)
    proof = replace(plain.proof, consistency=Consistency(word))
    return replace(plain, instance_uuid=uuid or vm, proof=proof)


def on(text: str, **how: str) -> RestorePoint:
    return made(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp(), **how)


def stay(
    points: Sequence[RestorePoint], keep: Keep, *, now: float = NOW, **more: object
) -> set[str]:
    return kept(points, Retention(keep), now=now, **more)


def kept(
    points: Sequence[RestorePoint], retention: Retention, *, now: float = NOW, **more: object
) -> set[str]:
    return {each.point.id for each in judge(points, retention, now, **more) if not each.goes}


# Within three years, some close together, some at one instant, some in the future.
times = st.one_of(
    st.integers(0, 3 * 365 * DAY).map(lambda back: NOW - back),
    st.integers(0, 60).map(lambda hours: NOW - hours * HOUR),
    st.integers(1, 40).map(lambda days: NOW + days * DAY),
)
one_point = st.builds(
    lambda at, vm, word, number: made(
        at, vm=vm, word=word, identity=f"{number:04}-{at:015.3f}-{vm}"
    ),
    times,
    st.sampled_from(["db1", "app1"]),
    st.sampled_from(list(Consistency)),
    st.integers(0, 9999),
)
many_points = st.lists(one_point, max_size=30, unique_by=lambda each: each.id)
count = st.integers(0, 6)
keeps = st.builds(
    Keep,
    last=count,
    hourly=count,
    daily=count,
    weekly=count,
    monthly=count,
    yearly=count,
    within_seconds=st.sampled_from([0.0, 3.0 * HOUR, 14.0 * DAY]),
)
policies = st.builds(
    Retention,
    keeps,
    st.lists(st.builds(VmRule, st.just(("db*",)), keeps), max_size=1).map(tuple),
    st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu")]),
)


@settings(max_examples=150, deadline=None)
@given(many_points, policies, st.randoms(use_true_random=False))
def test_each_point_gets_one_verdict_whatever_the_order(points, retention, random) -> None:
    verdicts = judge(points, retention, NOW)
    assert sorted(each.point.id for each in verdicts) == sorted(each.id for each in points)
    shuffled = list(points)
    random.shuffle(shuffled)
    assert judge(shuffled, retention, NOW) == verdicts


@settings(max_examples=150, deadline=None)
@given(many_points, policies)
def test_what_stays_stays_when_the_rest_is_gone(points, retention) -> None:
    left = [each.point for each in judge(points, retention, NOW) if not each.goes]
    assert kept(left, retention) == {each.id for each in left}


@settings(max_examples=200, deadline=None)
@given(many_points, policies, one_point)
def test_a_newer_point_brings_none_back(points, retention, new) -> None:
    of_vm = [each.created_at for each in points if each.vm == new.vm]
    newer = replace(new, id="z-new", created_at=max([new.created_at, *of_vm]) + 1)
    before = kept(points, retention)
    assert kept([*points, newer], retention) - {newer.id} <= before


@settings(max_examples=150, deadline=None)
@given(many_points, policies, st.integers(0, 400))
def test_time_alone_takes_nothing_away_but_the_future(points, retention, days) -> None:
    """When backups stop, nothing grows old, however the clock jumps."""
    past = [each for each in points if each.created_at <= NOW]
    assert kept(past, retention, now=NOW + days * DAY) == kept(past, retention)


@settings(max_examples=150, deadline=None)
@given(many_points, policies)
def test_the_newest_and_the_best_stay(points, retention) -> None:
    left = kept(points, retention)
    for vm in {each.vm for each in points}:
        known = [each for each in points if each.vm == vm and each.created_at <= NOW]
        future = {each.id for each in points if each.vm == vm} - {each.id for each in known}
        assert future <= left
        if known:
            newest = max(known, key=lambda each: (each.created_at, each.id))
            rank = min(list(Consistency).index(each.proof.consistency) for each in known)
            best = [each for each in known if each.proof.consistency is list(Consistency)[rank]]
            assert {newest.id, max(best, key=lambda each: (each.created_at, each.id)).id} <= left


@settings(max_examples=100, deadline=None)
@given(many_points, policies, st.data())
def test_holds_only_add(points, retention, data) -> None:
    chosen = data.draw(st.lists(st.sampled_from(points), max_size=3)) if points else []
    holds = Holds(tuple(PointHold("", each.id, "audit", "me", 0.0) for each in chosen))
    expected = kept(points, retention) | {each.id for each in chosen}
    assert kept(points, retention, holds=holds) == expected


def test_without_rules_everything_stays_and_says_so() -> None:
    points = [made(NOW - days * DAY) for days in range(400)]
    verdicts = judge(points, Retention(), NOW)
    assert all(Why.NO_RULE in {reason.why for reason in each.reasons} for each in verdicts)


def test_the_newest_of_a_day_counts_for_as_many_days_as_have_one() -> None:
    points = [
        on(text)
        for text in (
            "2026-11-26T09:00",
            "2026-11-26T03:00",
            "2026-11-20T23:59:59",
            "2026-11-20T01:00",
            "2026-11-01T01:00",
        )
    ]
    assert stay(points, Keep(daily=2)) == {points[0].id, points[2].id}


def test_while_there_are_fewer_periods_the_oldest_stays_too() -> None:
    points = [on(f"2026-11-{day:02}T01:00") for day in range(3, 26)]
    assert stay(points, Keep(monthly=12)) == {points[0].id, points[-1].id}
    # A month later it is no longer the newest of any month, and still the beginning of history.
    later = [*points, on("2026-12-20T01:00")]
    now = NOW + 30 * DAY
    assert stay(later, Keep(monthly=12), now=now) == {points[0].id, points[-1].id, later[-1].id}
    assert stay(later, Keep(monthly=2), now=now) == {points[-1].id, later[-1].id}


def test_weeks_are_iso_weeks() -> None:
    # Monday 2024-12-30 and Wednesday 2025-01-01 are both in week 1 of 2025.
    points = [on("2024-12-29T12:00"), on("2024-12-30T12:00"), on("2025-01-01T12:00")]
    assert stay(points, Keep(weekly=2)) == {points[0].id, points[2].id}
    [verdict] = [each for each in judge(points, Retention(Keep(weekly=1)), NOW) if not each.goes]
    assert "weekly (2025-W01)" in map(str, verdict.reasons)


@pytest.mark.parametrize(("zone", "count"), [("UTC", 1), ("Europe/Berlin", 2)])
def test_days_begin_where_the_admin_lives(zone: str, count: int) -> None:
    points = [on("2026-11-20T22:30"), on("2026-11-20T23:30")]  # half past midnight in Berlin
    rules = Retention(Keep(daily=5), zone=ZoneInfo(zone))
    names = {
        reason.detail
        for each in judge(points, rules, NOW)
        for reason in each.reasons
        if reason.why is Why.DAILY and reason.detail != "the oldest"
    }
    assert len(names) == count


def test_the_hour_that_summer_time_repeats_is_two_hours() -> None:
    points = [on("2026-10-25T00:30"), on("2026-10-25T01:30")]  # both 02:30 in Berlin
    rules = Retention(Keep(hourly=2), zone=ZoneInfo("Europe/Berlin"))
    details = {str(each.reasons[-1]) for each in judge(points, rules, NOW)}
    assert details == {
        "hourly (2026-10-25 02:00+0200)",
        "hourly (2026-10-25 02:00+0100)",
    }


def test_of_two_points_at_one_instant_the_later_id_is_newer() -> None:
    points = [made(NOW, identity="a"), made(NOW, identity="b")]
    assert stay(points, Keep(last=1)) == {"b"}
    assert stay(points, Keep(last=2)) == {"a", "b"}


def test_a_run_of_crash_consistent_points_keeps_the_last_good_one() -> None:
    good = made(NOW - 90 * DAY)
    points = [made(NOW - 91 * DAY), good] + [
        made(NOW - days * DAY, word="crash") for days in range(20)
    ]
    assert stay(points, Keep(last=3)) == {good.id, *(each.id for each in points[2:5])}


def test_points_dated_in_the_future_take_nobodys_place() -> None:
    future = made(NOW + 900 * DAY, word="app")
    points = [made(NOW - days * DAY, word="crash") for days in range(5)]
    verdicts = {each.point.id: each for each in judge([*points, future], Retention(Keep(2)), NOW)}
    assert [str(reason) for reason in verdicts[future.id].reasons] == ["future"]
    assert [each.id for each in points if not verdicts[each.id].goes] == [
        points[0].id,
        points[1].id,
    ]


def test_a_clock_a_little_ahead_is_not_the_future() -> None:
    points = [made(NOW + 60), made(NOW - DAY)]
    assert stay(points, Keep(last=1)) == {points[0].id}


def test_ages_are_counted_from_the_newest_point_of_any_vm() -> None:
    gone = [made(NOW - days * DAY, vm="old") for days in (20, 30)]
    assert stay(gone, Keep(within_seconds=5.0 * DAY)) == {gone[0].id}
    assert stay(gone, Keep(within_seconds=25.0 * DAY)) == {each.id for each in gone}
    others = [made(NOW)]
    assert stay([*gone, *others], Keep(within_seconds=25.0 * DAY)) == {gone[0].id, others[0].id}


def test_vms_are_told_apart_by_uuid_and_named_by_their_newest_point() -> None:
    renamed = [made(NOW - DAY, vm="db1", uuid="u"), made(NOW, vm="web1", uuid="u")]
    twin = [made(NOW - 2 * DAY, vm="db1", uuid="v")]
    rules = Retention(Keep(last=1), (VmRule(("DB*",), Keep()),))
    assert kept([*renamed, *twin], rules) == {renamed[1].id, twin[0].id}
    assert kept([*renamed, *twin], replace(rules, rules=(VmRule(("web?",), Keep()),))) == {
        each.id for each in [*renamed, *twin]
    }


def test_the_first_rule_that_matches_replaces_all_others() -> None:
    points = [made(NOW - days * DAY) for days in range(9)]
    rules = (VmRule(("x", "db1"), Keep(last=2)), VmRule(("*",), Keep(last=8)))
    assert len(kept(points, Retention(Keep(last=5), rules))) == 2


def test_an_immutability_date_keeps_what_is_younger() -> None:
    points = [made(NOW - days * DAY) for days in range(9)]
    assert len(stay(points, Keep(last=1), immutable_since=NOW - 3.5 * DAY)) == 4


def test_holds_end_when_they_say_and_a_damaged_one_holds_all() -> None:
    points = [made(NOW - days * DAY) for days in range(4)]
    hold = PointHold("", points[3].id, "audit", "me", 0.0, until=NOW)
    holds = Holds((hold,))
    assert stay(points, Keep(last=1), now=NOW - 1, holds=holds) == {points[0].id, points[3].id}
    assert stay(points, Keep(last=1), now=NOW, holds=holds) == {points[0].id}
    assert len(stay(points, Keep(last=1), holds=Holds(damaged=("holds/x",)))) == 4
