"""Holds an HCL Domino 12 server: Domino Backup brings its databases into backup mode.

HCL's procedure for snapshots on Linux (Domino 12 documentation, "Snapshot
backups"; HCL's domino-backup project, docs/veeam/concept.md and its scripts
for Linux): `load backup -s` on the console starts Domino Backup, which brings
all databases into backup mode and runs its *snapshot start command*, then its
*backup snapshot command*, which waits for the snapshot; after that it ends
backup mode and saves what changed meanwhile in `*.DELTA` files. HCL's two
scripts and whoever takes the snapshot talk through one file in the data
directory, `dominobackup_snapshot.lck`, whose first line goes from REQUESTED to
DOMINO-DONE to DONE. The agent is who takes the snapshot.

Backup mode stops nobody and may take minutes to reach, so it is entered while
the guest is armed. HCL's script gives up waiting after 120 seconds and ends
backup mode: the agent finds that out, and nothing stays behind.

Not run against the product; docs/operations/applications.md.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline, boottime
from atoll_agent.command import run_command
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.suspending import (
    Findings,
    Product,
    ProductHolder,
    RefusedError,
    SuspendedApplication,
    Suspension,
)
from atoll_agent.servers import Process, server_processes

KIND = "domino"
PROCESSES = ("*/notes/*/linux/server",)

STATUS_FILE = "dominobackup_snapshot.lck"
REQUESTED, IN_BACKUP_MODE, DONE = "REQUESTED", "DOMINO-DONE", "DONE"

SCRIPT_SECONDS = 120.0
"""How long HCL's backup_snapshot.sh waits for the snapshot."""

_POLL_SECONDS = 0.25
_REPLACE = 'printf "%s\\n" "$1" > "$2.new" && mv -f "$2.new" "$2"'


@dataclass(frozen=True)
class Server:
    """One server: its program, the user it runs as, and its data directory."""

    name: str
    program: str
    owner: str | None
    data_directory: str


class Domino(Product):
    """One server."""

    kind = KIND
    how = "Domino Backup in snapshot mode"
    early = True

    def __init__(self, server: Server) -> None:
        self._server = server
        self._status = Path(server.data_directory) / STATUS_FILE
        self._since = 0.0
        self._asked = False

    def connect(self, deadline: Deadline) -> None:
        if not Path(self._server.data_directory, "notes.ini").exists():
            raise RefusedError(f"{self._server.data_directory} is no data directory of Domino's")

    def flush(self, deadline: Deadline) -> None:
        """Domino Backup flushes each database on its way into backup mode."""

    def check(self, deadline: Deadline) -> None:
        if self._asked:
            if broken := self._broken():
                raise ApplicationError(broken)
        elif self._read() in {REQUESTED, IN_BACKUP_MODE} and self._age() < SCRIPT_SECONDS:
            raise RefusedError("Domino Backup is taking a snapshot already")

    def suspend(self, deadline: Deadline) -> Suspension:
        self.check(deadline)
        self._asked = True
        self._write(REQUESTED, deadline)
        outcome = run_command(
            [self._server.program, "-c", "load backup -s"],
            deadline,
            owner=self._server.owner,
            environment={"HOME": self._server.data_directory},
            directory=self._server.data_directory,
        )
        if outcome.status:
            raise ApplicationError(outcome.output[:500] or "load backup -s was refused")
        while self._read() != IN_BACKUP_MODE:
            if deadline.passed:
                raise ApplicationError(
                    "its databases did not reach backup mode in time; are HCL's snapshot scripts "
                    "configured in dominobackup.nsf?"
                )
            time.sleep(_POLL_SECONDS)
        self._since = boottime()
        return Suspension("", "changes from the beginning of backup mode on are in *.DELTA files")

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        return self._broken()

    def resume(self, deadline: Deadline) -> None:
        """Say that the snapshot is done, which lets Domino Backup end backup mode."""
        if self._read() in {REQUESTED, IN_BACKUP_MODE}:
            self._write(DONE, deadline)

    def look(self, deadline: Deadline) -> Findings:
        found = [process for process in server_processes(PROCESSES) if self._is_mine(process)]
        if not found:
            raise ApplicationError("the server does not run")
        return Findings(
            "", remark="databases are restored with their *.DELTA files by Domino's restore task"
        )

    def disconnect(self) -> None:
        """Nothing is open."""

    def _broken(self) -> str:
        if self._read() != IN_BACKUP_MODE:
            return "backup mode was ended by somebody else"
        if boottime() - self._since >= SCRIPT_SECONDS:
            return f"its script gave up waiting for the snapshot after {SCRIPT_SECONDS:g} s"
        return ""

    def _is_mine(self, process: Process) -> bool:
        return process.directory() == self._server.data_directory

    def _age(self) -> float:
        try:
            return max(0.0, time.time() - self._status.stat().st_mtime)
        except OSError:
            return SCRIPT_SECONDS

    def _read(self) -> str:
        try:
            return self._status.read_text(errors="replace").partition("\n")[0].strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ApplicationError(f"{self._status} cannot be read: {error.strerror}") from error

    def _write(self, status: str, deadline: Deadline) -> None:
        """As a whole, because HCL's scripts read it at any time, and as the owner, whose file it is.

        Not as root, who must not write where somebody else can put a link.
        """
        outcome = run_command(
            ["sh", "-c", _REPLACE, "sh", status, str(self._status)],
            deadline,
            owner=self._server.owner,
        )
        if outcome.status:
            raise ApplicationError(f"{self._status} cannot be written: {outcome.output[:300]}")


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(Domino(Server(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The servers that run, called by their data directory, and those named with `data_directory`."""
    entries = {entry.name: entry for entry in configured}
    servers: list[Server] = []
    for process in server_processes(PROCESSES):
        folder = process.directory()
        entry = next(
            (one for one in entries.values() if one.text("data_directory") == folder), None
        )
        if folder and (look or entry is not None):
            servers.append(_server(folder, process, entry))
            if entry is not None:
                del entries[entry.name]
    servers += [
        _server(named, None, entry)
        for entry in entries.values()
        if (named := entry.text("data_directory"))
    ]
    return [SuspendedApplication(server.name, Domino(server), asdict(server)) for server in servers]


def _server(folder: str, process: Process | None, entry: ApplicationConfig | None) -> Server:
    def text(key: str) -> str | None:
        return entry.text(key) if entry is not None else None

    return Server(
        name=entry.name if entry is not None else folder.strip("/").replace("/", "-"),
        program=text("program") or "/opt/hcl/domino/bin/server",
        owner=text("owner") or (process.owner if process else None) or "notes",
        data_directory=folder,
    )
