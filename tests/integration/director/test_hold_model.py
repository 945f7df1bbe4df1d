"""The model of the hold protocol keeps its promises, and breaks them when a rule is left out."""

import pytest

from spin_model import search

# UNTIMED: the lease may end at any moment, which says more about the proof and nothing about time.
SEARCHES = {
    "one fault, by the clock": ["FAULTS=1"],
    "a late word about another hold": ["FAULTS=0", "LATE=1", "UNTIMED"],
    "repeated requests": ["FAULTS=0", "DUPLICATES=1", "UNTIMED"],
}
LONG_SEARCHES = {
    "two faults": ["FAULTS=2", "UNTIMED"],
    "two faults, by the clock": ["FAULTS=2"],
    "late words about another hold": ["FAULTS=0", "LATE=2", "UNTIMED"],
    "a late word about another hold and a fault": ["FAULTS=1", "LATE=1", "UNTIMED"],
    "late and repeated requests": ["FAULTS=0", "LATE=1", "DUPLICATES=1", "UNTIMED"],
    "repeated requests and a fault": ["FAULTS=1", "DUPLICATES=1", "UNTIMED"],
}
UNPROVEN = "inside"
TOO_LONG = "age<="
ANOTHERS = "thaw_for"
AGAIN = "over["
STAYS_FROZEN = "acceptance cycle"

# The rule that is left out, what it takes to see it, and what must break.
BROKEN = [
    ("BUG_CLAIM_WITHOUT_ASKING", ["FAULTS=0"], UNPROVEN),
    ("BUG_RELEASE_BY_NAME", ["FAULTS=0"], UNPROVEN),
    ("BUG_THAW_EARLY", ["FAULTS=0"], UNPROVEN),
    ("BUG_CLAIM_LATE", ["FAULTS=0"], UNPROVEN),
    ("BUG_NO_WATCHDOG", ["FAULTS=0"], TOO_LONG),
    ("BUG_LEASE_EXTENDED", ["FAULTS=0"], TOO_LONG),
    ("BUG_THAW_ANY_RUN", ["FAULTS=0", "LATE=1"], ANOTHERS),
    ("BUG_THAW_FORGOTTEN", ["FAULTS=0"], AGAIN),
]
FROZEN_FOR_EVER = [
    ("BUG_NO_WATCHDOG", ["FAULTS=0"]),
    ("BUG_DEAF_AGENT", ["FAULTS=1"]),
    pytest.param("BUG_LEFTOVERS", ["FAULTS=2"], marks=pytest.mark.soak),
]


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES.keys())
def test_the_promises_are_kept(options, tmp_path):
    found = search(tmp_path, options)
    assert found.error == ""
    assert found.states > 50_000, found.output


@pytest.mark.soak
@pytest.mark.parametrize("options", LONG_SEARCHES.values(), ids=LONG_SEARCHES.keys())
def test_the_promises_are_kept_at_length(options, tmp_path):
    assert search(tmp_path, options).error == ""


def test_what_freezes_thaws(tmp_path):
    assert search(tmp_path, ["FAULTS=0"], liveness=True).error == ""


@pytest.mark.soak
@pytest.mark.parametrize(
    "options", [["FAULTS=1", "UNTIMED"], ["FAULTS=2", "UNTIMED"]], ids=" ".join
)
def test_what_freezes_thaws_at_length(options, tmp_path):
    assert search(tmp_path, options, liveness=True).error == ""


@pytest.mark.parametrize(("bug", "options", "rule"), BROKEN, ids=[bug for bug, *_ in BROKEN])
def test_a_rule_left_out_is_missed(bug, options, rule, tmp_path):
    assert rule in search(tmp_path, [bug, *options], short=True).error


@pytest.mark.parametrize(("bug", "options"), FROZEN_FOR_EVER, ids=str)
def test_without_anybody_to_thaw_it_stays_frozen(bug, options, tmp_path):
    found = search(tmp_path, [bug, *options, "UNTIMED"], liveness=True, short=True)
    assert STAYS_FROZEN in found.error
