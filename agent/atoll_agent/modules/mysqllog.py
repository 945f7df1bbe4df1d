"""What a MySQL start says in the server's error log about recovery (5.7 and 8.x, log0recv.cc)."""

import re

from atoll_agent.modules.mariadblog import Recovery

START_MARK = "starting as process"

_READY = "ready for connections"
_FROM = re.compile(r"past the checkpoint lsn (\d+)|whereas checkpoint_lsn = (\d+)")
_TO = re.compile(r"scanned up to log sequence number (\d+)")
_REPAIRS = ("is marked as crashed", "Recovering table:", "[ERROR] InnoDB", "[ERROR] [MY-01")


def judge_log(log: str) -> Recovery:
    """Read the messages of one start; a start that replays nothing names no log positions."""
    begun, ended = _FROM.search(log), _TO.findall(log)
    replayed: int | None = None
    if begun and ended:
        replayed = max(0, int(ended[-1]) - int(begun[1] or begun[2]))
    elif _READY in log:
        replayed = 0
    return Recovery(replayed_bytes=replayed, repaired=any(word in log for word in _REPAIRS))
