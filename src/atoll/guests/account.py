"""What an agent says of a hold that VMware Tools asked it for, read as something a stranger wrote.

The agent writes it when VMware Tools lets the guest go. It comes over the
agent's channel or, where there is no network, through guestinfo: whoever is
root in the guest decides what it says, so it is taken strictly or not at all.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atoll.model.consistency import ApplicationState
from atoll.model.errors import AgentUnavailableError

FORMAT = 1
MAX_BYTES = 8192

_KEYS = frozenset(
    {
        "format",
        "boot",
        "number",
        "held",
        "reason",
        "began_at",
        "held_at",
        "ended_at",
        "lease_seconds",
        "filesystems_thawed",
        "applications",
    }
)
_APPLICATION_KEYS = frozenset(
    {"kind", "name", "held", "position", "witness", "flush_seconds", "detail"}
)
_MAX_APPLICATIONS = 64
_MAX_EPOCH = 1e11
_BOOT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True)
class GuestAccount:
    """One hold of a guest's applications, from VMware Tools' freeze to its thaw.

    Holds are counted from 1 since the guest's start; `boot` is the kernel's id
    of that start. Times are seconds since the epoch by the guest's clock;
    `held_at` is None when nothing was ever held, `ended_at` while the hold
    lasts. `held` is the agent's word that what it had held stayed held until
    VMware Tools thawed, else `reason` says what broke it. `filesystems_thawed`
    tells that VMware Tools never thawed and the agent did it in its place, long
    after.
    """

    boot: str
    number: int
    held: bool
    reason: str
    began_at: float
    held_at: float | None
    ended_at: float | None
    lease_seconds: float
    filesystems_thawed: bool
    applications: tuple[ApplicationState, ...]


def read_account(text: str) -> GuestAccount:
    """Parse an account; AgentUnavailableError for anything that is not exactly one."""
    try:
        return _account(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise AgentUnavailableError(
            f"What the guest says of its hold cannot be read ({error}); "
            "install the agent of this version in it."
        ) from error


def why_not_of_this_hold(before: GuestAccount | None, after: GuestAccount) -> str:
    """Empty when exactly one hold lies between two looks at a guest's account, else why not.

    `before` None: there was no account, as in a guest that was never held since its start.
    """
    same_boot = before is not None and before.boot == after.boot
    expected = before.number + 1 if before is not None and same_boot else 1
    if after.number == expected:
        return ""
    return (
        f"its agent counts {after.number} holds since the guest's start where this was "
        f"number {expected}, so it is not known which one it speaks of"
    )


def _account(text: str) -> GuestAccount:
    if len(text) > MAX_BYTES:
        raise ValueError("it is too long")
    given = _fields(json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant), _KEYS)
    if given["format"] != FORMAT:
        raise ValueError(f"format {given['format']!r} is not known")
    applications = given["applications"]
    if not isinstance(applications, list) or len(applications) > _MAX_APPLICATIONS:
        raise ValueError("applications must be a short list")
    boot = _text(given, "boot", 36)
    if not _BOOT.match(boot):
        raise ValueError("boot must be a UUID")
    return GuestAccount(
        boot=boot,
        number=_count(given, "number"),
        held=_flag(given, "held"),
        reason=_text(given, "reason", 1000),
        began_at=_seconds(given, "began_at"),
        held_at=None if given["held_at"] is None else _seconds(given, "held_at"),
        ended_at=None if given["ended_at"] is None else _seconds(given, "ended_at"),
        lease_seconds=_seconds(given, "lease_seconds"),
        filesystems_thawed=_flag(given, "filesystems_thawed"),
        applications=tuple(_application(entry) for entry in applications),
    )


def _application(entry: Any) -> ApplicationState:
    given = _fields(entry, _APPLICATION_KEYS)
    return ApplicationState(
        kind=_text(given, "kind", 100),
        name=_text(given, "name", 200),
        held=_flag(given, "held"),
        position=_text(given, "position", 500),
        witness=None if given["witness"] is None else _text(given, "witness", 4000, lines=True),
        flush_seconds=_seconds(given, "flush_seconds"),
        detail=_text(given, "detail", 1000),
    )


def _fields(given: Any, keys: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(given, dict) or set(given) != keys:
        raise ValueError(f"expected an object with exactly {', '.join(sorted(keys))}")
    return given


def _text(given: Mapping[str, Any], key: str, most: int, lines: bool = False) -> str:
    value = given[key]
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{key} must be a text of at most {most} characters")
    # It ends up in terminals and logs, which some characters can steer.
    seen = value.replace("\n", "").replace("\t", "") if lines else value
    if not seen.isprintable():
        raise ValueError(f"{key} holds characters that cannot be shown")
    return value


def _flag(given: Mapping[str, Any], key: str) -> bool:
    value = given[key]
    if not isinstance(value, bool):
        raise TypeError(f"{key} must be true or false")
    return value


def _count(given: Mapping[str, Any], key: str) -> int:
    value = given[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise ValueError(f"{key} must be a count")
    return value


def _seconds(given: Mapping[str, Any], key: str) -> float:
    value = given[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_EPOCH:
        raise ValueError(f"{key} must be a number of seconds")
    return float(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
