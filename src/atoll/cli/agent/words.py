"""Times to come as people say them."""

import time

_DAY = 86400.0


def until(at: float | None) -> str:
    """`83 days left`, `5 hours left`, `expired 2 days ago`; `unknown` for None."""
    if at is None:
        return "unknown"
    left = at - time.time()
    return f"{_count(left)} left" if left > 0 else f"expired {_count(-left)} ago"


def _count(seconds: float) -> str:
    number, unit = (int(seconds // _DAY), "day")
    if number < 2:
        number, unit = (int(seconds // 3600), "hour")
    return f"{number} {unit}{'' if number == 1 else 's'}"
