"""Holds MariaDB and MySQL: FLUSH TABLES WITH READ LOCK, purge at its end, then a checkpoint.

The read lock keeps writes and commits out, but InnoDB's purge goes on and
writes log of its own; only when its history is empty does a checkpoint stay
the last word, and a server started on the snapshot has nothing to replay.
MySQL's released servers have no checkpoint on demand: theirs replay what their
own checkpoints have left, which is told.
"""

import os
import re
import shutil
import stat
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.application import ApplicationConfig, HeldApplication, Testimony
from atoll_agent.clock import Deadline, boottime
from atoll_agent.errors import ApplicationError
from atoll_agent.modules import mariadblog, mysqllog
from atoll_agent.modules.dirtypages import put_back, write_dirty_pages
from atoll_agent.modules.innodbstate import Flavour, read_flavour, read_state
from atoll_agent.secrets import password_of
from atoll_agent.serverlog import log_since_start
from atoll_agent.session import Session, StatementError, StillRunningError

KIND = "mariadb"
_SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock")
_MAX_WITNESS = 4096
_DENIED = re.compile(r"ERROR (1045|1698) ")
# Undo records still to purge beyond which that is not waited for under the lock.
_MAX_HISTORY = 20_000
# A checkpoint's own record: what a log holds that needs no replay (log0log.h, SIZE_OF_FILE_CHECKPOINT).
_CLEAN_LOG_BYTES = 16
_CHECKPOINT_TRIES = 5
_PURGE_SECONDS = 1.0


@dataclass(frozen=True)
class Server:
    """Where a server listens and whom to be there; None: whoever the agent runs as."""

    name: str
    socket: str
    user: str | None
    database: str | None
    witness: str | None


class MariaDb:
    """One server."""

    kind = KIND

    def __init__(self, server: Server, entry: ApplicationConfig | None) -> None:
        self._server = server
        self._entry = entry
        self._lock: Session | None = None
        self._control: Session | None = None
        self._lock_id = ""
        self._can_checkpoint = False
        self._flavour = Flavour(mariadb=True, version=(0, 0))

    @property
    def name(self) -> str:
        return self._server.name

    def remark(self, deadline: Deadline) -> str:
        try:
            with closing(self._session()) as session:
                can_checkpoint = _can_checkpoint(session, deadline)
        except ApplicationError as error:
            hint = "; name an owner and a password_file" if _DENIED.search(str(error)) else ""
            return f"cannot be held: {error}{hint}"
        rest = "a checkpoint" if can_checkpoint else "without a checkpoint: recovery replays log"
        return f"held by a global read lock and {rest}"

    def prepare(self, deadline: Deadline) -> None:
        """Write dirty pages while it serves, so that the checkpoint under the lock is short."""
        with closing(self._session()) as session:
            write_dirty_pages(session, self.name, deadline)

    def recover(self, deadline: Deadline) -> None:
        """Put back the settings an agent killed while flushing left changed."""
        with closing(self._session()) as session:
            put_back(session, self.name, deadline)

    def open(self, deadline: Deadline) -> list[int]:
        self.close()
        try:
            self._control = self._session()
            self._lock = self._session()
            # Idle for minutes before or under the hold, they must not be hung up on.
            self._control.send("SET wait_timeout = 3600")
            self._lock_id = self._lock.ask(
                "SET wait_timeout = 3600; SELECT CONNECTION_ID()", deadline
            )
            self._control.collect(deadline)
            self._can_checkpoint = _can_checkpoint(self._control, deadline)
            self._flavour = read_flavour(self._control, deadline)
        except ApplicationError:
            self.close()
            raise
        return [self._lock.pid, self._control.pid]

    def flush_again(self, deadline: Deadline) -> None:
        assert self._control is not None
        write_dirty_pages(self._control, self.name, deadline)

    def still_ready(self, deadline: Deadline) -> bool:
        if self._lock is None or self._control is None:
            return False
        try:
            self._control.send("SELECT 1")
            self._lock.ask("SELECT 1", deadline)
            self._control.collect(deadline)
        except ApplicationError:
            return False
        return True

    def hold(self, deadline: Deadline) -> HeldApplication:
        started = boottime()
        position, witness, remarks = "", None, []
        try:
            refusal = self._take_lock(deadline)
            if not refusal:
                position, remark = self._settle(deadline)
                witness, other = self._witness(deadline)
                remarks = [each for each in (remark, other) if each]
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
            detail=refusal or "; ".join(remarks),
        )

    def still_held(self, deadline: Deadline) -> str:
        """The lock lives as long as its connection, which batch clients never renew."""
        if self._lock is None:
            return ""
        try:
            connection = self._lock.ask("SELECT CONNECTION_ID()", deadline)
        except ApplicationError as error:
            return f"{KIND} {self.name} lost its read lock: {error}"
        return "" if connection == self._lock_id else f"{KIND} {self.name} lost its read lock"

    def close(self) -> None:
        for session in (self._lock, self._control):
            if session is not None:
                session.close()
        self._lock = self._control = None

    def testify(self, deadline: Deadline) -> Testimony:
        position, witness, answering, detail = "", None, False, ""
        log: str | None = None
        logs = mariadblog
        try:
            with closing(self._session()) as session:
                pid = _server_pid(session, deadline)
                flavour = read_flavour(session, deadline)
                logs = mariadblog if flavour.mariadb else mysqllog
                log = log_since_start(pid, logs.START_MARK) if pid else None
                position = read_state(session, flavour, deadline).position
                answering = True
                if self._server.witness:
                    session.ask("SET SESSION TRANSACTION READ ONLY", deadline)
                    witness = session.ask(self._server.witness, deadline)[:_MAX_WITNESS]
        except ApplicationError as error:
            detail = str(error)
        if log is None:
            detail = detail or "the server's log was not found"
        recovery = logs.judge_log(log) if log is not None else None
        return Testimony(
            kind=KIND,
            name=self.name,
            answering=answering,
            witness=witness,
            wal_replayed_bytes=recovery.replayed_bytes if recovery else None,
            repair_ran=recovery.repaired if recovery else None,
            position=position,
            detail=detail,
        )

    def _session(self) -> Session:
        server = self._server
        client = shutil.which("mariadb") or "mysql"
        password = _password_pipe(self._entry)
        # The first option, as both of its kind must be.
        file = "--no-defaults" if password is None else f"--defaults-file=/dev/fd/{password}"
        argv = [client, file, "--batch", "--raw", "--skip-column-names"]
        # Neither client reconnects in batch mode; newer ones of MySQL know no option to say so.
        argv += ["--unbuffered", "--force", f"--socket={server.socket}"]
        if server.user:
            argv.append(f"--user={server.user}")
        if server.database:
            argv.append(f"--database={server.database}")
        descriptors = [] if password is None else [password]
        try:
            return Session(
                argv, lambda marker: f"SELECT '{marker}';", {}, None, descriptors=descriptors
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take_lock(self, deadline: Deadline) -> str:
        """Take the global read lock; returns an empty string or why it could not be had."""
        assert self._lock is not None and self._control is not None
        mine = deadline.within(deadline.remaining * 0.6)
        # Whole seconds is all the server knows; the finer limit is ours, by killing the connection.
        seconds = max(1, int(mine.remaining) + 1)
        self._lock.send(f"SET lock_wait_timeout = {seconds}; FLUSH TABLES WITH READ LOCK")
        try:
            self._lock.collect(mine)
        except StillRunningError:
            # Closing the client would leave the statement waiting, and everybody behind it.
            self._control.ask(f"KILL {self._lock_id}", deadline.within(5))
            return "running statements did not end within the budget, so no read lock was had"
        return ""

    def _settle(self, deadline: Deadline) -> tuple[str, str]:
        """Bring the log to an end that needs no replay; returns where that is and what remains."""
        control = self._control
        assert control is not None
        if not self._can_checkpoint:
            state = read_state(control, self._flavour, deadline)
            return state.position, (
                "this server cannot checkpoint on demand; recovery will replay "
                f"{state.checkpoint_age} bytes"
            )
        self._drain_purge(control, deadline)
        for _ in range(_CHECKPOINT_TRIES):
            state = read_state(
                control,
                self._flavour,
                deadline,
                first="SET GLOBAL innodb_log_checkpoint_now = ON; ",
            )
            if state.checkpoint_age <= _CLEAN_LOG_BYTES:
                break
        if state.checkpoint_age > _CLEAN_LOG_BYTES or state.history:
            return state.position, (
                f"recovery may replay some log: {state.history} old row versions were left to purge"
            )
        return state.position, ""

    def _drain_purge(self, control: Session, deadline: Deadline) -> None:
        """Let purge come to its end, within limits.

        An open transaction that still reads old row versions keeps them for as long as it likes.
        """
        if 0 < read_state(control, self._flavour, deadline).history <= _MAX_HISTORY:
            limit = min(_PURGE_SECONDS, deadline.remaining / 3)
            # The time limit is no failure: what is left is counted afterwards.
            with suppress(StatementError):
                # Waits until nothing is left; the server does not keep the value.
                control.ask(
                    f"SET max_statement_time = {limit:.3f}; "
                    "SET GLOBAL innodb_max_purge_lag_wait = 0; SET max_statement_time = 0",
                    deadline,
                )

    def _witness(self, deadline: Deadline) -> tuple[str | None, str]:
        """The witness's answer and, without one, why: it must never cost the hold itself."""
        if not self._server.witness:
            return None, ""
        assert self._control is not None
        limit = max(0.001, deadline.remaining / 2)
        timed = f"SET max_statement_time = {limit:.3f}"
        if not self._flavour.mariadb:
            # A comment to servers older than 5.7.8, which cannot.
            timed = f"/*!50708 SET SESSION max_execution_time = {limit * 1000:.0f} */"
        question = f"{timed}; SET SESSION TRANSACTION READ ONLY;\n{self._server.witness}"
        try:
            return self._control.ask(question, deadline)[:_MAX_WITNESS], ""
        except StatementError as error:
            return None, f"the witness did not answer: {error}"


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[MariaDb]:
    """The servers whose socket exists, with the configuration's word on each.

    A discovered server is called `mariadb`.
    """
    entries = {entry.name: entry for entry in configured}
    servers: list[MariaDb] = []
    if look:
        for socket in _SOCKETS:
            if _is_socket(Path(socket)):
                entry = entries.pop("mariadb", None)
                servers.append(MariaDb(_server(socket, entry), entry))
                break
    for entry in entries.values():
        if named := entry.text("socket"):
            servers.append(MariaDb(_server(named, entry), entry))
    return servers


def _server(socket: str, entry: ApplicationConfig | None) -> Server:
    if entry is None:
        return Server("mariadb", socket, None, None, None)
    return Server(
        name=entry.name,
        socket=entry.text("socket") or socket,
        user=entry.text("owner"),
        database=entry.text("database"),
        witness=entry.text("witness"),
    )


def _password_pipe(entry: ApplicationConfig | None) -> int | None:
    """A pipe from which the client reads its password as an option file; None without one."""
    secret = password_of(entry)
    if secret is None:
        return None
    quoted = secret.reveal().replace("\\", "\\\\").replace('"', '\\"')
    reading, writing = os.pipe()
    try:
        # Far less than a pipe holds, so this does not wait for a reader.
        os.write(writing, f'[client]\npassword="{quoted}"\n'.encode())
    finally:
        os.close(writing)
    return reading


def _can_checkpoint(session: Session, deadline: Deadline) -> bool:
    """Released servers have the switch from 10.11 and 10.6's later updates on."""
    return bool(session.ask("SHOW GLOBAL VARIABLES LIKE 'innodb_log_checkpoint_now'", deadline))


def _server_pid(session: Session, deadline: Deadline) -> int | None:
    path = session.ask("SELECT @@global.pid_file", deadline)
    data = session.ask("SELECT @@global.datadir", deadline)
    try:
        return int((Path(data) / path).read_text())
    except (OSError, ValueError):
        return None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
