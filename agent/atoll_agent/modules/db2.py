"""Holds the active databases of a Db2 instance: SET WRITE SUSPEND, and RESUME afterwards.

IBM's procedure (Db2 Command Reference, "SET WRITE command"; "Backing up
databases using split mirror images"): suspend, split, resume. IBM asks that writes be resumed
on the connection that suspended them, on which nothing else is done meanwhile,
because new connections may hang until then; so each database has one
connection for that, opened before, and another for questions. A connection
that was lost is replaced, at the last by `RESTART DATABASE … WRITE RESUME`,
which needs none.

A restored database starts only after `db2inidb DB AS SNAPSHOT`, which recovers
it as after a power cut, or `RESTART DATABASE … WRITE RESUME`.

Not run against the product; docs/operations/applications.md.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
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
from atoll_agent.servers import server_processes
from atoll_agent.session import Session

KIND = "db2"
PROCESSES = ("db2sysc",)

_REFUSAL = re.compile(r"^(SQL|DB2|DBA)\d{4,5}[NCE]\b", re.MULTILINE)
_ACTIVE = re.compile(r"^\s*Database name\s*=\s*(\S+)\s*$", re.MULTILINE)
_STATE = "SELECT VALUE FROM SYSIBMADM.DBCFG WHERE NAME = 'suspend_io'"
_PARTITIONS = "SELECT COUNT(*) FROM SYSIBMADM.DBCFG WHERE NAME = 'suspend_io'"
_POSITION = (
    "SELECT 'lsn ' || VARCHAR(CURRENT_LSN) FROM TABLE(MON_GET_TRANSACTION_LOG(-2)) "
    "FETCH FIRST 1 ROW ONLY"
)
_SPLIT = "SQL20153N"
# The profile of the instance sets paths, libraries and the instance's name. The command line
# processor shares one connection among the children of one process, so each gets a shell.
_SHELL = '. "$HOME/sqllib/db2profile" >/dev/null; db2 +p -t -x'


@dataclass(frozen=True)
class Instance:
    """One instance, asked as the user who owns it, whose home has its `sqllib`.

    `databases` None: those that are active.
    """

    name: str
    owner: str | None
    home: str | None = None
    databases: str | None = None
    witness: str | None = None


class _Database:
    """An active database with the connection that suspends it and the one that is asked."""

    def __init__(self, name: str, control: Session, other: Session) -> None:
        self.name = name
        self.control = control
        self.other = other


class Db2(Product):
    """One instance."""

    kind = KIND
    how = "suspending the writes of its active databases"

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._databases: list[_Database] = []
        self._loose: list[Session] = []

    def connect(self, deadline: Deadline) -> None:
        for name in self._names(deadline):
            control, other = self._session(name, deadline), self._session(name, deadline)
            self._databases.append(_Database(name, control, other))
            if (partitions := other.ask(_PARTITIONS, deadline).strip()) != "1":
                raise RefusedError(
                    f"{name} has {partitions} partitions, which have to be suspended on each"
                )
        self.check(deadline)

    def flush(self, deadline: Deadline) -> None:
        """Write the buffer pools out, so that recovery has little to do."""
        if not self._databases:
            for name in self._names(deadline):
                self._session(name, deadline).ask("FLUSH BUFFERPOOLS ALL", deadline)
        for database in self._databases:
            database.other.ask("FLUSH BUFFERPOOLS ALL", deadline)

    def check(self, deadline: Deadline) -> None:
        if [database.name for database in self._databases] != self._names(deadline):
            raise ApplicationError("databases were activated or deactivated")
        for database in self._databases:
            # Also reads what the same questions need under the hold, when reading may hang.
            if (state := _state(database.other, deadline)) != "NO":
                raise RefusedError(f"the writes of {database.name} are suspended already ({state})")
            database.other.ask(_POSITION, deadline)
            database.control.ask("VALUES 1", deadline)

    def suspend(self, deadline: Deadline) -> Suspension:
        if not self._databases:
            return Suspension("", "no database is active, so none is written")
        for database in self._databases:
            if _state(database.other, deadline) != "NO":
                raise RefusedError(f"the writes of {database.name} are suspended already")
        for database in self._databases:
            database.control.ask("SET WRITE SUSPEND FOR DATABASE", deadline)
        positions = []
        for database in self._databases:
            if (state := _state(database.other, deadline)) != "YES":
                raise ApplicationError(f"the writes of {database.name} did not stop ({state})")
            position = database.other.ask(_POSITION, deadline).strip()
            positions.append(f"{database.name} {position}")
        return Suspension(
            ", ".join(positions), "restored databases start after db2inidb DB AS SNAPSHOT"
        )

    def ask_witness(self, deadline: Deadline) -> str | None:
        if self._instance.witness is None or not self._databases:
            return None
        witness = usable_witness(self._instance.witness)
        return self._databases[0].other.ask(witness, deadline).strip()

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        for database in self._databases:
            if (state := _state(database.other, deadline)) != "YES":
                return f"the writes of {database.name} were resumed by somebody else ({state})"
        return ""

    def resume(self, deadline: Deadline) -> None:
        names = [database.name for database in self._databases] or self._names(deadline)
        known = {database.name: database.control for database in self._databases}
        failures = []
        for name in names:
            try:
                self._resume(name, known.get(name), deadline)
            except ApplicationError as error:
                failures.append(f"{name}: {error}")
        if failures:
            raise ApplicationError("; ".join(failures))

    def look(self, deadline: Deadline) -> Findings:
        names = self._names(deadline) or self._named()
        positions, witness = [], None
        for name in names:
            try:
                session = self._session(name, deadline)
            except ApplicationError as error:
                if _SPLIT in str(error):
                    raise ApplicationError(
                        f"{name} is still suspended; db2inidb {name} AS SNAPSHOT"
                    ) from error
                raise
            positions.append(f"{name} {session.ask(_POSITION, deadline).strip()}")
            if self._instance.witness and witness is None:
                witness = session.ask(usable_witness(self._instance.witness), deadline).strip()
        return Findings(", ".join(positions), witness, remark="" if names else "no active database")

    def disconnect(self) -> None:
        for database in self._databases:
            self._loose += [database.control, database.other]
        self._databases.clear()
        while self._loose:
            self._loose.pop().close()

    def _resume(self, name: str, control: Session | None, deadline: Deadline) -> None:
        if control is not None:
            with suppress(ApplicationError):
                control.ask(
                    "SET WRITE RESUME FOR DATABASE", deadline.within(deadline.remaining / 3)
                )
                return
        try:
            session = self._session(name, deadline.within(deadline.remaining / 3))
        except ApplicationError:
            # A new connection hangs when it needs a page written; this one resumes first.
            session = self._shell()
            session.ask(f"RESTART DATABASE {name} WRITE RESUME", deadline)
        if _state(session, deadline) != "NO":
            session.ask("SET WRITE RESUME FOR DATABASE", deadline)
        if (state := _state(session, deadline)) != "NO":
            raise ApplicationError(f"its writes are still suspended ({state})")

    def _names(self, deadline: Deadline) -> list[str]:
        if self._databases:
            # Quicker than another client, of which the start of a hold would have to wait.
            text = self._databases[0].other.ask("LIST ACTIVE DATABASES", deadline)
        else:
            session = self._shell()
            try:
                text = session.ask("LIST ACTIVE DATABASES", deadline)
            finally:
                session.close()
                self._loose.remove(session)
        active, named = sorted(set(_ACTIVE.findall(text))), self._named()
        return [name for name in active if not named or name in named]

    def _named(self) -> list[str]:
        return sorted((self._instance.databases or "").upper().replace(",", " ").split())

    def _session(self, name: str, deadline: Deadline) -> Session:
        session = self._shell()
        session.ask(f"CONNECT TO {name}", deadline)
        return session

    def _shell(self) -> Session:
        session = Session(
            ["sh", "-c", _SHELL],
            lambda marker: f"ECHO {marker};",
            {"HOME": self._instance.home or home_of(self._instance.owner)},
            self._instance.owner,
            refusal=_REFUSAL,
        )
        self._loose.append(session)
        return session


def _state(session: Session, deadline: Deadline) -> str:
    """`NO`, `YES` or `IN_PROGRESS`."""
    return session.ask(_STATE, deadline).strip()


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(Db2(Instance(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The instances that run, called by their owner, and those that are named with an `owner`."""
    entries = {entry.name: entry for entry in configured}
    instances: list[Instance] = []
    for process in server_processes(PROCESSES):
        owner = process.owner
        if owner is not None and (look or owner in entries):
            instances.append(_instance(owner, owner, entries.pop(owner, None)))
    instances += [
        _instance(entry.name, entry.text("owner"), entry)
        for entry in entries.values()
        if entry.text("owner")
    ]
    return [
        SuspendedApplication(instance.name, Db2(instance), asdict(instance))
        for instance in instances
    ]


def _instance(name: str, owner: str | None, entry: ApplicationConfig | None) -> Instance:
    if entry is None:
        return Instance(name, owner)
    return Instance(
        name=name,
        owner=entry.text("owner") or owner,
        home=entry.text("home"),
        databases=entry.text("databases"),
        witness=entry.text("witness"),
    )
