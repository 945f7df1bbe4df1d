"""Holds Redis, Valkey and KeyDB: writes paused, memory on disk, then the file systems.

What a restored server knows is what its files say. With an append-only file
that is everything acknowledged, once its buffer is written; with snapshot files
alone it is the last save, so one is made while writes are paused. The pause and
its end: `redisholder`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig, Testimony
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.redisholder import RedisHolder, check_version, run_witness
from atoll_agent.modules.redisstate import State, read_state, saves_by_itself
from atoll_agent.modules.resp import Connection, RefusedError
from atoll_agent.modules.serversocket import Endpoint
from atoll_agent.modules.tls import Tls
from atoll_agent.outliving import OutlivingApplication
from atoll_agent.secrets import password_of
from atoll_agent.serverlog import log_since_start

KIND = "redis"
_PROCESSES = {"redis-server", "valkey-server", "keydb-server"}
# The servers set their title to where they listen: `redis-server 127.0.0.1:6379 [cluster]`.
_TITLE = re.compile(
    r"(?P<program>\S+) (?:unixsocket:(?P<socket>/\S+)|(?P<host>\S*):(?P<port>\d+))(?: |\Z)"
)
_EVERYWHERE = {"", "*", "0.0.0.0", "-::*", "::"}  # noqa: S104 - compared, not listened on
_DEFAULT_PORT = 6379
_START_MARK = "is starting"
_REPAIRS = ("runcating the AOF", "AOF was truncated", "aof-load-truncated is enabled")
_MAX_LOG_BYTES = 1 << 20
_MAX_SAVE_SECONDS = 300.0


class Redis(OutlivingApplication):
    """One server."""

    def __init__(
        self, name: str, endpoint: Endpoint, entry: ApplicationConfig | None, pid: int = 0
    ) -> None:
        super().__init__(KIND, name)
        self._entry = entry
        self._bare = endpoint
        self._pid = pid
        self._witness = entry.text("witness") if entry else None

    def remark(self, deadline: Deadline) -> str:
        try:
            with closing(self._connect(deadline)) as connection:
                state = read_state(connection, deadline)
                check_version(state)
                saves = saves_by_itself(connection, deadline)
        except ApplicationError as error:
            return f"cannot be held: {error}"
        if state.appending:
            return "held by a pause of writes; its append-only file has everything"
        if not saves:
            return "held by a pause of writes; it keeps nothing on disk, so a restore has no data"
        return "held by a pause of writes while it saves its memory: no append-only file"

    def prepare(self, deadline: Deadline) -> None:
        """Save a server without append-only file, so that it is known how long that takes."""
        with closing(self._connect(deadline)) as connection:
            state = read_state(connection, deadline)
            if not state.appending and state.changes and saves_by_itself(connection, deadline):
                _save(connection, state, deadline.within(_MAX_SAVE_SECONDS))

    def flush_again(self, deadline: Deadline) -> None:
        """Nothing: saving once more would take as long again, and an append-only file needs none."""

    def testify(self, deadline: Deadline) -> Testimony:
        position, witness, answering, detail = "", None, False, ""
        log: str | None = None
        replayed: int | None = None
        try:
            with closing(self._connect(deadline)) as connection:
                log = self._log(connection, deadline)
                state = _await_loaded(connection, deadline)
                position, answering = state.position, True
                # An append-only file is read whole at every start, which tells nothing.
                replayed = None if state.appending else 0
                if self._witness:
                    witness = run_witness(connection, self._witness, deadline)
        except ApplicationError as error:
            detail = str(error)
        if log is None:
            detail = detail or "the server's log was not found"
        return Testimony(
            kind=KIND,
            name=self.name,
            answering=answering,
            witness=witness,
            wal_replayed_bytes=replayed,
            repair_ran=None if log is None else any(word in log for word in _REPAIRS),
            position=position,
            detail=detail,
        )

    def _endpoint(self) -> Endpoint:
        """With its password, which is read anew each time: it may have been changed."""
        secret = password_of(self._entry)
        return replace(self._bare, password=secret.reveal() if secret else None)

    def _connect(self, deadline: Deadline) -> Connection:
        return Connection(self._endpoint(), deadline)

    def _arguments(self) -> Mapping[str, Any]:
        return self._endpoint().as_arguments()

    def _order(self) -> Mapping[str, Any]:
        return {"witness": self._witness}

    def _log(self, connection: Connection, deadline: Deadline) -> str | None:
        """Since the last start, from the server's own file or wherever its output leads."""
        path = ""
        with suppress(RefusedError):
            answer = connection.ask(deadline, "CONFIG", "GET", "logfile")
            if isinstance(answer, list) and len(answer) == 2:
                path = str(answer[1])
        if not path:
            return log_since_start(self._pid, _START_MARK) if self._pid else None
        try:
            text = Path(path).read_text(errors="replace")[-_MAX_LOG_BYTES:]
        except OSError:
            return None
        return text[text.rindex(_START_MARK) :] if _START_MARK in text else None


def make_holder(arguments: Mapping[str, Any]) -> RedisHolder:
    """The part that runs in the dead-man's process."""
    return RedisHolder(Endpoint.from_arguments(arguments))


def discover(
    configured: Sequence[ApplicationConfig], look: bool, proc: Path = Path("/proc")
) -> list[Redis]:
    """The servers that run in this network namespace, called by their port or socket.

    An entry of the same name, port or socket adds to one that was found.
    """
    entries = list(configured)
    found: list[Redis] = []
    for pid, endpoint in _running(proc) if look else ():
        name = endpoint.socket or str(endpoint.port)
        entry = next((each for each in entries if _means(each, name, endpoint)), None)
        if entry is not None:
            entries.remove(entry)
        found.append(_server(name, endpoint, entry, pid))
    for entry in entries:
        socket = entry.text("socket")
        if socket or "port" in entry.options:
            endpoint = Endpoint(socket, entry.number("port", _DEFAULT_PORT))
            found.append(_server(entry.name, endpoint, entry, 0))
    return found


def _server(name: str, endpoint: Endpoint, entry: ApplicationConfig | None, pid: int) -> Redis:
    if entry is None:
        return Redis(name, endpoint, None, pid)
    return Redis(
        entry.name,
        replace(
            endpoint,
            socket=entry.text("socket") or endpoint.socket,
            port=entry.number("port", endpoint.port),
            user=entry.text("user"),
            tls=Tls.of(entry),
        ),
        entry,
        pid,
    )


def _means(entry: ApplicationConfig, name: str, endpoint: Endpoint) -> bool:
    if entry.name == name:
        return True
    if entry.text("socket") is not None and entry.text("socket") == endpoint.socket:
        return True
    return "port" in entry.options and entry.options["port"] == endpoint.port != 0


def _running(proc: Path) -> list[tuple[int, Endpoint]]:
    """Each server's process and where its title says that it listens."""
    found: dict[Endpoint, int] = {}
    for entry in sorted(proc.iterdir(), key=lambda path: path.name):
        try:
            if not entry.name.isdigit() or (entry / "comm").read_text().strip() not in _PROCESSES:
                continue
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            # In a container's own network our loopback leads elsewhere.
            here = (entry / "ns/net").readlink() == (proc / "self/ns/net").readlink()
        except (OSError, UnicodeDecodeError):
            continue  # it ended meanwhile
        match = _TITLE.match(title)
        # A child that saves has the same name in `comm` and a title of its own.
        if match is None or not here or Path(match["program"]).name not in _PROCESSES:
            continue
        if "[sentinel]" not in title:
            found.setdefault(_listening(match), int(entry.name))
    return [(pid, endpoint) for endpoint, pid in found.items()]


def _listening(match: re.Match[str]) -> Endpoint:
    if match["socket"]:
        return Endpoint(match["socket"], 0)
    host = match["host"].strip("[]")
    if host in _EVERYWHERE:
        return Endpoint(None, int(match["port"]))
    return Endpoint(None, int(match["port"]), host=host)


def _save(connection: Connection, state: State, deadline: Deadline) -> None:
    if not state.saving:
        # A server that saves already may answer with an error, which comes to the same.
        with suppress(RefusedError):
            connection.ask(deadline, "BGSAVE")
    while read_state(connection, deadline).saving and not deadline.passed:
        time.sleep(0.05)


def _await_loaded(connection: Connection, deadline: Deadline) -> State:
    state = read_state(connection, deadline)
    while state.loading and not deadline.passed:
        time.sleep(0.1)
        state = read_state(connection, deadline)
    if state.loading:
        raise ApplicationError("it is still loading its data")
    return state
