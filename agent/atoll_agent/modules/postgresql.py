"""Holds a PostgreSQL cluster: SHARE locks on every user table, then a checkpoint.

A transaction that has written keeps a ROW EXCLUSIVE lock until it ends, so a
SHARE lock on every table is had exactly when no write is half-done, and new
writes wait at their first statement. Reads go on.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.application import ApplicationConfig, HeldApplication, Testimony
from atoll_agent.clock import Deadline, boottime
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.pglog import judge_log
from atoll_agent.serverlog import log_since_start
from atoll_agent.session import Session, StatementError, StillRunningError

KIND = "postgresql"
_REPLICA = "it is a replica in recovery, whose writes cannot be held; hold its primary"
_CLUSTERS = "/var/lib/postgresql"
_MAX_DATABASES = 64
_MAX_WITNESS = 4096
# A lock wait must end well before anybody's deadlock_timeout, or the application could be
# chosen as the victim of a deadlock with us.
_SHARE_OF_DEADLOCK_TIMEOUT = 0.3
_REST_SECONDS = 0.1
# For the answer to a lock attempt that the server ends at the last moment.
_LATE_SECONDS = 5.0

_OPTIONS = (
    "-c client_min_messages=error -c statement_timeout=0 -c lock_timeout=0 "
    "-c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
)

# Not from pg_settings, which evaluates every setting there is.
_FACTS = """SELECT pg_is_in_recovery(),
extract(epoch FROM current_setting('deadlock_timeout')::interval);
SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"""

_TABLES = """FROM (SELECT string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', ') AS names
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)') t"""

# Asked when a session is opened: a server process that has never read the catalogue takes long to
# read it first, and shall not do so while others wait.
_WARM = f"SELECT pg_backend_pid(), now(), length(t.names) {_TABLES}"

# One message to psql, which runs what the query returns (\gexec): the list of tables is as new as
# the lock and no answer is awaited between. Only the lock is timed: reading the catalogue of a
# large schema is not waiting. A witness read under the locks must see what came before them, which
# a repeatable-read default would hide.
_LOCK = f"""BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT now();
SELECT 'SET LOCAL statement_timeout = {{milliseconds}}', 'LOCK TABLE ' || t.names || ' IN SHARE MODE'
{_TABLES}
WHERE t.names IS NOT NULL \\gexec
SET LOCAL statement_timeout = 0"""

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
class _Facts:
    """What decides whether and how a cluster can be held, asked before any lock."""

    in_recovery: bool
    deadlock_timeout_seconds: float
    databases: tuple[str, ...]


@dataclass(frozen=True)
class _Lock:
    """The session that locks one database, and the server process behind it."""

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
        # Each transaction's start, which proves that it is still the same.
        self._began: dict[str, str] = {}
        self._facts: _Facts | None = None

    @property
    def name(self) -> str:
        return self._cluster.name

    def remark(self, deadline: Deadline) -> str:
        try:
            with closing(self._session("postgres")) as session:
                facts = _read_facts(session, deadline)
        except ApplicationError as error:
            return f"cannot be held: {error}"
        if facts.in_recovery:
            return f"cannot be held: {_REPLICA}"
        return f"held by table locks in {len(facts.databases)} databases and a checkpoint"

    def recover(self, deadline: Deadline) -> None:
        """Nothing is ever changed in the server: locks end with their sessions."""

    def prepare(self, deadline: Deadline) -> None:
        """Checkpoint, so that the one under the hold finds little to write."""
        with closing(self._session("postgres")) as session:
            session.ask("CHECKPOINT", deadline)

    def open(self, deadline: Deadline) -> list[int]:
        self.close()
        try:
            self._control = self._session("postgres")
            self._facts = _read_facts(self._control, deadline)
            for name in self._facts.databases:
                session = self._session(name)
                self._locks.append(_Lock(name, session, 0))
                session.send(_WARM)
            for index, lock in enumerate(self._locks):
                backend = int(lock.session.collect(deadline).partition("|")[0])
                self._locks[index] = _Lock(lock.database, lock.session, backend)
                # Nobody is in the way of an idle session; asked once, it is quick when somebody is.
                self._clear_the_way(backend, deadline)
        except ApplicationError:
            self.close()
            raise
        return [self._control.pid, *(lock.session.pid for lock in self._locks)]

    def flush_again(self, deadline: Deadline) -> None:
        assert self._control is not None
        self._control.ask("CHECKPOINT", deadline)

    def still_ready(self, deadline: Deadline) -> bool:
        if self._control is None or self._facts is None:
            return False
        try:
            for lock in self._locks:
                lock.session.send("SELECT 1")
            facts = _read_facts(self._control, deadline)
            for lock in self._locks:
                lock.session.collect(deadline)
        except ApplicationError:
            return False
        same = facts.databases == self._facts.databases
        self._facts = facts
        return same

    def hold(self, deadline: Deadline) -> HeldApplication:
        started = boottime()
        refusal, position, witness, remark = "", "", None, ""
        try:
            refusal = self._lock_all(deadline.within(deadline.remaining * 0.6))
            assert self._control is not None
            # Also when writers do not pause: then recovery has little to replay at least.
            self._control.send(f"CHECKPOINT; {_POSITION}")
            if not refusal:
                witness, remark = self._witness(deadline)
            position = self._control.collect(deadline)
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
            with closing(self._session(self._cluster.database)) as session:
                position = session.ask(_POSITION, deadline)
                answering = True
                if self._cluster.witness:
                    session.ask("SET default_transaction_read_only = on", deadline)
                    witness = session.ask(self._cluster.witness, deadline)[:_MAX_WITNESS]
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
        facts = self._facts
        assert facts is not None
        if facts.in_recovery:
            return _REPLICA
        wait = max(0.01, facts.deadlock_timeout_seconds * _SHARE_OF_DEADLOCK_TIMEOUT)
        while True:
            refusal = self._try_locks(wait, deadline)
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

    def _try_locks(self, wait: float, deadline: Deadline) -> str:
        """One attempt in all databases at once; returns an empty string or who is in the way."""
        order = _LOCK.format(milliseconds=max(1, int(wait * 1000)))
        for lock in self._locks:
            lock.session.send(order)
        soon = Deadline(wait / 3)
        return "; ".join(
            filter(None, [self._await_lock(lock, soon, deadline) for lock in self._locks])
        )

    def _await_lock(self, lock: _Lock, soon: Deadline, deadline: Deadline) -> str:
        blockers = ""
        try:
            try:
                began = lock.session.collect(soon)
            except StillRunningError:
                blockers = self._clear_the_way(lock.backend, deadline)
                # The server's own limit ends the wait for the lock; ours is for reading the list.
                began = lock.session.collect(Deadline(deadline.remaining + _LATE_SECONDS))
        except StatementError as error:
            return f"database {lock.database}: {blockers or error}"
        self._began[lock.database] = began
        return ""

    def _clear_the_way(self, backend: int, deadline: Deadline) -> str:
        """Send autovacuum workers away from before us; returns who else is there."""
        assert self._control is not None
        self._control.ask(_CANCEL_AUTOVACUUM.format(pid=backend), deadline)
        return self._control.ask(_BLOCKERS.format(pid=backend), deadline)

    def _witness(self, deadline: Deadline) -> tuple[str | None, str]:
        """The witness's answer and, without one, why: it must never cost the hold itself."""
        if not self._cluster.witness:
            return None, ""
        for lock in self._locks:
            if lock.database != self._cluster.database:
                continue
            milliseconds = max(1, int(deadline.remaining * 500))
            # An error outside a savepoint would end the transaction and with it the locks.
            question = (
                "SAVEPOINT witness; SET LOCAL transaction_read_only = on; "
                f"SET LOCAL statement_timeout = {milliseconds};\n"
                f"{self._cluster.witness}\n;\nROLLBACK TO witness"
            )
            try:
                return lock.session.ask(question, deadline)[:_MAX_WITNESS], ""
            except StatementError as error:
                return None, f"the witness did not answer: {error}"
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


def _read_facts(session: Session, deadline: Deadline) -> _Facts:
    first, *names = session.ask(_FACTS, deadline).splitlines()
    if len(names) > _MAX_DATABASES:
        raise ApplicationError(
            f"the cluster has {len(names)} databases and at most {_MAX_DATABASES} are held"
        )
    in_recovery, seconds = first.split("|")
    return _Facts(in_recovery == "t", float(seconds), tuple(names))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[PostgreSql]:
    """The clusters that run, with the configuration's word on each.

    Debian keeps clusters in `/var/lib/postgresql/<version>/<name>`, called
    `<version>-<name>` here; `postmaster.pid` tells socket and port.
    """
    entries = {entry.name: entry for entry in configured}
    clusters: list[Cluster] = []
    if look:
        for pidfile in sorted(Path(_CLUSTERS).glob("*/*/postmaster.pid")):
            found = read_cluster(pidfile.parent)
            if found is not None:
                clusters.append(_with_words(found, entries.pop(found.name, None)))
    for entry in entries.values():
        socket, data_directory = entry.text("socket"), entry.text("data_directory")
        if socket is None and data_directory is None:
            # Only adds to a discovered cluster, and that one does not run.
            continue
        running = read_cluster(Path(data_directory)) if data_directory else None
        base = Cluster(
            name=entry.name,
            socket_directory=socket or "/var/run/postgresql",
            port=entry.number("port", 5432),
            owner=entry.text("owner"),
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
        owner=entry.text("owner") or cluster.owner,
        database=entry.text("database") or cluster.database,
        witness=entry.text("witness"),
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
