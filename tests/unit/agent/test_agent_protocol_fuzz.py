"""Whatever arrives, the protocol's parsers answer with a request or a BadRequestError."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_agent.errors import BadRequestError
from atoll_agent.protocol import (
    MAX_BODY_BYTES,
    MAX_BUDGET_SECONDS,
    MAX_INSTALL_BYTES,
    MAX_LEASE_SECONDS,
    MIN_BUDGET_SECONDS,
    MIN_LEASE_SECONDS,
    FreezeRequest,
    InstallRequest,
    RunRequest,
    ThawRequest,
    parse_freeze,
    parse_install,
    parse_nothing,
    parse_run,
    parse_thaw,
)

EXAMPLES = int(os.environ.get("ATOLL_FUZZ_EXAMPLES", "300"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None)
PARSERS = (parse_run, parse_thaw, parse_freeze, parse_install, parse_nothing)
REQUESTS = RunRequest | ThawRequest | FreezeRequest | InstallRequest | None
KEYS = st.sampled_from(
    ["snapshot", "run", "lease_seconds", "budget_seconds", "certificate", "authorities", "x"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["r1", "../x", "; reboot", "$(id)", "a\n", "a" * 81, "\ud800", "1e999"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
BODIES = (
    st.binary(max_size=200)
    | VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | st.dictionaries(KEYS, VALUES, max_size=4).map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [
            b"[" * 4000,
            b'{"run":' * 500,
            b'{"run": "a", "run": "b"}',
            b'{"run": 1' + b"0" * 4000 + b"}",
            b"\xff\xfe",
            b"NaN",
            b'{"lease_seconds": Infinity, "budget_seconds": NaN, "run": "a"}',
            b" " * (MAX_BODY_BYTES + 1),
            b" " * (MAX_INSTALL_BYTES + 1),
        ]
    )
)


def check(body):
    for parse in PARSERS:
        try:
            request = parse(body)
        except BadRequestError as error:
            # The message goes back to a stranger's screen: nothing of the body may be in it.
            assert str(error).isprintable()
            assert len(str(error)) < 200
            continue
        assert isinstance(request, REQUESTS)
        if isinstance(request, RunRequest | ThawRequest | FreezeRequest):
            assert request.run[0].isalnum()
            assert request.run.isascii()
            assert all(c.isalnum() or c in "._-" for c in request.run)
            assert len(request.run) <= 80
        if isinstance(request, FreezeRequest):
            assert MIN_LEASE_SECONDS <= request.lease_seconds <= MAX_LEASE_SECONDS
            assert MIN_BUDGET_SECONDS <= request.budget_seconds <= MAX_BUDGET_SECONDS


@FUZZ
@given(BODIES)
def test_nothing_but_requests_and_refusals(body):
    check(body)


@pytest.mark.soak
@settings(max_examples=50_000, deadline=None)
@given(BODIES)
def test_very_many_bodies(body):
    check(body)


@FUZZ
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", fullmatch=True))
def test_every_name_of_a_run_is_taken(run):
    assert parse_run(json.dumps({"run": run}).encode()) == RunRequest(run)


@FUZZ
@given(st.text())
def test_pem_is_certificates_and_nothing_else(text):
    for field in (text, f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"):
        body = json.dumps({"certificate": field, "authorities": field}).encode()
        try:
            request = parse_install(body)
        except BadRequestError:
            continue
        assert "PRIVATE" not in request.authorities
        assert request.certificate.count("BEGIN CERTIFICATE") == 1
