"""Holds an Informix server: `onmode -c block`, and `onmode -c unblock` afterwards.

IBM's and HCL's procedure (Backup and Restore Guide, "Performing an external
backup when chunks are not mirrored"): blocking takes a checkpoint and suspends
all updates, readers go on; then the copy; then unblock. The guide wants the
logical logs backed up after it, the current one included (`onbar -b -l -c`):
that is for rolling an external restore forward. A guest restored from the
snapshot has its logs with it and recovers by itself.

Not run against the product; docs/operations/applications.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.command import Outcome, run_command
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
from atoll_agent.servers import Process, server_processes

KIND = "informix"
PROCESSES = ("oninit",)

_OWNER = "informix"
_ENVIRONMENT = ("INFORMIXDIR", "INFORMIXSERVER", "ONCONFIG", "INFORMIXSQLHOSTS")
# The header of every onstat: "… -- On-Line -- Up 12 days …", then "Blocked:" and why if it is.
_MODE = re.compile(r"-- (?P<mode>[A-Za-z][A-Za-z -]*?) *(?:\([^)]*\) *)*-- Up ", re.IGNORECASE)
_BLOCKED = re.compile(r"^Blocked:\S", re.MULTILINE)
# The current logical log (onstat -l): address, number, flags with a C, unique id, begin, size, used.
_CURRENT_LOG = re.compile(r"^\S+ +\d+ +\S*C\S* +(\d+) +\S+ +\d+ +(\d+)", re.MULTILINE)
_PHYSICAL_RECOVERY = re.compile(
    r"Physical Recovery Complete: *(\d+) Pages? Examined", re.IGNORECASE
)
_CHATTER = ("Database selected.", "Database closed.", "row(s) retrieved.")


@dataclass(frozen=True)
class Server:
    """One server; `environment` is what its programs need to find it."""

    name: str
    owner: str | None
    environment: Mapping[str, str]
    database: str | None = None
    witness: str | None = None


class Informix(Product):
    """One server."""

    kind = KIND
    how = "blocking updates after a checkpoint"

    def __init__(self, server: Server) -> None:
        self._server = server
        self._position = ""

    def connect(self, deadline: Deadline) -> None:
        self.check(deadline)

    def flush(self, deadline: Deadline) -> None:
        self._must("onmode", ["-c"], deadline)

    def check(self, deadline: Deadline) -> None:
        header = self._onstat(["-"], deadline)
        found = _MODE.search(header)
        mode = found["mode"].strip() if found else "not on-line"
        if mode not in {"On-Line", "Quiescent"}:
            raise RefusedError(f"it is {mode}, which cannot be blocked")

    def suspend(self, deadline: Deadline) -> Suspension:
        # Two looks, because a checkpoint of its own looks the same while it lasts.
        if self._is_blocked(deadline) and self._is_blocked(deadline):
            raise RefusedError("it is blocked already: another external backup is running")
        self._must("onmode", ["-c", "block"], deadline)
        if not self._is_blocked(deadline):
            raise ApplicationError("it did not stay blocked")
        self._position = self._log_position(deadline)
        return Suspension(self._position)

    def ask_witness(self, deadline: Deadline) -> str | None:
        return self._witness(deadline) if self._server.witness else None

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        if not self._is_blocked(deadline):
            return "it was unblocked by somebody else"
        # Nothing is logged in a blocked server, so a log that has moved was not blocked throughout.
        if self._log_position(deadline) != self._position:
            return "its log moved on, so it was unblocked in between"
        return ""

    def resume(self, deadline: Deadline) -> None:
        if self._is_blocked(deadline):
            self._must("onmode", ["-c", "unblock"], deadline)
            if self._is_blocked(deadline):
                raise ApplicationError("it is still blocked")

    def look(self, deadline: Deadline) -> Findings:
        self.check(deadline)
        messages = self._onstat(["-m"], deadline)
        pages = _PHYSICAL_RECOVERY.findall(messages)
        return Findings(
            position=self._log_position(deadline),
            witness=self._witness(deadline) if self._server.witness else None,
            remark=f"its last recovery examined {pages[-1]} pages" if pages else "",
        )

    def disconnect(self) -> None:
        """Nothing is open: its programs attach to its memory and leave."""

    def _witness(self, deadline: Deadline) -> str:
        assert self._server.witness is not None
        outcome = self._run(
            "dbaccess",
            [self._server.database or "sysmaster", "-"],
            deadline,
            f"SET ISOLATION TO COMMITTED READ;\n{usable_witness(self._server.witness)};\n",
        )
        if outcome.status:
            raise ApplicationError(outcome.output[:500])
        lines = [line.strip() for line in outcome.output.splitlines()]
        return "\n".join(
            line for line in lines if line and not any(word in line for word in _CHATTER)
        )

    def _is_blocked(self, deadline: Deadline) -> bool:
        return bool(_BLOCKED.search(self._onstat(["-"], deadline)))

    def _log_position(self, deadline: Deadline) -> str:
        found = _CURRENT_LOG.search(self._onstat(["-l"], deadline))
        if found is None:
            raise ApplicationError("onstat -l shows no current logical log")
        return f"log {found[1]} page {found[2]}"

    def _onstat(self, arguments: Sequence[str], deadline: Deadline) -> str:
        # Its exit status is the server's mode, so only the text tells.
        return self._run("onstat", arguments, deadline).output

    def _must(self, program: str, arguments: Sequence[str], deadline: Deadline) -> None:
        outcome = self._run(program, arguments, deadline)
        if outcome.status:
            words = " ".join([program, *arguments])
            raise ApplicationError(f"{words} failed: {outcome.output[:500] or outcome.status}")

    def _run(
        self, program: str, arguments: Sequence[str], deadline: Deadline, text: str = ""
    ) -> Outcome:
        folder = self._server.environment.get("INFORMIXDIR")
        return run_command(
            [f"{folder}/bin/{program}" if folder else program, *arguments],
            deadline,
            owner=self._server.owner,
            environment=self._server.environment,
            text=text,
        )


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(Informix(Server(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The servers that run, called as INFORMIXSERVER says, and those that are named with a `server`."""
    entries = {entry.name: entry for entry in configured}
    servers: list[Server] = []
    for process in server_processes(PROCESSES):
        name = process.environment().get("INFORMIXSERVER", "")
        entry = entries.get(name)
        trusted = {"root", (entry.text("owner") if entry else None) or _OWNER}
        # Its environment says which programs run as the owner, so it must be of him or of root.
        if name and (look or entry is not None) and process.owner in trusted:
            servers.append(_server(name, process, entries.pop(name, None)))
    servers += [
        _server(entry.name, None, entry) for entry in entries.values() if entry.text("server")
    ]
    return [
        SuspendedApplication(server.name, Informix(server), asdict(server)) for server in servers
    ]


def _server(name: str, process: Process | None, entry: ApplicationConfig | None) -> Server:
    started = process.environment() if process is not None else {}
    environment = {key: started[key] for key in _ENVIRONMENT if started.get(key)}
    if entry is None:
        return Server(name, _OWNER, environment)
    given = {
        "INFORMIXDIR": entry.text("home"),
        "INFORMIXSERVER": entry.text("server"),
        "ONCONFIG": entry.text("onconfig"),
    }
    environment |= {key: value for key, value in given.items() if value}
    return Server(
        name=name,
        owner=entry.text("owner") or _OWNER,
        environment=environment,
        database=entry.text("database"),
        witness=entry.text("witness"),
    )
