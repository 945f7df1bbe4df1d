"""An account that comes from a guest: taken strictly, and only for the hold it is of."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.guests.account import MAX_BYTES, read_account, why_not_of_this_hold
from atoll.model.consistency import ApplicationState
from atoll.model.errors import AgentUnavailableError

BOOT = "0b9d0f6e-3c1b-4d43-9c59-0d8f3b6f2a11"
OTHER_BOOT = "1b9d0f6e-3c1b-4d43-9c59-0d8f3b6f2a11"


def application(**changes):
    return {
        "kind": "postgresql",
        "name": "15-main",
        "held": True,
        "position": "0/3000060",
        "witness": "42",
        "flush_seconds": 0.1,
        "detail": "",
        **changes,
    }


def account(**changes):
    return {
        "format": 1,
        "boot": BOOT,
        "number": 3,
        "held": True,
        "reason": "",
        "began_at": 1700000000.0,
        "held_at": 1700000000.5,
        "ended_at": 1700000003,
        "lease_seconds": 30.0,
        "filesystems_thawed": False,
        "applications": [application()],
        **changes,
    }


def read(**changes):
    return read_account(json.dumps(account(**changes)))


def test_an_account_is_read_whole():
    told = read()
    assert (told.boot, told.number, told.held, told.reason) == (BOOT, 3, True, "")
    assert (told.began_at, told.held_at, told.ended_at) == (
        1700000000.0,
        1700000000.5,
        1700000003.0,
    )
    assert told.applications == (
        ApplicationState("postgresql", "15-main", True, "0/3000060", "42", 0.1, ""),
    )
    assert read(held_at=None, ended_at=None).ended_at is None
    assert read(applications=[application(witness=None)]).applications[0].witness is None


WRONG = {
    "another format": {"format": 2},
    "no boot": {"boot": "x"},
    "no count": {"number": 0},
    "a count that is true": {"number": True},
    "held as a word": {"held": "true"},
    "held as a number": {"held": 1},
    "thawed as null": {"filesystems_thawed": None},
    "a long reason": {"reason": "x" * 1001},
    "escape sequences": {"reason": "\x1b[2J"},
    "a reversed text": {"reason": "\u202eabc"},
    "not a number": {"began_at": math.nan},
    "for ever": {"ended_at": math.inf},
    "before time": {"began_at": -1},
    "time as a text": {"held_at": "1700000000"},
    "no list": {"applications": {}},
    "too many": {"applications": [application(witness=None)] * 65},
    "no application": {"applications": ["postgresql"]},
    "more of an application": {"applications": [application(more=1)]},
    "held application as a word": {"applications": [application(held="yes")]},
    "name as a number": {"applications": [application(name=15)]},
    "line breaks in a name": {"applications": [application(name="a\nb")]},
    "more": {"more": 1},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_anything_else_is_refused(changes):
    with pytest.raises(AgentUnavailableError, match="cannot be read"):
        read(**changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 5000,
        '{"number": ' + "9" * 5000 + "}",
        json.dumps(account()) + " " * MAX_BYTES,
        json.dumps(account())[:-1] + ', "held": false}',
    ],
)
def test_what_is_no_account_is_refused(text):
    with pytest.raises(AgentUnavailableError, match="cannot be read"):
        read_account(text)


def test_a_missing_field_is_refused():
    for key in account():
        given = account()
        del given[key]
        with pytest.raises(AgentUnavailableError):
            read_account(json.dumps(given))


@given(
    st.text()
    | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)
)
def test_no_text_makes_it_fail_otherwise(text):
    with pytest.raises(AgentUnavailableError):
        read_account(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, read(number=1)),
        (read(number=3), read(number=4)),
        (read(boot=OTHER_BOOT, number=9), read(number=1)),
        (read(number=3, ended_at=None), read(number=4)),
    ],
)
def test_exactly_one_hold_in_between_is_this_one(before, after):
    assert why_not_of_this_hold(before, after) == ""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, read(number=2), 1),
        (read(number=3), read(number=3), 4),
        (read(number=3), read(number=5), 4),
        (read(number=3), read(number=2), 4),
        (read(boot=OTHER_BOOT, number=1), read(number=2), 1),
    ],
)
def test_any_other_count_may_be_another_hold(before, after, expected):
    assert f"where this was number {expected}" in why_not_of_this_hold(before, after)
