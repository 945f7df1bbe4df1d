"""Requests from the network are taken exactly as specified or not at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll_agent.errors import BadRequestError
from atoll_agent.protocol import (
    MAX_BODY_BYTES,
    FreezeRequest,
    parse_freeze,
    parse_run,
    parse_thaw,
)


def freeze_body(**changes):
    fields = {"run": "r-1", "lease_seconds": 10, "budget_seconds": 5}
    return json.dumps({**fields, **changes}).encode()


def test_well_formed_requests_are_read():
    assert parse_freeze(freeze_body()) == FreezeRequest("r-1", 10.0, 5.0)
    assert parse_run(b'{"run": "20260101T000000Z-ab.c_d"}').run == "20260101T000000Z-ab.c_d"


@pytest.mark.parametrize(
    "changes",
    [
        {"lease_seconds": 0.5},
        {"lease_seconds": 61},
        {"lease_seconds": True},
        {"lease_seconds": "10"},
        {"lease_seconds": float("nan")},
        {"lease_seconds": float("inf")},
        {"budget_seconds": 0},
        {"budget_seconds": None},
        {"run": ""},
        {"run": "-r"},
        {"run": "a b"},
        {"run": "a\n"},
        {"run": "../a"},
        {"run": "a" * 81},
        {"run": 7},
        {"command": "true"},
    ],
)
def test_anything_else_is_refused(changes):
    with pytest.raises(BadRequestError):
        parse_freeze(freeze_body(**changes))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 4000, b" " * (MAX_BODY_BYTES + 1)]
)
def test_what_is_no_such_object_is_refused(body):
    with pytest.raises(BadRequestError):
        parse_run(body)


@given(st.binary(max_size=200))
def test_no_bytes_bring_another_error(body):
    try:
        request = parse_run(body)
    except BadRequestError:
        return
    assert request.run


def test_a_thaw_may_say_whether_there_is_a_snapshot():
    assert parse_thaw(b'{"run": "a"}').snapshot is None
    assert parse_thaw(b'{"run": "a", "snapshot": true}').snapshot is True
    for body in (
        b'{"run": "a", "snapshot": 1}',
        b'{"run": "a", "taken": true}',
        b'{"snapshot": true}',
    ):
        with pytest.raises(BadRequestError):
            parse_thaw(body)
