"""Where an InnoDB server stands: its position, the log a restart would replay, and what is to purge.

MariaDB tells it in status variables, MySQL in the text of SHOW ENGINE INNODB STATUS
(MySQL 5.7 and 8.4 reference manuals, "InnoDB Standard Monitor").
"""

import re
from dataclasses import dataclass

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.session import Session

_MARIADB = (
    "SELECT @@global.gtid_binlog_pos; "
    "SELECT variable_name, variable_value FROM information_schema.global_status WHERE variable_name "
    "IN ('innodb_lsn_current', 'innodb_checkpoint_age', 'innodb_history_list_length')"
)
_MYSQL = (
    "SELECT REPLACE(@@global.gtid_executed, '\\n', ''); {log}; "
    "SELECT 'atoll: InnoDB'; SHOW ENGINE INNODB STATUS"
)
_MARK = "atoll: InnoDB"
# MySQL 8.2 renamed it and 8.4 took the old name away.
_RENAMED = (8, 2)
_LSN = re.compile(r"^Log sequence number\s+(\d+)", re.MULTILINE)
_CHECKPOINT = re.compile(r"^Last checkpoint at\s+(\d+)", re.MULTILINE)
_HISTORY = re.compile(r"^History list length\s+(\d+)", re.MULTILINE)
_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Flavour:
    """Whose server it is, and its version as (major, minor)."""

    mariadb: bool
    version: tuple[int, int]


@dataclass(frozen=True)
class State:
    """`position` is where the binary log stands if one is written, else InnoDB's sequence number.

    `checkpoint_age` is the log to replay in bytes, `history` the row versions to purge.
    """

    position: str
    checkpoint_age: int
    history: int


def read_flavour(session: Session, deadline: Deadline) -> Flavour:
    """Ask for it. Raises ApplicationError."""
    text = session.ask("SELECT @@version", deadline)
    found = _VERSION.match(text)
    if found is None:
        raise ApplicationError(f"the server has a version that is not known: {text!r}")
    return Flavour("mariadb" in text.lower(), (int(found[1]), int(found[2])))


def read_state(session: Session, flavour: Flavour, deadline: Deadline, first: str = "") -> State:
    """Everything at once, because each question costs a round trip under the lock.

    `first` are statements to run before, which answer nothing. Raises ApplicationError.
    """
    try:
        if flavour.mariadb:
            return _of_mariadb(session.ask(first + _MARIADB, deadline))
        log = "SHOW BINARY LOG STATUS" if flavour.version >= _RENAMED else "SHOW MASTER STATUS"
        return _of_mysql(session.ask(first + _MYSQL.format(log=log), deadline))
    except (KeyError, ValueError) as error:
        raise ApplicationError(f"the server does not tell its InnoDB status ({error})") from error


def _of_mariadb(answer: str) -> State:
    gtid, *lines = answer.split("\n")
    found = dict(line.lower().split("\t") for line in lines)
    lsn = found["innodb_lsn_current"]
    return State(
        position=f"gtid {gtid}" if gtid else f"lsn {lsn}",
        checkpoint_age=int(found["innodb_checkpoint_age"]),
        history=int(found["innodb_history_list_length"]),
    )


def _of_mysql(answer: str) -> State:
    head, _, status = answer.partition(_MARK)
    gtid, *logs = head.split("\n")
    lsn, checkpoint = _number(_LSN, status), _number(_CHECKPOINT, status)
    position = f"lsn {lsn}"
    if gtid:
        position = f"gtid {gtid}"
    elif logs and logs[0]:
        file, offset = logs[0].split("\t")[:2]
        position = f"binlog {file}:{offset}"
    return State(position, max(0, lsn - checkpoint), _number(_HISTORY, status))


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    if found is None:
        raise ValueError(f"no line like {pattern.pattern}")
    return int(found[1])
