"""Holds an SAP MaxDB database: its log writer suspended, and resumed.

SAP's procedure (SAP Note 616814, "Suspend log writer for split mirror or
snapshot", with Note 371247): in a session of the Database Manager
`util_connect`, `util_execute SUSPEND LOGWRITER`, the snapshot, `util_execute
RESUME LOGWRITER`, `util_release`. While it is suspended no commit returns and
no savepoint begins, so what is on the disks is the last savepoint and the log
up to the suspension. A restored database restarts from these by itself.

Not run against the product; docs/operations/applications.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.command import run_command
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.suspending import (
    Findings,
    Product,
    ProductHolder,
    RefusedError,
    SuspendedApplication,
    Suspension,
    usable_witness,
)
from atoll_agent.owners import home_of
from atoll_agent.servers import Process, server_processes
from atoll_agent.session import StatementError

KIND = "maxdb"
PROCESSES = ("*/pgm/kernel",)

_REFUSAL = re.compile(r"^ERR\b", re.MULTILINE)
# Of `info log`: what grows as soon as the log writer writes.
_FIELDS = re.compile(r"^\s*(Used Size \(KB\)|Savepoints|Physical Writes)\s*=\s*(\d+)", re.MULTILINE)
_USED = "Used Size (KB)"
_STATE = re.compile(r"^\s*(ONLINE|ADMIN|OFFLINE|STANDBY|COLD|WARM)\b", re.MULTILINE)


@dataclass(frozen=True)
class Database:
    """One database. `key` is of the owner's XUSER store and names a Database Manager operator."""

    name: str
    owner: str | None
    program: str = "dbmcli"
    key: str = "c"
    witness: str | None = None


class MaxDb(Product):
    """One database."""

    kind = KIND
    how = "suspending its log writer"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._log: dict[str, str] = {}
        self._resumed = False

    def connect(self, deadline: Deadline) -> None:
        self.check(deadline)

    def flush(self, deadline: Deadline) -> None:
        """The last savepoint is what it recovers from, and it makes those by itself."""

    def check(self, deadline: Deadline) -> None:
        found = _STATE.search(self._run(["db_state"], deadline))
        if found is None or found[1] != "ONLINE":
            raise RefusedError(f"it is {found[1] if found else 'in no state it tells'}")

    def suspend(self, deadline: Deadline) -> Suspension:
        try:
            self._utility("SUSPEND LOGWRITER", deadline)
        except StatementError as error:
            raise RefusedError(str(error)) from error
        self._log = self._log_state(deadline)
        return Suspension(f"log {self._log[_USED]} KB")

    def ask_witness(self, deadline: Deadline) -> str | None:
        return self._witness(deadline) if self._database.witness else None

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        # Whether it is suspended cannot be asked; that it wrote nothing can.
        if self._log_state(deadline) != self._log:
            return "its log moved on, so the log writer was resumed by somebody else"
        return ""

    def resume(self, deadline: Deadline) -> None:
        if not self._resumed:
            self._utility("RESUME LOGWRITER", deadline)
            self._resumed = True

    def look(self, deadline: Deadline) -> Findings:
        self.check(deadline)
        witness = self._witness(deadline) if self._database.witness else None
        return Findings(f"log {self._log_state(deadline)[_USED]} KB", witness)

    def disconnect(self) -> None:
        """Nothing is open: each question is a run of dbmcli."""

    def _log_state(self, deadline: Deadline) -> dict[str, str]:
        found = dict(_FIELDS.findall(self._run(["info log"], deadline)))
        if _USED not in found:
            raise ApplicationError("info log does not tell how much of the log is used")
        return found

    def _witness(self, deadline: Deadline) -> str:
        assert self._database.witness is not None
        question = f"sql_execute {usable_witness(self._database.witness)}"
        answer = self._run(["sql_connect", question, "sql_release"], deadline)
        # "OK" and "END" frame it.
        lines = [line.strip() for line in answer.splitlines()]
        return "\n".join(line for line in lines if line and line not in {"OK", "END"})

    def _utility(self, command: str, deadline: Deadline) -> None:
        """A command of the kernel's, in a utility session of its own."""
        self._run(["util_connect", f"util_execute {command}", "util_release"], deadline)

    def _run(self, commands: Sequence[str], deadline: Deadline) -> str:
        """The Database Manager's answers to the commands; StatementError when it refuses one."""
        database = self._database
        outcome = run_command(
            [database.program, "-d", database.name, "-U", database.key],
            deadline,
            owner=database.owner,
            environment={"HOME": home_of(database.owner)},
            text="".join(f"{command}\n" for command in [*commands, "exit"]),
        )
        if refused := _REFUSAL.search(outcome.output):
            raise StatementError(" ".join(outcome.output[refused.start() :].split())[:500])
        if outcome.status:
            raise ApplicationError(outcome.output[:500] or f"dbmcli ended with {outcome.status}")
        return outcome.output


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(MaxDb(Database(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The databases whose kernel runs (`…/pgm/kernel NAME`), and those named with an `owner`."""
    entries = {entry.name: entry for entry in configured}
    databases: list[Database] = []
    for process in server_processes(PROCESSES):
        name = (process.arguments()[1:2] or [""])[0]
        if name and (look or name in entries):
            databases.append(_database(name, process, entries.pop(name, None)))
    databases += [
        _database(entry.name, None, entry) for entry in entries.values() if entry.text("owner")
    ]
    return [
        SuspendedApplication(database.name, MaxDb(database), asdict(database))
        for database in databases
    ]


def _database(name: str, process: Process | None, entry: ApplicationConfig | None) -> Database:
    def text(key: str) -> str | None:
        return entry.text(key) if entry is not None else None

    program = text("program") or "dbmcli"
    if process is not None and text("program") is None:
        beside = Path(process.title).parent.parent / "bin" / "dbmcli"
        program = str(beside) if beside.exists() else program
    return Database(
        name=name,
        owner=text("owner") or (process.owner if process else None),
        program=program,
        key=text("key") or "c",
        witness=text("witness"),
    )
