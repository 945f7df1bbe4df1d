"""What a PostgreSQL start says in the server's log about recovery."""

import re
from dataclasses import dataclass

_REDO_START = re.compile(r"redo starts at ([0-9A-F]+)/([0-9A-F]+)")
_REDO_DONE = re.compile(r"redo done at ([0-9A-F]+)/([0-9A-F]+)")
_READY = "database system is ready to accept connections"
_REPAIRS = ("invalid page in block", "zeroing out page", "WAL contains references to invalid pages")


@dataclass(frozen=True)
class Recovery:
    """`replayed_bytes` None: the start has not come to its end in this log."""

    replayed_bytes: int | None
    repaired: bool


def judge_log(log: str) -> Recovery:
    """Read the messages of one start, as xlogrecovery.c writes them (in English)."""
    started, done = _REDO_START.search(log), _REDO_DONE.search(log)
    replayed: int | None = None
    if started and done:
        # "redo done" names the start of the last record replayed.
        replayed = max(0, _bytes(done) - _bytes(started))
    elif not started and _READY in log:
        replayed = 0
    return Recovery(replayed_bytes=replayed, repaired=any(word in log for word in _REPAIRS))


def _bytes(match: "re.Match[str]") -> int:
    return (int(match.group(1), 16) << 32) + int(match.group(2), 16)
