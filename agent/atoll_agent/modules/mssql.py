"""Holds SQL Server 2022 or later: all user databases suspended for a snapshot backup.

Microsoft's procedure (Learn, "Create a Transact-SQL snapshot backup"):
`ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = ON`, the
snapshot, then either `BACKUP SERVER … WITH METADATA_ONLY`, which records the
snapshot as a backup and lets writers go on, or `= OFF`, which only lets them.
`MODE = COPY_ONLY` leaves the bitmap alone from which the site's own
differential backups are made.

A restored guest needs no metadata file: its server recovers the databases from
their files as after a power cut. The file is for restoring one database and
rolling it forward with log backups (`RESTORE … WITH METADATA_ONLY`), so it
belongs where those are and not in the snapshot, which it is written after:
with `metadata_directory` the agent writes it there once the file systems are
thawed, and only if the director says that there is a snapshot.

Not run against the product; docs/operations/applications.md.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline, boottime
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
from atoll_agent.secrets import PASSWORD_KEY, read_secret
from atoll_agent.servers import server_processes
from atoll_agent.session import Session

KIND = "mssql"
PROCESSES = ("sqlservr",)
FIRST_VERSION = 16
"""SQL Server 2022, the first that suspends for a snapshot without VSS."""

_CLIENTS = ("/opt/mssql-tools18/bin", "/opt/mssql-tools/bin")
_MAX_POSITION = 1000
# By how much the server's clock of a suspension may be behind ours.
_CLOCK_SECONDS = 1.0

_FORMAT = "SET NOCOUNT ON"
_VERSION = "SELECT CAST(SERVERPROPERTY('ProductMajorVersion') AS int)"
# Those that are written: a secondary of an availability group and a snapshot are not.
_DATABASES = """SELECT name FROM sys.databases WHERE database_id > 4 AND state = 0
AND source_database_id IS NULL AND DATABASEPROPERTYEX(name, 'Updateability') = 'READ_WRITE'
ORDER BY name"""
_SUSPENDED = """SELECT CAST(suspend_time_ms AS varchar(20)) + '|' +
CAST(is_write_io_frozen AS varchar(1)) + '|' + db_name
FROM sys.dm_server_suspend_status ORDER BY db_name"""
_POSITIONS = """SELECT d.name + ' ' + s.log_end_lsn FROM sys.databases d
CROSS APPLY sys.dm_db_log_stats(d.database_id) s WHERE d.database_id > 4 AND d.state = 0
ORDER BY d.name"""
_SUSPEND = "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = ON (MODE = COPY_ONLY)"
_RESUME = "ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = OFF"
_NOT_ONLINE = "SELECT name + ' is ' + LOWER(state_desc) FROM sys.databases WHERE state <> 0"
_SUSPECT_PAGES = "SELECT COUNT(*) FROM msdb.dbo.suspect_pages WHERE event_type IN (1, 2, 3)"


@dataclass(frozen=True)
class Server:
    """One server. Without `user` it is asked with the agent's own Kerberos ticket."""

    name: str
    address: str
    user: str | None = None
    password_file: str | None = None
    owner: str | None = None
    metadata_directory: str | None = None
    database: str | None = None
    witness: str | None = None


@dataclass(frozen=True)
class _Suspended:
    """A suspended database, since how long, and whether its writes have stopped."""

    name: str
    seconds: float
    frozen: bool


class SqlServer(TwoSessions):
    """One server."""

    kind = KIND
    how = "suspending all user databases for a snapshot backup"

    def __init__(self, server: Server) -> None:
        super().__init__(server.witness)
        self._server = server
        self._databases: tuple[str, ...] = ()
        self._since = 0.0
        self._resumed = False

    def connect(self, deadline: Deadline) -> None:
        super().connect(deadline)
        version = self.control.ask(_VERSION, deadline).strip()
        if not version.isdigit() or int(version) < FIRST_VERSION:
            raise RefusedError(
                f"its version is {version or 'unknown'}; suspending for a snapshot needs SQL "
                f"Server 2022 ({FIRST_VERSION})"
            )
        self._databases = _names(self.control, deadline)

    def flush(self, deadline: Deadline) -> None:
        """A checkpoint in each database, so that few pages are written while writers wait."""
        control = self.lone(deadline)
        for name in _names(control, deadline):
            control.ask(f"USE {_quoted(name)}; CHECKPOINT; USE master", deadline)

    def check(self, deadline: Deadline) -> None:
        self.other.ask("SELECT 1", deadline)
        self._databases = _names(self.control, deadline)

    def suspend(self, deadline: Deadline) -> Suspension:
        control = self.control
        if others := _suspended(control, deadline):
            raise RefusedError(
                f"{others[0].name} is suspended already: another snapshot backup is running"
            )
        if not self._databases:
            return Suspension("", "it has no user database that is written")
        control.ask(_SUSPEND, deadline)
        self._since = boottime()
        missing = set(self._databases) - {
            each.name for each in _suspended(control, deadline) if each.frozen
        }
        if missing:
            raise ApplicationError(f"the writes of {min(missing)} did not stop")
        position = ", ".join(control.ask(_POSITIONS, deadline).split("\n"))
        return Suspension(position.strip()[:_MAX_POSITION])

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        control = self.control
        if not self._databases:
            return ""
        held = boottime() - self._since
        # One that was let go and suspended again has not been so for as long.
        unbroken = {
            each.name
            for each in _suspended(control, deadline)
            if each.frozen and each.seconds >= held - _CLOCK_SECONDS
        }
        if missing := set(self._databases) - unbroken:
            return f"{min(missing)} was let go by somebody else"
        if taken and self._server.metadata_directory:
            self._record(self._server.metadata_directory, control, deadline)
        return ""

    def resume(self, deadline: Deadline) -> None:
        if self._resumed:
            return
        with closing(self._session(deadline)) as session:
            if _suspended(session, deadline):
                session.ask(_RESUME, deadline)
            if left := _suspended(session, deadline):
                raise ApplicationError(f"{left[0].name} is still suspended")
        self._resumed = True

    def look(self, deadline: Deadline) -> Findings:
        control = self.lone(deadline)
        if missing := control.ask(_NOT_ONLINE, deadline).strip():
            raise ApplicationError(f"the server answers, but {', '.join(missing.split(chr(10)))}")
        witness = self.witness_of(control, deadline)
        pages = control.ask(_SUSPECT_PAGES, deadline).strip()
        return Findings(
            position=", ".join(control.ask(_POSITIONS, deadline).split("\n"))[:_MAX_POSITION],
            witness=witness,
            remark="" if pages == "0" else f"msdb lists {pages} suspect pages",
        )

    def _record(self, directory: str, session: Session, deadline: Deadline) -> None:
        """Write the metadata file, which ends the suspension. The hold was good without it."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = f"{directory.rstrip('/')}/atoll-{moment}.bkm"
        try:
            session.ask(
                f"BACKUP SERVER TO DISK = N{_text(path)} WITH METADATA_ONLY, FORMAT", deadline
            )
        except ApplicationError as error:
            # Everything is thawed: a line in the journal is where its admin looks.
            sys.stderr.write(f"atoll-agent: {KIND} {self._server.name}: {path}: {error}\n")

    def _client(self) -> Session:
        server = self._server
        # -x: no variables; -X1: no commands that run programs; -r0: errors, and not what is only
        # said (a change of database is), to standard error.
        argv = [_sqlcmd(), "-S", server.address, "-x", "-X1", "-r0", "-h", "-1", "-W"]
        argv += ["-w", "65535", "-C"]
        environment = {}
        if server.user:
            argv += ["-U", server.user]
            if server.password_file:
                # Its documented way without a terminal, and nobody but root can read it.
                secret = read_secret(Path(server.password_file))
                environment["SQLCMDPASSWORD"] = secret.reveal()
        else:
            argv.append("-E")
        return Session(
            argv,
            lambda marker: f"GO\nSELECT '{marker}'\nGO",
            environment,
            server.owner,
            terminator="",
        )

    def _greeting(self) -> str:
        return _FORMAT

    def _answer(self, witness: str, session: Session, deadline: Deadline) -> str:
        query = usable_witness(witness)
        database = _quoted(self._server.database or "master")
        milliseconds = max(1, int(deadline.remaining * 800))
        session.ask(f"USE {database}; SET LOCK_TIMEOUT {milliseconds}", deadline)
        return session.ask(query, deadline).strip()


def _names(session: Session, deadline: Deadline) -> tuple[str, ...]:
    names = session.ask(_DATABASES, deadline).split("\n")
    return tuple(name.strip() for name in names if name.strip())


def _suspended(session: Session, deadline: Deadline) -> list[_Suspended]:
    found = []
    for line in session.ask(_SUSPENDED, deadline).splitlines():
        milliseconds, _, rest = line.strip().partition("|")
        frozen, _, name = rest.partition("|")
        if name:
            found.append(_Suspended(name, int(milliseconds) / 1000, frozen == "1"))
    return found


def _quoted(name: str) -> str:
    return "[" + name.replace("]", "]]") + "]"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _sqlcmd() -> str:
    found = [f"{folder}/sqlcmd" for folder in _CLIENTS if Path(folder, "sqlcmd").exists()]
    return found[0] if found else "sqlcmd"


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(SqlServer(Server(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The server that runs, called `mssql`, and those that are named with an `address`."""
    entries = {entry.name: entry for entry in configured}
    servers: list[Server] = []
    if look and server_processes(PROCESSES):
        servers.append(_server(KIND, entries.pop(KIND, None)))
    servers += [_server(entry.name, entry) for entry in entries.values() if entry.text("address")]
    return [
        SuspendedApplication(server.name, SqlServer(server), asdict(server)) for server in servers
    ]


def _server(name: str, entry: ApplicationConfig | None) -> Server:
    if entry is None:
        return Server(name, "tcp:127.0.0.1,1433")
    return Server(
        name=name,
        address=entry.text("address") or "tcp:127.0.0.1,1433",
        user=entry.text("user"),
        password_file=entry.text(PASSWORD_KEY),
        owner=entry.text("owner"),
        metadata_directory=entry.text("metadata_directory"),
        database=entry.text("database"),
        witness=entry.text("witness"),
    )
