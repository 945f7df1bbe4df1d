"""Requests as they may arrive from the network, checked strictly before anyone acts on them."""

import json
import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from atoll_agent.errors import BadRequestError

MAX_BODY_BYTES = 4096
MAX_INSTALL_BYTES = 32768
MAX_LEASE_SECONDS = 60.0
MIN_LEASE_SECONDS = 1.0
MAX_BUDGET_SECONDS = 60.0
MIN_BUDGET_SECONDS = 0.1

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")

# Nothing but certificates: a file that is replaced by these must not gain anything else.
_CERTIFICATE = r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{1,8000}-----END CERTIFICATE-----\n"
_ONE_CERTIFICATE = re.compile(rf"{_CERTIFICATE}\Z")
_CERTIFICATES = re.compile(rf"(?:{_CERTIFICATE}){{1,4}}\Z")


@dataclass(frozen=True)
class RunRequest:
    """`prepare`: which run is meant."""

    run: str


@dataclass(frozen=True)
class ThawRequest:
    """`thaw`: which run, and whether a snapshot was taken; None when the director does not say."""

    run: str
    snapshot: bool | None


@dataclass(frozen=True)
class FreezeRequest:
    """`freeze`: hold within `budget_seconds`, then for at most `lease_seconds`."""

    run: str
    lease_seconds: float
    budget_seconds: float


@dataclass(frozen=True)
class InstallRequest:
    """`install`: this guest's next certificate and the authorities to trust from then on, PEM."""

    certificate: str
    authorities: str


def parse_run(body: bytes) -> RunRequest:
    """A `{"run": …}` body; BadRequestError for anything else."""
    return RunRequest(run=_run(_object(body, {"run"})))


def parse_thaw(body: bytes) -> ThawRequest:
    """A `{"run": …}` body that may have `snapshot` too; BadRequestError for anything else."""
    fields = _object(body, {"run"}, may={"snapshot"})
    snapshot = fields.get("snapshot")
    if snapshot is not None and not isinstance(snapshot, bool):
        raise BadRequestError("snapshot must be true or false.")
    return ThawRequest(run=_run(fields), snapshot=snapshot)


def parse_freeze(body: bytes) -> FreezeRequest:
    """A `{"run", "lease_seconds", "budget_seconds"}` body; BadRequestError for anything else."""
    fields = _object(body, {"run", "lease_seconds", "budget_seconds"})
    return FreezeRequest(
        run=_run(fields),
        lease_seconds=_seconds(fields, "lease_seconds", MIN_LEASE_SECONDS, MAX_LEASE_SECONDS),
        budget_seconds=_seconds(fields, "budget_seconds", MIN_BUDGET_SECONDS, MAX_BUDGET_SECONDS),
    )


def parse_install(body: bytes) -> InstallRequest:
    """A `{"certificate", "authorities"}` body; BadRequestError for anything else."""
    fields = _object(body, {"certificate", "authorities"}, MAX_INSTALL_BYTES)
    return InstallRequest(
        certificate=_pem(fields, "certificate", _ONE_CERTIFICATE),
        authorities=_pem(fields, "authorities", _CERTIFICATES),
    )


def parse_nothing(body: bytes) -> None:
    """A `{}` body; BadRequestError for anything else."""
    _object(body, set())


def _object(
    body: bytes,
    expected: set[str],
    most: int = MAX_BODY_BYTES,
    may: Set[str] = frozenset(),
) -> dict[str, Any]:
    if len(body) > most:
        raise BadRequestError(f"The body is larger than {most} bytes.")
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequestError("The body is not JSON.") from error
    if not isinstance(value, dict) or set(value) - may != expected:
        raise BadRequestError(
            f"The body must be an object with exactly {', '.join(sorted(expected)) or 'nothing'}."
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


def _pem(fields: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = fields[name]
    if not isinstance(value, str) or not form.match(value):
        raise BadRequestError(f"{name} must be PEM and hold certificates alone.")
    return value
