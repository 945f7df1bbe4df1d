"""Times and sizes as people write them on the command line."""

import re
import time
from datetime import datetime, timedelta

from atoll.model.errors import ConfigurationError

_AGO = re.compile(r"([0-9]{1,6})([hdw])")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def at_moment(text: str | None, *, end: bool = False) -> float | None:
    """Seconds since the epoch of `2026-11-26`, `2026-11-26 14:30` (local) or `36h`, `14d`, `8w` ago.

    A day is its beginning, or with `end` the beginning of the next.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return time.time() - int(ago[1]) * _HOURS[ago[2]] * 3600
    try:
        if end and _DAY.fullmatch(text):
            return (datetime.fromisoformat(text) + timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no time; write it like 2026-11-26, '2026-11-26 14:30' or 14d."
        ) from None


def bytes_of(text: str | None) -> int | None:
    """Bytes of `500`, `10K`, `1.5G`, in powers of 1024."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{text!r} is no size; write it like 500, 10K or 1.5G.")
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2].upper() or " "))
