"""Requests as they may arrive from the network, checked strictly before anyone acts on them."""

import json
import re
from dataclasses import dataclass
from typing import Any

from atoll_agent.errors import BadRequestError

MAX_BODY_BYTES = 4096
MAX_LEASE_SECONDS = 60.0
MIN_LEASE_SECONDS = 1.0
MAX_BUDGET_SECONDS = 60.0
MIN_BUDGET_SECONDS = 0.1

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")


@dataclass(frozen=True)
class RunRequest:
    """`prepare` and `thaw`: which run is meant."""

    run: str


@dataclass(frozen=True)
class FreezeRequest:
    """`freeze`: hold within `budget_seconds`, then for at most `lease_seconds`."""

    run: str
    lease_seconds: float
    budget_seconds: float


def parse_run(body: bytes) -> RunRequest:
    """A `{"run": …}` body; BadRequestError for anything else."""
    return RunRequest(run=_run(_object(body, {"run"})))


def parse_freeze(body: bytes) -> FreezeRequest:
    """A `{"run", "lease_seconds", "budget_seconds"}` body; BadRequestError for anything else."""
    fields = _object(body, {"run", "lease_seconds", "budget_seconds"})
    return FreezeRequest(
        run=_run(fields),
        lease_seconds=_seconds(fields, "lease_seconds", MIN_LEASE_SECONDS, MAX_LEASE_SECONDS),
        budget_seconds=_seconds(fields, "budget_seconds", MIN_BUDGET_SECONDS, MAX_BUDGET_SECONDS),
    )


def _object(body: bytes, expected: set[str]) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise BadRequestError(f"The body is larger than {MAX_BODY_BYTES} bytes.")
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequestError("The body is not JSON.") from error
    if not isinstance(value, dict) or set(value) != expected:
        raise BadRequestError(
            f"The body must be an object with exactly {', '.join(sorted(expected))}."
        )
    return value


def _run(fields: dict[str, Any]) -> str:
    run = fields["run"]
    if not isinstance(run, str) or not _RUN.match(run):
        raise BadRequestError(
            "run must be 1 to 80 letters, digits, dots, dashes and underscores, "
            "starting with a letter or digit."
        )
    return run


def _seconds(fields: dict[str, Any], name: str, low: float, high: float) -> float:
    value = fields[name]
    # bool is an int to Python, and NaN passes no comparison, so it is refused here too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequestError(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)
