"""Holds a PostgreSQL cluster: SHARE locks on every user table, then a checkpoint.

A transaction that has written keeps a ROW EXCLUSIVE lock until it ends, so a
SHARE lock on every table is had exactly when no write is half-done, and new
writes wait at their first statement. Reads go on.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.application import HeldApplication, Testimony
from atoll_agent.clock import Deadline, boottime
from atoll_agent.config import ApplicationConfig
from atoll_agent.errors import ApplicationError
from atoll_agent.pglog import judge_log
from atoll_agent.serverlog import log_since_start
from atoll_agent.session import Session, StatementError, StillRunningError

KIND = "postgresql"
_CLUSTERS = "/var/lib/postgresql"
_MAX_DATABASES = 64
_MAX_WITNESS = 4096
# A lock wait must end well before anybody's deadlock_timeout, or the application could be
# chosen as the victim of a deadlock with us.
_SHARE_OF_DEADLOCK_TIMEOUT = 0.3
_REST_SECONDS = 0.1

_OPTIONS = (
    "-c client_min_messages=error -c statement_timeout=0 -c lock_timeout=0 "
    "-c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
)

_TABLES = """SELECT coalesce(string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', '), '')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"""

_POSITION = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    " ELSE pg_current_wal_flush_lsn() END"
)

_BLOCKERS = """SELECT coalesce(string_agg(CASE WHEN b.pid = 0 THEN 'a prepared transaction'
ELSE format('process %s (%s, in its transaction for %s s)', b.pid,
coalesce(nullif(a.application_name, ''), a.backend_type, 'unknown'),
coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start))::text, '?')) END, ', '), '')
FROM unnest(pg_blocking_pids({pid})) AS b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid"""

_CANCEL_AUTOVACUUM = """SELECT count(pg_cancel_backend(a.pid)) FROM pg_stat_activity a
WHERE a.backend_type = 'autovacuum worker' AND a.pid = ANY(pg_blocking_pids({pid}))"""


@dataclass(frozen=True)
class Cluster:
    """Where a running cluster listens and who owns it. `data_directory` None: not known."""

    name: str
    socket_directory: str
    port: int
    owner: str | None
    database: str
    witness: str | None
    data_directory: Path | None = None


@dataclass(frozen=True)
class _Lock:
    """One database's session; `began` is its transaction's start, which proves it is the same."""

    database: str
    session: Session
    backend: int


class PostgreSql:
    """One cluster."""

    kind = KIND

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._control: Session | None = None
        self._locks: list[_Lock] = []
        self._began: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self._cluster.name

    def recover(self, deadline: Deadline) -> None:
        """Nothing is ever changed in the server: locks end with their sessions."""

    def prepare(self, deadline: Deadline) -> None:
        """Checkpoint, so that the one under the hold finds little to write."""
        session = self._session("postgres")
        try:
            session.ask("CHECKPOINT", deadline)
        finally:
            session.close()

    def open(self, deadline: Deadline) -> list[int]:
        self.close()
        try:
            self._control = self._session("postgres")
            for name in _databases(self._control, deadline):
                session = self._session(name)
                self._locks.append(_Lock(name, session, 0))
            for index, lock in enumerate(self._locks):
                backend = int(lock.session.ask("SELECT pg_backend_pid()", deadline))
                self._locks[index] = _Lock(lock.database, lock.session, backend)
        except ApplicationError:
            self.close()
            raise
        return [self._control.pid, *(lock.session.pid for lock in self._locks)]

    def hold(self, deadline: Deadline) -> HeldApplication:
        started = boottime()
        try:
            refusal = self._lock_all(deadline.within(deadline.remaining * 0.6))
            position = self._flush(deadline)
        except ApplicationError as error:
            refusal, position = str(error), ""
        witness, remark = None, ""
        if not refusal:
            try:
                witness, remark = self._witness(deadline)
            except ApplicationError as error:
                refusal = str(error)
        if refusal:
            self.close()
        return HeldApplication(
            kind=KIND,
            name=self.name,
            held=not refusal,
            position=position,
            witness=witness,
            flush_seconds=boottime() - started,
            detail=refusal or remark,
        )

    def still_held(self, deadline: Deadline) -> str:
        """The locks live in one transaction for each database: is it still the same one?"""
        for lock in self._locks:
            try:
                began = lock.session.ask("SELECT now()", deadline)
            except ApplicationError as error:
                return f"{KIND} {self.name} lost its locks on {lock.database}: {error}"
            if began != self._began.get(lock.database):
                return f"{KIND} {self.name} lost its locks on {lock.database}"
        return ""

    def close(self) -> None:
        for lock in self._locks:
            lock.session.close()
        self._locks.clear()
        self._began.clear()
        if self._control is not None:
            self._control.close()
            self._control = None

    def testify(self, deadline: Deadline) -> Testimony:
        log = self._log()
        replay = judge_log(log) if log is not None else None
        position, witness, answering, detail = "", None, False, ""
        try:
            session = self._session(self._cluster.database)
            try:
                position = session.ask(_POSITION, deadline)
                answering = True
                if self._cluster.witness:
                    session.ask("SET default_transaction_read_only = on", deadline)
                    witness = session.ask(self._cluster.witness, deadline)[:_MAX_WITNESS]
            finally:
                session.close()
        except ApplicationError as error:
            detail = str(error)
        if log is None:
            detail = detail or "the server's log was not found"
        return Testimony(
            kind=KIND,
            name=self.name,
            answering=answering,
            witness=witness,
            wal_replayed_bytes=replay.replayed_bytes if replay else None,
            repair_ran=replay.repaired if replay else None,
            position=position,
            detail=detail,
        )

    def _session(self, database: str) -> Session:
        cluster = self._cluster
        return Session(
            ["psql", "-X", "-q", "-A", "-t", "-w"],
            lambda marker: f"\\echo {marker}",
            {
                "PGHOST": cluster.socket_directory,
                "PGPORT": str(cluster.port),
                "PGDATABASE": database,
                "PGAPPNAME": "atoll-agent",
                "PGCONNECT_TIMEOUT": "5",
                "PGOPTIONS": _OPTIONS,
                **({"PGUSER": cluster.owner} if cluster.owner else {}),
            },
            cluster.owner,
        )

    def _lock_all(self, deadline: Deadline) -> str:
        """Lock every table of every database; returns an empty string or why it could not be."""
        assert self._control is not None
        if self._control.ask("SELECT pg_is_in_recovery()", deadline) == "t":
            return "it is a replica in recovery, whose writes cannot be held; hold its primary"
        timeout = self._control.ask(
            "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'", deadline
        )
        wait = max(0.01, int(timeout) / 1000 * _SHARE_OF_DEADLOCK_TIMEOUT)
        while True:
            refusal = ""
            for lock in self._locks:
                refusal = self._lock_database(lock, wait, deadline)
                if refusal:
                    break
            if not refusal:
                return ""
            for lock in self._locks:
                lock.session.ask(
                    "ROLLBACK", deadline.within(5) if deadline.remaining else Deadline(1)
                )
            if deadline.remaining < wait + _REST_SECONDS:
                return f"writers did not pause within the budget: {refusal}"
            # Whoever queued behind our attempt gets to run before the next one.
            time.sleep(_REST_SECONDS)

    def _lock_database(self, lock: _Lock, wait: float, deadline: Deadline) -> str:
        session = lock.session
        # Outside the timed statement: reading the catalogue of a large schema is not waiting.
        tables = session.ask(_TABLES, deadline)
        self._began[lock.database] = session.ask("BEGIN; SELECT now()", deadline)
        if not tables:
            return ""
        milliseconds = max(1, int(wait * 1000))
        session.ask(f"SET LOCAL statement_timeout = {milliseconds}", deadline)
        session.send(f"LOCK TABLE {tables} IN SHARE MODE")
        blockers = ""
        try:
            try:
                session.collect(Deadline(wait / 3))
            except StillRunningError:
                blockers = self._clear_the_way(lock.backend, deadline)
                session.collect(Deadline(wait + 5))
        except StatementError as error:
            return f"database {lock.database}: {blockers or error}"
        session.ask("SET LOCAL statement_timeout = 0", deadline)
        return ""

    def _clear_the_way(self, backend: int, deadline: Deadline) -> str:
        """Send autovacuum workers away from before us; returns who else is there."""
        assert self._control is not None
        self._control.ask(_CANCEL_AUTOVACUUM.format(pid=backend), deadline)
        return self._control.ask(_BLOCKERS.format(pid=backend), deadline)

    def _flush(self, deadline: Deadline) -> str:
        """Checkpoint and read where it ended, whether or not writers pause."""
        assert self._control is not None
        self._control.ask("CHECKPOINT", deadline)
        return self._control.ask(_POSITION, deadline)

    def _witness(self, deadline: Deadline) -> tuple[str | None, str]:
        """The witness's answer and, without one, why: it must never cost the hold itself."""
        if not self._cluster.witness:
            return None, ""
        for lock in self._locks:
            if lock.database != self._cluster.database:
                continue
            milliseconds = max(1, int(deadline.remaining * 500))
            # An error outside a savepoint would end the transaction and with it the locks.
            lock.session.ask("SAVEPOINT witness", deadline)
            lock.session.ask("SET LOCAL transaction_read_only = on", deadline)
            lock.session.ask(f"SET LOCAL statement_timeout = {milliseconds}", deadline)
            answer, remark = None, ""
            try:
                answer = lock.session.ask(self._cluster.witness, deadline)[:_MAX_WITNESS]
            except StatementError as error:
                remark = f"the witness did not answer: {error}"
            lock.session.ask("ROLLBACK TO witness", deadline)
            return answer, remark
        return None, f"the witness's database {self._cluster.database} is not in the cluster"

    def _log(self) -> str | None:
        cluster = self._cluster
        if cluster.data_directory is None:
            return None
        pid = _postmaster_pid(cluster.data_directory)
        found = log_since_start(pid, "starting PostgreSQL") if pid else None
        if found is not None:
            return found
        return _collected_log(cluster.data_directory)


def _databases(session: Session, deadline: Deadline) -> list[str]:
    names = session.ask(
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname",
        deadline,
    ).splitlines()
    if len(names) > _MAX_DATABASES:
        raise ApplicationError(
            f"the cluster has {len(names)} databases and at most {_MAX_DATABASES} are held"
        )
    return names


def discover(configured: tuple[ApplicationConfig, ...], look: bool) -> list[PostgreSql]:
    """The clusters that run, with the configuration's word on each.

    Debian keeps clusters in `/var/lib/postgresql/<version>/<name>`, called
    `<version>-<name>` here; `postmaster.pid` tells socket and port.
    """
    entries = {entry.name: entry for entry in configured if entry.kind == KIND}
    clusters: list[Cluster] = []
    if look:
        for pidfile in sorted(Path(_CLUSTERS).glob("*/*/postmaster.pid")):
            found = read_cluster(pidfile.parent)
            if found is not None:
                clusters.append(_with_words(found, entries.pop(found.name, None)))
    for entry in entries.values():
        if entry.socket is None and entry.data_directory is None:
            # Only adds to a discovered cluster, and that one does not run.
            continue
        running = read_cluster(Path(entry.data_directory)) if entry.data_directory else None
        base = Cluster(
            name=entry.name,
            socket_directory=entry.socket or "/var/run/postgresql",
            port=entry.port,
            owner=entry.owner,
            database="postgres",
            witness=None,
            data_directory=None,
        )
        clusters.append(_with_words(running or base, entry))
    return [PostgreSql(cluster) for cluster in clusters]


def read_cluster(data_directory: Path) -> Cluster | None:
    """The running cluster of a data directory from its postmaster.pid; None when it is stale.

    Lines (pg_ctl's `pidfile.h`): pid, data directory, start time, port, socket
    directory, listen address, shared memory, state.
    """
    try:
        lines = (data_directory / "postmaster.pid").read_text().splitlines()
        owner = data_directory.owner()
    except (OSError, KeyError):
        return None
    if len(lines) < 5 or not Path(f"/proc/{lines[0].strip()}").exists():
        return None
    return Cluster(
        name=f"{data_directory.parent.name}-{data_directory.name}",
        socket_directory=lines[4].strip(),
        port=int(lines[3]),
        owner=owner,
        database="postgres",
        witness=None,
        data_directory=data_directory,
    )


def _with_words(cluster: Cluster, entry: ApplicationConfig | None) -> Cluster:
    if entry is None:
        return cluster
    return Cluster(
        name=entry.name,
        socket_directory=cluster.socket_directory,
        port=cluster.port,
        owner=entry.owner or cluster.owner,
        database=entry.database or cluster.database,
        witness=entry.witness,
        data_directory=cluster.data_directory,
    )


def _postmaster_pid(data_directory: Path) -> int | None:
    try:
        return int((data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _collected_log(data_directory: Path) -> str | None:
    """The logging collector's newest file, named in `current_logfiles`."""
    try:
        line = (data_directory / "current_logfiles").read_text().splitlines()[0]
        text = (data_directory / line.split(" ", 1)[1]).read_text(errors="replace")
    except (OSError, IndexError):
        return None
    mark = "starting PostgreSQL"
    return text[text.rindex(mark) :] if mark in text else None
