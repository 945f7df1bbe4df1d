"""What a MariaDB start says in the server's error log about recovery."""

import re
from dataclasses import dataclass

START_MARK = "Starting MariaDB"

_FROM = re.compile(r"Starting crash recovery from checkpoint LSN=(\d+)")
_TO = re.compile(r"End of log at LSN=(\d+)")
_REPAIRS = ("is marked as crashed", "Recovering table:", "Repairing table", "[ERROR] InnoDB")


@dataclass(frozen=True)
class Recovery:
    """`replayed_bytes` is InnoDB's; None: the start has not come to its end in this log."""

    replayed_bytes: int | None
    repaired: bool


def judge_log(log: str) -> Recovery:
    """Read the messages of one start, as InnoDB 10.8 and later write them (log0recv.cc).

    Every start names the end of the log; only one that replays names the
    checkpoint it started from.
    """
    begun, ended = _FROM.search(log), _TO.search(log)
    replayed: int | None = None
    if ended:
        replayed = int(ended.group(1)) - int(begun.group(1)) if begun else 0
    return Recovery(replayed_bytes=replayed, repaired=any(word in log for word in _REPAIRS))
