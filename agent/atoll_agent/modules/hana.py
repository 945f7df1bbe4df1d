"""Holds SAP HANA: a data snapshot of the full system, prepared and closed around ours.

SAP's procedure (SAP HANA Administration Guide, "Create a Data Snapshot"; SQL
Reference, "BACKUP DATA … CREATE SNAPSHOT" and "CLOSE SNAPSHOT"): `BACKUP DATA
FOR FULL SYSTEM CREATE SNAPSHOT` writes a consistent state into the data area,
then the storage copies that area with its file system frozen, then `CLOSE
SNAPSHOT BACKUP_ID … SUCCESSFUL` or `UNSUCCESSFUL` tells the backup catalogue
how it went. The site deletes old log backups by that catalogue, so a snapshot
counts as successful only when the director has said that there is one.

The prepared snapshot stops nobody and takes as long as a savepoint, so it is
prepared while the guest is armed. Writers wait from the freeze of the file
systems on; what came since the data snapshot is in the log area.

Not run against the product; docs/operations/applications.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

KIND = "hana"
PROCESSES = ("hdbnameserver",)

COMMENT = "atoll"
"""What our snapshots are called in the catalogue, and by which a left one is found."""

_REFUSAL = re.compile(r"^\* -?\d+: ", re.MULTILINE)
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DIR_LIBRARY", "SAPSYSTEMNAME", "HOME")
_PREPARED = (
    "SELECT BACKUP_ID || '|' || IFNULL(COMMENT, '') FROM M_BACKUP_CATALOG "
    "WHERE ENTRY_TYPE_NAME = 'data snapshot' AND STATE_NAME = 'prepared' ORDER BY BACKUP_ID"
)
_HOSTS = "SELECT COUNT(DISTINCT HOST) FROM M_LANDSCAPE_HOST_CONFIGURATION"
_CREATE = f"BACKUP DATA FOR FULL SYSTEM CREATE SNAPSHOT COMMENT '{COMMENT}'"
_CLOSE = "BACKUP DATA FOR FULL SYSTEM CLOSE SNAPSHOT BACKUP_ID"
_IDLE_SERVICES = "SELECT COUNT(*) FROM M_SERVICES WHERE ACTIVE_STATUS <> 'YES'"


@dataclass(frozen=True)
class System:
    """One system. `key` is of the owner's hdbuserstore and leads to the system database.

    `witness_key` leads to the tenant in which the witness runs.
    """

    name: str
    owner: str | None
    environment: Mapping[str, str]
    key: str = "ATOLL"
    witness_key: str | None = None
    witness: str | None = None


class Hana(Product):
    """One system."""

    kind = KIND
    how = "a data snapshot of the full system"
    early = True

    def __init__(self, system: System) -> None:
        self._system = system
        self._backup = ""
        self._closed = False

    def connect(self, deadline: Deadline) -> None:
        if (hosts := self._ask(_HOSTS, deadline)) != "1":
            raise RefusedError(f"it has {hosts} hosts, and only this guest freezes")

    def flush(self, deadline: Deadline) -> None:
        self._ask("ALTER SYSTEM SAVEPOINT", deadline)

    def check(self, deadline: Deadline) -> None:
        others = [each for each in self._prepared(deadline) if each[0] != self._backup]
        if others:
            raise RefusedError(f"snapshot {others[0][0]} of somebody else's is prepared")

    def suspend(self, deadline: Deadline) -> Suspension:
        self.check(deadline)
        self._ask(_CREATE, deadline)
        mine = [number for number, comment in self._prepared(deadline) if comment == COMMENT]
        if not mine:
            raise ApplicationError("the snapshot is not in the backup catalogue")
        self._backup = mine[-1]
        return Suspension(
            f"backup {self._backup}",
            "writers wait from the freeze of the file systems on, not from the witness on",
        )

    def ask_witness(self, deadline: Deadline) -> str | None:
        return self._witness(deadline) if self._system.witness else None

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        if self._backup not in [number for number, _ in self._prepared(deadline)]:
            return "its snapshot was closed by somebody else"
        if taken:
            self._close(self._backup, "SUCCESSFUL", deadline)
            self._closed = True
        return ""

    def resume(self, deadline: Deadline) -> None:
        if self._closed:
            return
        for number, comment in self._prepared(deadline):
            if comment == COMMENT:
                self._close(number, "UNSUCCESSFUL", deadline)

    def look(self, deadline: Deadline) -> Findings:
        idle = self._ask(_IDLE_SERVICES, deadline)
        if idle != "0":
            raise ApplicationError(f"{idle} of its services are not active yet")
        prepared = self._prepared(deadline)
        return Findings(
            position=f"backup {prepared[-1][0]}" if prepared else "",
            witness=self._witness(deadline) if self._system.witness else None,
            remark="it started from its log; the prepared snapshot is still to be closed"
            if prepared
            else "",
        )

    def disconnect(self) -> None:
        """Nothing is open: each question is a run of hdbsql."""

    def _prepared(self, deadline: Deadline) -> list[tuple[str, str]]:
        """The prepared snapshots' backup ids and comments, oldest first."""
        pairs = [line.partition("|") for line in self._ask(_PREPARED, deadline).splitlines()]
        return [(number.strip(), comment.strip()) for number, _, comment in pairs if number.strip()]

    def _close(self, backup: str, how: str, deadline: Deadline) -> None:
        self._ask(f"{_CLOSE} {backup} {how} '{COMMENT}'", deadline)

    def _witness(self, deadline: Deadline) -> str:
        assert self._system.witness is not None
        witness = usable_witness(self._system.witness)
        return self._ask(witness, deadline, self._system.witness_key)

    def _ask(self, statement: str, deadline: Deadline, key: str | None = None) -> str:
        # -a: no headings; -x: nothing but the answer; -j: no pager; -C: texts without quotes.
        outcome = run_command(
            ["hdbsql", "-U", key or self._system.key, "-a", "-x", "-j", "-C", statement],
            deadline,
            owner=self._system.owner,
            environment=self._system.environment,
        )
        if outcome.status or _REFUSAL.search(outcome.output):
            raise ApplicationError(" ".join(outcome.output.split())[:500] or "hdbsql failed")
        lines = [
            line.strip().removeprefix('"').removesuffix('"') for line in outcome.output.split("\n")
        ]
        return "\n".join(line for line in lines if line)


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(Hana(System(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The systems whose name server runs, called by their SID, and those named with an `owner`."""
    entries = {entry.name: entry for entry in configured}
    systems: list[System] = []
    for process in server_processes(PROCESSES):
        name = process.environment().get("SAPSYSTEMNAME", "")
        if name and (look or name in entries):
            systems.append(_system(name, process, entries.pop(name, None)))
    systems += [
        _system(entry.name, None, entry) for entry in entries.values() if entry.text("owner")
    ]
    return [SuspendedApplication(system.name, Hana(system), asdict(system)) for system in systems]


def _system(name: str, process: Process | None, entry: ApplicationConfig | None) -> System:
    def text(key: str) -> str | None:
        return entry.text(key) if entry is not None else None

    started = process.environment() if process is not None else {}
    owner = text("owner") or (process.owner if process else None) or f"{name.lower()}adm"
    environment = {"HOME": home_of(owner)}
    environment |= {key: started[key] for key in _ENVIRONMENT if started.get(key)}
    return System(
        name=name,
        owner=owner,
        environment=environment,
        key=text("key") or "ATOLL",
        witness_key=text("witness_key"),
        witness=text("witness"),
    )
