"""Holds an Oracle database for a snapshot of all its files at one instant, or in backup mode.

Oracle documents two ways for snapshots by storage (Backup and Recovery User's
Guide, "Making Backups with Third-Party Snapshot Technologies"; MOS 604683.1):

- Without backup mode, when the snapshot is crash-consistent, keeps the order
  of writes, and is of all files at one instant. Then it is what a power cut
  leaves, and the instance recovers by itself when it starts. This is the
  default here, because it is just what the group snapshot under frozen file
  systems is, and a restored guest starts as it is.
- `ALTER DATABASE BEGIN BACKUP` … `END BACKUP`, when files lie on several
  snapshots or on disks that nobody freezes (ASM). A database that is started
  from such a snapshot refuses to open until `ALTER DATABASE END BACKUP` or
  media recovery (ORA-10873), so this is for those who ask for it.

`ALTER SYSTEM SUSPEND` is used by neither: it stops data files and control
files but not the redo log, and is for mirrors that cannot be split under
writes (Administrator's Guide, "Suspending and Resuming a Database").

Not run against the product; docs/operations/applications.md.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.oraclelog import judge_alert_log
from atoll_agent.modules.suspending import (
    Findings,
    ProductHolder,
    RefusedError,
    SuspendedApplication,
    Suspension,
    usable_witness,
)
from atoll_agent.modules.twosessions import TwoSessions
from atoll_agent.mounts import FREEZABLE, mount_holding, read_mounts
from atoll_agent.owners import owner_of
from atoll_agent.servers import Process, server_processes
from atoll_agent.session import Session, StillRunningError

KIND = "oracle"
PROCESSES = ("ora_pmon_*",)

SNAPSHOT, BACKUP_MODE = "snapshot", "backup-mode"

_REFUSAL = re.compile(r"^(ORA|SP2)-\d{4,5}", re.MULTILINE)
_FORMAT = "SET HEADING OFF FEEDBACK OFF PAGESIZE 0 LINESIZE 32767 TAB OFF DEFINE OFF VERIFY OFF"
_FACTS = """SELECT d.log_mode || '|' || d.open_mode || '|' || d.database_role
|| '|' || (SELECT COUNT(*) FROM gv$instance)
|| '|' || (SELECT TO_CHAR(startup_time, 'YYYYMMDDHH24MISS') FROM v$instance) FROM v$database d"""
_FILES = """SELECT name FROM v$datafile UNION ALL SELECT member FROM v$logfile
UNION ALL SELECT name FROM v$controlfile"""
_SCN = "SELECT 'scn ' || current_scn FROM v$database"
# Of the files in backup mode: how many, and since which change.
_IN_BACKUP = """SELECT COUNT(*) || '|' || MIN(change#) || '|' || MAX(change#) FROM v$backup
WHERE status = 'ACTIVE'"""
_NONE_IN_BACKUP = "0||"
_ALERT_LOG = "SELECT value FROM v$diag_info WHERE name = 'Diag Trace'"
_ORATABS = (Path("/etc/oratab"), Path("/var/opt/oracle/oratab"))


@dataclass(frozen=True)
class Instance:
    """A running instance. `method` None: a snapshot, if all files lie on frozen file systems.

    `container` is the pluggable database in which the witness runs.
    """

    name: str
    sid: str
    home: str
    owner: str | None
    method: str | None = None
    witness: str | None = None
    container: str | None = None


@dataclass(frozen=True)
class _Facts:
    archiving: bool
    open_mode: str
    role: str
    instances: int
    started: str


class Oracle(TwoSessions):
    """One instance."""

    kind = KIND
    how = "a checkpoint before a snapshot of all its files, or backup mode"

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance.witness)
        self._instance = instance
        self._facts: _Facts | None = None
        self._in_backup = ""

    def connect(self, deadline: Deadline) -> None:
        super().connect(deadline)
        self.check(deadline)

    def flush(self, deadline: Deadline) -> None:
        """Checkpoint; before anything is opened, also archive what is not yet.

        The archived logs up to here are then files of the snapshot.
        """
        first = self._control is None
        control = self.lone(deadline)
        if first and _read_facts(control, deadline).archiving:
            control.ask("ALTER SYSTEM ARCHIVE LOG CURRENT", deadline)
        control.ask("ALTER SYSTEM CHECKPOINT", deadline)

    def check(self, deadline: Deadline) -> None:
        self.control.ask("SELECT 1 FROM dual", deadline)
        facts = _read_facts(self.other, deadline)
        files = self.other.ask(_FILES, deadline).split("\n")
        if refusal := self._refusal(facts, [name.strip() for name in files if name.strip()]):
            raise RefusedError(refusal)
        self._facts = facts

    def suspend(self, deadline: Deadline) -> Suspension:
        control, other = self.control, self.other
        if self._instance.method != BACKUP_MODE:
            remark = "writers wait from the freeze of the file systems on, not from the witness on"
            try:
                control.ask("ALTER SYSTEM CHECKPOINT", deadline.within(deadline.remaining * 0.6))
            except StillRunningError:
                # It goes on by itself; what it has not written is in the redo log.
                remark += "; the checkpoint did not end in time, recovery will take longer"
            return Suspension(other.ask(_SCN, deadline).strip(), remark)
        if _in_backup(other, deadline) != _NONE_IN_BACKUP:
            raise RefusedError("files are in backup mode already: another backup is running")
        control.ask("ALTER DATABASE BEGIN BACKUP", deadline)
        self._in_backup = _in_backup(other, deadline)
        return Suspension(
            other.ask(_SCN, deadline).strip(),
            "in backup mode: a restored database opens after ALTER DATABASE END BACKUP",
        )

    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        assert self._facts is not None
        if _read_facts(self.other, deadline).started != self._facts.started:
            return "the instance was restarted"
        if self._instance.method != BACKUP_MODE:
            return ""
        # The same files since the same change: ended and begun again, it would be another one.
        if _in_backup(self.other, deadline) != self._in_backup:
            return "backup mode was ended by somebody else"
        return ""

    def resume(self, deadline: Deadline) -> None:
        if self._instance.method != BACKUP_MODE:
            return
        with closing(self._session(deadline)) as session:
            if _in_backup(session, deadline) != _NONE_IN_BACKUP:
                session.ask("ALTER DATABASE END BACKUP", deadline)

    def look(self, deadline: Deadline) -> Findings:
        control = self.lone(deadline)
        facts = _read_facts(control, deadline)
        if not facts.open_mode.startswith("READ"):
            if _in_backup(control, deadline) != _NONE_IN_BACKUP:
                raise ApplicationError(
                    "it is mounted in backup mode and not open; ALTER DATABASE END BACKUP, "
                    "then ALTER DATABASE OPEN"
                )
            raise ApplicationError(f"it is {facts.open_mode.lower()} and not open")
        witness = self.witness_of(control, deadline)
        trace = control.ask(_ALERT_LOG, deadline).strip()
        recovery = judge_alert_log(Path(trace) / f"alert_{self._instance.sid}.log")
        return Findings(
            position=control.ask(_SCN, deadline).strip(),
            witness=witness,
            replayed_bytes=recovery.replayed_bytes if recovery else None,
            repaired=recovery.repaired if recovery else None,
            remark="" if recovery else "the alert log was not found",
        )

    def _client(self) -> Session:
        instance = self._instance
        return Session(
            [f"{instance.home}/bin/sqlplus", "-S", "-L", "/", "as", "sysdba"],
            lambda marker: f"PROMPT {marker}",
            {
                "ORACLE_SID": instance.sid,
                "ORACLE_HOME": instance.home,
                "LD_LIBRARY_PATH": f"{instance.home}/lib",
                # Dates and numbers as we read them, whatever the site has set.
                "NLS_LANG": "AMERICAN_AMERICA.AL32UTF8",
            },
            instance.owner,
            refusal=_REFUSAL,
        )

    def _greeting(self) -> str:
        return _FORMAT

    def _answer(self, witness: str, session: Session, deadline: Deadline) -> str:
        query = usable_witness(witness)
        container = self._instance.container
        if container:
            session.ask(f"ALTER SESSION SET CONTAINER = {container}", deadline)
        try:
            return session.ask(query, deadline).strip()
        finally:
            if container:
                session.ask("ALTER SESSION SET CONTAINER = CDB$ROOT", deadline)

    def _refusal(self, facts: _Facts, files: Sequence[str]) -> str:
        """Empty, or why this database cannot be held in the way it is to be."""
        if facts.role != "PRIMARY":
            return f"it is a {facts.role.lower()}, which only applies its primary's log"
        if not facts.open_mode.startswith("READ"):
            return f"it is {facts.open_mode.lower()} and not open"
        if self._instance.method == BACKUP_MODE:
            return "" if facts.archiving else "it is in NOARCHIVELOG mode, which has no backup mode"
        if self._instance.method == SNAPSHOT:
            return ""
        if facts.instances > 1:
            return (
                f"{facts.instances} instances of a cluster have it open and only this guest "
                f"freezes; set method to {BACKUP_MODE}, or to {SNAPSHOT} if one snapshot has all"
            )
        return _first_unfrozen(files)


def _first_unfrozen(files: Sequence[str]) -> str:
    """Empty, or which file is on nothing that freezes."""
    mounts = read_mounts()
    for name in files:
        if name.startswith("+"):
            where = "in ASM"
        else:
            mount = mount_holding(name, mounts)
            if mount is not None and mount.fstype in FREEZABLE:
                continue
            where = f"on {mount.fstype}" if mount else "on nothing that is mounted"
        return (
            f"{name} lies {where}, which does not freeze; set method to {BACKUP_MODE}, or to "
            f"{SNAPSHOT} if one snapshot has all files at one instant"
        )
    return ""


def _read_facts(session: Session, deadline: Deadline) -> _Facts:
    fields = session.ask(_FACTS, deadline).strip().split("|")
    if len(fields) != 5 or not fields[3].isdigit():
        raise ApplicationError("the database does not tell its state")
    return _Facts(fields[0] == "ARCHIVELOG", fields[1], fields[2], int(fields[3]), fields[4])


def _in_backup(session: Session, deadline: Deadline) -> str:
    return session.ask(_IN_BACKUP, deadline).strip()


def make_holder(arguments: Mapping[str, Any]) -> ProductHolder:
    """What the dead-man's process runs."""
    return ProductHolder(Oracle(Instance(**arguments)))


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[SuspendedApplication]:
    """The instances whose process monitor runs, called by their SID, with the configuration's word.

    An entry named otherwise, or with `sid`, is for one whose owner or home is not found so.
    """
    entries = {entry.name: entry for entry in configured}
    found: list[Instance] = []
    for process in server_processes(PROCESSES):
        sid = process.title.removeprefix("ora_pmon_")
        entry = entries.pop(sid, None)
        if look or entry is not None:
            home = process.environment().get("ORACLE_HOME") or _home_of(sid)
            found.append(_instance(sid, home, process, entry))
    found += [
        _instance(named, "", None, entry)
        for entry in entries.values()
        if (named := entry.text("sid"))
    ]
    return [
        SuspendedApplication(instance.name, Oracle(instance), asdict(instance))
        for instance in found
    ]


def _instance(
    sid: str, home: str, process: Process | None, entry: ApplicationConfig | None
) -> Instance:
    def text(key: str) -> str | None:
        return entry.text(key) if entry is not None else None

    return Instance(
        name=entry.name if entry is not None else sid,
        sid=text("sid") or sid,
        home=text("home") or home or _home_of(sid),
        owner=text("owner") or (owner_of(process.pid) if process else None) or "oracle",
        method=text("method"),
        witness=text("witness"),
        container=text("container"),
    )


def _home_of(sid: str) -> str:
    """The home an oratab names for a SID; `$ORACLE_HOME` or nothing without one."""
    for oratab in _ORATABS:
        try:
            lines = oratab.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name.strip() == sid:
                return rest.partition(":")[0].strip()
    return os.environ.get("ORACLE_HOME", "")
