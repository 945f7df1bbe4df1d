"""Lets InnoDB write its dirty pages while it serves, and puts its settings back whatever happens.

`innodb_log_checkpoint_now` would do it on an idle server. Under writes it
chases a log that keeps growing, and neither a kill nor a time limit ends it
(MariaDB 10.11, checkpoint_now_set), so it is for a server under its read lock.
"""

import json
import os
import time
from pathlib import Path

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.session import Session

MEMORY = Path("/run/atoll-agent")
"""Gone after a reboot, as are settings that were SET and not configured."""

_SETTINGS = ("innodb_max_dirty_pages_pct", "innodb_max_dirty_pages_pct_lwm")
_FEW_PAGES = 200
_LIMIT_SECONDS = 30.0
_NO_LONGER_FALLING_SECONDS = 3.0
# Which tables hold the status differs between the servers, this statement does not.
_DIRTY = "SHOW GLOBAL STATUS LIKE 'innodb_buffer_pool_pages_dirty'"


def write_dirty_pages(
    session: Session, name: str, deadline: Deadline, memory: Path = MEMORY
) -> int:
    """Have the server write until few pages are dirty or no fewer become so; returns how many are.

    Raises ApplicationError; the settings are as before then too.
    """
    put_back(session, name, deadline, memory)
    _remember(session, name, deadline, memory)
    try:
        for setting in reversed(_SETTINGS):
            session.ask(f"SET GLOBAL {setting} = 0", deadline)
        return _await_few(session, deadline.within(_LIMIT_SECONDS))
    finally:
        put_back(session, name, deadline, memory)


def put_back(session: Session, name: str, deadline: Deadline, memory: Path = MEMORY) -> bool:
    """Restore what was remembered, if anything: an agent killed while flushing leaves it so."""
    path = _path(memory, name)
    try:
        remembered = json.loads(path.read_text())
    except FileNotFoundError:
        return False
    # The low-water mark must not exceed the maximum, so the maximum goes first.
    for setting in _SETTINGS:
        session.ask(f"SET GLOBAL {setting} = {float(remembered[setting])}", deadline)
    path.unlink()
    return True


def _remember(session: Session, name: str, deadline: Deadline, memory: Path) -> None:
    values = {
        setting: float(session.ask(f"SELECT @@global.{setting}", deadline)) for setting in _SETTINGS
    }
    memory.mkdir(mode=0o700, exist_ok=True)
    path = _path(memory, name)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(values))
    beside.rename(path)


def _await_few(session: Session, deadline: Deadline) -> int:
    lowest, since = None, time.monotonic()
    while True:
        answer = session.ask(_DIRTY, deadline).rpartition("\t")[2]
        if not answer.isdigit():
            raise ApplicationError("the server does not tell how many of its pages are dirty")
        dirty = int(answer)
        if lowest is None or dirty < lowest:
            lowest, since = dirty, time.monotonic()
        stuck = time.monotonic() - since > _NO_LONGER_FALLING_SECONDS
        if dirty <= _FEW_PAGES or stuck or deadline.remaining < 1:
            return dirty
        time.sleep(0.1)


def _path(memory: Path, name: str) -> Path:
    return memory / f"{name.replace(os.sep, '_')}.json"
