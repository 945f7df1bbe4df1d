"""Holds an SAP ASE server: its user databases quiesced under tags of ours, and released.

SAP's procedure (ASE Reference Manual: Commands, "quiesce database"; System
Administration Guide, "Suspending and Resuming Updates to Databases"):
`quiesce database TAG hold DB, … for external dump`, the copy, `quiesce
database TAG release`. Updates wait, readers go on; hold and release need not
come from the same session. Prepared distributed transactions make the hold fail.

A release by our tag succeeds only while the hold under that tag stands, which
is how the agent knows that nobody released it in between.

Not run against the product; docs/operations/applications.md.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.suspending import (
    Findings,
    ProductHolder,
    RefusedError,
    SuspendedApplication,
    Suspension,
    usable_witness,
)
from atoll_agent.modules.twosessions import TwoSessions
from atoll_agent.owners import owner_of
from atoll_agent.secrets import PASSWORD_KEY, read_secret
from atoll_agent.servers import Process, server_processes
from atoll_agent.session import Session, StatementError

KIND = "ase"
PROCESSES = ("dataserver",)

MAX_DATABASES = 8
"""How many one tag holds here; more take more tags."""

_REFUSAL = re.compile(
    r"^(Msg \d+, Level (1[1-9]|2\d)|CT-LIBRARY error|CS-LIBRARY error|Login failed)", re.MULTILINE
)
_ENVIRONMENT = ("SYBASE", "SYBASE_OCS", "SYBASE_ASE", "LANG")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,29}\Z")
# User databases that are written: not offline (status2 16), read-only (status 1024), a user's
# temporary one (status3 256), nor those that the server brings.
_DATABASES = """select name from master..sysdatabases where dbid > 3 and status & 1024 = 0
and status2 & 16 = 0 and status3 & 256 = 0
and name not in ('sybsystemdb', 'sybsystemprocs', 'sybsecurity', 'sybmgmtdb') order by name"""
_NOT_ONLINE = "select name from master..sysdatabases where status2 & 16 <> 0 or status & 320 <> 0"
_TAG = "atoll_hold"


@dataclass(frozen=True)
class Server:
    """One server of an interfaces file, asked as `user`, who needs `sa_role`."""

    name: str
    server: str
    owner: str | None
    environment: Mapping[str, str]
    user: str = "sa"
    password_file: str | None = None
    database: str | None = None
    witness: str | None = None


class Ase(TwoSessions):
    """One server."""

    kind = KIND
    how = "quiescing its user databases"

    def __init__(self, server: Server) -> None:
        super().__init__(server.witness)
        self._server = server
        self._databases: list[str] = []
        self._tags: list[str] = []
        self._released = False

    def connect(self, deadline: Deadline) -> None:
        super().connect(deadline)
        self.check(deadline)

    def flush(self, deadline: Deadline) -> None:
        self.lone(deadline).ask("checkpoint all", deadline)

    def check(self, deadline: Deadline) -> None:
        self.control.ask("select 1", deadline)
        self._databases = _lines(self.other.ask(_DATABASES, deadline))
        if odd := [name for name in self._databases if not _NAME.match(name)]:
            raise RefusedError(f"the name of {odd[0]} cannot be part of a quiesce command")

    def suspend(self, deadline: Deadline) -> Suspension:
        if not self._databases:
            return Suspension("", "it has no user database that is written")
        for first in range(0, len(self._databases), MAX_DATABASES):
            tag = f"{_TAG}_{len(self._tags)}"
            names = ", ".join(self._databases[first : first + MAX_DATABASES])
            self._tags.append(tag)
            try:
                self.control.ask(f"quiesce database {tag} hold {names} for external dump", deadline)
            except StatementError as error:
                self._tags.pop()
                if not self._tags:
                    raise RefusedError(str(error)) from error
                raise
        return Suspension(f"{len(self._databases)} databases under {', '.join(self._tags)}")

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        broken = []
        while self._tags:
            tag = self._tags[-1]
            try:
                self.control.ask(f"quiesce database {tag} release", deadline)
            except StatementError as error:
                broken.append(f"{tag} was released by somebody else ({error})")
            self._tags.pop()
        self._released = True
        return "; ".join(broken)

    def resume(self, deadline: Deadline) -> None:
        """Release by the tags that were used, or without that knowledge by all that may have been."""
        if self._released:
            return
        with closing(self._session(deadline)) as session:
            if self._tags:
                for tag in reversed(self._tags):
                    _release(session, tag, deadline)
            else:
                number = 0
                while _release(session, f"{_TAG}_{number}", deadline):
                    number += 1
        self._released = True

    def look(self, deadline: Deadline) -> Findings:
        control = self.lone(deadline)
        if missing := _lines(control.ask(_NOT_ONLINE, deadline)):
            raise ApplicationError(f"the server answers, but {', '.join(missing)} is not online")
        return Findings(position="", witness=self.witness_of(control, deadline))

    def _answer(self, witness: str, session: Session, deadline: Deadline) -> str:
        query = usable_witness(witness)
        session.ask(f"use {self._server.database or 'master'}", deadline)
        seconds = max(1, int(deadline.remaining))
        session.ask(f"set lock wait {seconds}", deadline)
        return "\n".join(_lines(session.ask(query, deadline)))

    def _client(self) -> Session:
        server = self._server
        environment = dict(server.environment)
        home, client = environment.get("SYBASE", ""), environment.get("SYBASE_OCS", "OCS-16_0")
        # -b: no headings.
        argv = [f"{home}/{client}/bin/isql" if home else "isql", "-S", server.server]
        argv += ["-U", server.user, "-b", "-w", "9999"]
        return Session(
            argv,
            lambda marker: f"go\nprint '{marker}'\ngo",
            environment,
            server.owner,
            terminator="",
            refusal=_REFUSAL,
        )

    def _greeting(self) -> str:
        # Without -P isql takes the first line of its input for the password.
        file = self._server.password_file
        secret = read_secret(Path(file)).reveal() if file else ""
        return f"{secret}\nset nocount on"


def _release(session: Session, tag: str, deadline: Deadline) -> bool:
    """Release a tag; False when the server does not know it, so that it holds nothing."""
    try:
        session.ask(f"quiesce database {tag} release", deadline)
    except StatementError:
        return False
    return True


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(Ase(Server(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The servers that run (`dataserver -sNAME`), and those that are named with a `server`."""
    entries = {entry.name: entry for entry in configured}
    servers: list[Server] = []
    for process in server_processes(PROCESSES):
        name = server_name(process)
        if name and (look or name in entries):
            servers.append(_server(name, process, entries.pop(name, None)))
    servers += [
        _server(entry.name, None, entry) for entry in entries.values() if entry.text("server")
    ]
    return [SuspendedApplication(server.name, Ase(server), asdict(server)) for server in servers]


def server_name(process: Process) -> str:
    """The name a data server was started with; empty when it was not given."""
    for argument in process.arguments():
        if argument.startswith("-s") and len(argument) > 2:
            return argument[2:]
        if argument.startswith("--server-name="):
            return argument.partition("=")[2]
    return ""


def _server(name: str, process: Process | None, entry: ApplicationConfig | None) -> Server:
    def text(key: str) -> str | None:
        return entry.text(key) if entry is not None else None

    started = process.environment() if process is not None else {}
    environment = {key: started[key] for key in _ENVIRONMENT if started.get(key)}
    if home := text("home"):
        environment["SYBASE"] = home
    return Server(
        name=name,
        server=text("server") or name,
        owner=text("owner") or (owner_of(process.pid) if process else None) or "sybase",
        environment=environment,
        user=text("user") or "sa",
        password_file=text(PASSWORD_KEY),
        database=text("database"),
        witness=text("witness"),
    )
