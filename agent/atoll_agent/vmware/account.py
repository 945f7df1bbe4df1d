"""What is told of one hold, small enough for guestinfo and without a character that harms.

The director takes it strictly (`atoll.guests.account` has the same fields).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll_agent.application import HeldApplication

FORMAT = 1
MAX_BYTES = 4096

_TEXTS = {"kind": 100, "name": 200, "position": 200, "detail": 300}
_REASON_CHARACTERS = 500
_WITNESS_CHARACTERS = 1000


@dataclass(frozen=True)
class Account:
    """One hold, the `number`th since the guest's start, whose kernel id is `boot`.

    Times are seconds since the epoch. `held_at` is None when nothing was ever
    held, `ended_at` while the hold lasts. `held` is True only of a hold that
    was unbroken until VMware Tools thawed.
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
    applications: tuple[HeldApplication, ...]

    def text(self) -> str:
        """As JSON of at most MAX_BYTES, ASCII alone.

        What does not fit is given up in this order: witnesses, details, the
        list of applications; without that, nothing is said to be held.
        """
        return next(
            text
            for account in (
                self,
                replace(self, applications=_without_witness(self.applications)),
                replace(self, applications=_bare(self.applications)),
                replace(
                    self,
                    held=False,
                    reason=f"{len(self.applications)} applications are too many to tell of",
                    applications=(),
                ),
            )
            if len(text := account._encoded()) <= MAX_BYTES
        )

    def _encoded(self) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "boot": self.boot,
                "number": self.number,
                "held": self.held,
                "reason": _shown(self.reason, _REASON_CHARACTERS),
                "began_at": round(self.began_at, 6),
                "held_at": None if self.held_at is None else round(self.held_at, 6),
                "ended_at": None if self.ended_at is None else round(self.ended_at, 6),
                "lease_seconds": self.lease_seconds,
                "filesystems_thawed": self.filesystems_thawed,
                "applications": [_entry(each) for each in self.applications],
            },
            separators=(",", ":"),
        )


def _entry(application: HeldApplication) -> dict[str, Any]:
    witness = application.witness
    return {
        **{key: _shown(getattr(application, key), most) for key, most in _TEXTS.items()},
        "held": application.held,
        "witness": None if witness is None else _witness(witness),
        "flush_seconds": round(application.flush_seconds, 3),
    }


def _witness(text: str) -> str | None:
    """The answer as it is, for it is compared later, or None when it cannot be told as it is."""
    plain = text.replace("\n", "").replace("\t", "")
    return text if plain.isprintable() and len(text) <= _WITNESS_CHARACTERS else None


def _without_witness(applications: Sequence[HeldApplication]) -> tuple[HeldApplication, ...]:
    return tuple(replace(each, witness=None) for each in applications)


def _bare(applications: Sequence[HeldApplication]) -> tuple[HeldApplication, ...]:
    return tuple(replace(each, witness=None, detail="", position="") for each in applications)


def _shown(text: str, most: int) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)[:most]
