"""Holds the VSS writers of a Windows guest: a shadow copy of all its volumes, right before ours.

Between VSS' freeze and its thaw only a VSS provider runs, for at most ten
seconds ("Overview of Processing a Backup Under VSS"; writers give up after 60
seconds, Exchange's after 20). A provider is a COM component inside VSS, which
the agent is not, so a snapshot of the storage cannot be taken in there. What
can be had without one: a *persistent* shadow copy of all volumes by the
system's provider and with all writers. It lies in the volumes themselves, so
the storage snapshot that follows has it: the volumes as after a power cut,
and in them the state that the writers made consistent. It is made while the
guest is armed, because it stops nobody once it exists, and deleted when the
hold is over.

With `truncate` it is made in a full backup session (`begin backup` … `end
backup`): then, once the director has said that there is a snapshot, Exchange
truncates its logs and SQL Server counts it as the base of its differential
backups. Without, it is a copy backup that changes neither.

Not run against the product; docs/operations/windows.md.
"""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.application import ApplicationConfig, HeldApplication, Testimony
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.windows.diskshadow import (
    Script,
    Writer,
    copies_of,
    read_writers,
    run_script,
    shadow_set,
)

KIND = "vss"

DIRECTORY = Path("C:/ProgramData/Atoll/vss")
PROGRAM = "C:/Windows/System32/diskshadow.exe"

AWAIT_SECONDS = 240
"""How long a full backup session waits for the verdict on the snapshot."""

# Whose making or deleting it is: VSS does one at a time, and each hold has an object of its own.
_TURN = threading.Lock()
_TAKEN, _REFUSED = "taken", "refused"
_LIST_SECONDS = 20.0
_END_SECONDS = 120.0
# Runs inside of diskshadow: it ends well when the agent says that there is a snapshot, and badly
# when it says that there is none or says nothing. Windows Server has no other way to sleep in a
# script without a console.
_AWAIT = """@echo off
for /l %%i in (1,1,{seconds}) do (
  if exist "%~dp0{taken}" exit /b 0
  if exist "%~dp0{refused}" exit /b 1
  ping -n 2 127.0.0.1 >nul
)
exit /b 1
"""


@dataclass(frozen=True)
class Plan:
    """What to make shadow copies of. `writers` (names or identifiers) must take part."""

    volumes: tuple[str, ...]
    writers: tuple[str, ...]
    truncate: bool


class ShadowCopies:
    """All writers of the guest, as one application; see `application.Application`."""

    kind = KIND
    name = "volumes"

    def __init__(
        self,
        plan: Callable[[], Plan],
        program: str = PROGRAM,
        directory: Path = DIRECTORY,
    ) -> None:
        self._plan = plan
        self._program = program
        self._directory = directory
        self._record = directory / "held.json"
        self._set = ""
        self._copies = 0
        self._remark = ""
        self._session: Script | None = None
        self._taken: bool | None = None

    def remark(self, deadline: Deadline) -> str:
        try:
            writers = self._writers(deadline)
        except ApplicationError as error:
            return f"cannot be held: {error}"
        how = "a full backup" if self._plan().truncate else "a copy backup"
        return (
            f"held by shadow copies in {how} with {len(writers)} writers; not run against Windows"
        )

    def recover(self, deadline: Deadline) -> None:
        """Delete the shadow copies that an agent that was killed left behind."""
        try:
            left = json.loads(self._record.read_text())["set"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError) as error:
            raise ApplicationError(
                f"{self._record} cannot be read; delete it and the shadow copies it was for"
            ) from error
        self._delete(str(left), deadline)

    def prepare(self, deadline: Deadline) -> None:
        """VSS flushes by itself."""

    def open(self, deadline: Deadline) -> list[int]:
        """Make the shadow copies. Raises ApplicationError when a writer failed; then none are left."""
        self.close()
        if not _TURN.acquire(timeout=deadline.remaining):
            raise ApplicationError("the shadow copies of an earlier hold are still being deleted")
        try:
            self._open(deadline)
        finally:
            _TURN.release()
        return []

    def flush_again(self, deadline: Deadline) -> None:
        """Nothing is left to flush in what is a copy already."""

    def still_ready(self, deadline: Deadline) -> bool:
        return bool(self._set)

    def hold(self, deadline: Deadline) -> HeldApplication:
        """Nothing is left to do, and listing the copies would take longer than a hold may."""
        return HeldApplication(
            kind=KIND,
            name=self.name,
            held=bool(self._set),
            position=f"shadow copy set {self._set}" if self._set else "",
            witness=None,
            flush_seconds=0.0,
            detail=self._remark if self._set else "no shadow copies were made",
        )

    def note_snapshot(self, taken: bool) -> None:
        """Hear from the director whether a snapshot was taken, before `still_held` is asked."""
        self._taken = taken

    def still_held(self, deadline: Deadline) -> str:
        """Whether all copies are still there. Writers run, so this may take longer than elsewhere."""
        if not self._set:
            return ""
        try:
            found = copies_of(self._set, self._run(["list shadows all"], Deadline(_LIST_SECONDS)))
        except ApplicationError as error:
            return f"{KIND} {self.name}: its shadow copies cannot be listed: {error}"
        if found < self._copies:
            lost = self._copies - found
            return f"{KIND} {self.name}: {lost} of its shadow copies were deleted by somebody else"
        return ""

    def close(self) -> None:
        """End the session and delete the shadow copies, which nobody has to wait for.

        What cannot be deleted now is left to `recover`.
        """
        session, left = self._session, self._set
        self._session, self._set = None, ""
        if session is None and not left:
            return
        with suppress(OSError):
            (self._directory / (_TAKEN if self._taken else _REFUSED)).write_text("")
        threading.Thread(target=self._end, args=(session, left), name="vss").start()

    def testify(self, deadline: Deadline) -> Testimony:
        position, detail = "", ""
        writers: list[Writer] = []
        try:
            # The record was in the snapshot, so a restored guest still names its shadow copies.
            position = f"shadow copy set {json.loads(self._record.read_text())['set']}"
        except (OSError, ValueError, KeyError):
            detail = "no shadow copies of a hold are in this guest"
        try:
            writers = self._writers(deadline)
        except ApplicationError as error:
            detail = str(error)
        failed = [writer.name for writer in writers if writer.failed]
        return Testimony(
            kind=KIND,
            name=self.name,
            answering=bool(writers) and not failed,
            witness=None,
            wal_replayed_bytes=None,
            repair_ran=None,
            position=position,
            detail=f"writers that failed: {', '.join(failed)}" if failed else detail,
        )

    def _open(self, deadline: Deadline) -> None:
        self.recover(deadline)
        self._taken = None
        plan = self._plan()
        if not plan.volumes:
            raise ApplicationError("there is no volume of which shadow copies can be made")
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._make(plan, deadline)
            self._judge(plan, deadline)
        except BaseException:
            self.close()
            raise

    def _make(self, plan: Plan, deadline: Deadline) -> None:
        for verdict in (_TAKEN, _REFUSED):
            (self._directory / verdict).unlink(missing_ok=True)
        script = Script(self._program, self._lines(plan), self._directory / "create.dsh")
        try:
            if plan.truncate:
                # It goes on inside of `exec` once they are made.
                output = script.wait_for_line(r"VSS_SHADOW_SET\b.*\{", deadline)
                self._session = script
            else:
                output = script.wait(deadline)
            self._set = shadow_set(output)
        except BaseException:
            script.end()
            raise
        self._record.write_text(json.dumps({"set": self._set}))
        self._copies = len(plan.volumes)

    def _lines(self, plan: Plan) -> list[str]:
        lines = ["set verbose on", "set context persistent"]
        lines.append(f"set metadata {_quoted(self._directory / 'writers.cab')}")
        if plan.truncate:
            lines.append("begin backup")
        lines += [f"writer verify {_quoted(writer)}" for writer in plan.writers]
        lines += [
            f"add volume {_quoted(volume)} alias Atoll{number}"
            for number, volume in enumerate(plan.volumes, 1)
        ]
        lines.append("create")
        if plan.truncate:
            awaiting = self._directory / "await.cmd"
            awaiting.write_text(
                _AWAIT.format(seconds=AWAIT_SECONDS, taken=_TAKEN, refused=_REFUSED),
                newline="\r\n",
            )
            lines += [f"exec {_quoted(awaiting)}", "end backup"]
        return lines

    def _judge(self, plan: Plan, deadline: Deadline) -> None:
        """Whether the writers made their part consistent; what they hold up is said nowhere else."""
        writers = self._writers(deadline)
        failed = [f"{writer.name} ({writer.failure})" for writer in writers if writer.failed]
        if failed:
            raise ApplicationError(f"writers failed: {', '.join(failed)}")
        self._remark = (
            f"{len(writers)} writers are consistent in shadow copies of {', '.join(plan.volumes)} "
            "inside of the snapshot; the volumes themselves are as after a power cut"
        )

    def _writers(self, deadline: Deadline) -> list[Writer]:
        return read_writers(self._run(["list writers status"], deadline))

    def _end(self, session: Script | None, left: str) -> None:
        with _TURN:
            limit = Deadline(_END_SECONDS)
            try:
                if session is not None:
                    try:
                        if self._taken:
                            session.wait(limit)
                    finally:
                        session.end()
                if left:
                    self._delete(left, limit)
            except ApplicationError as error:
                sys.stderr.write(f"atoll-agent: {KIND} {self.name}: {error}\n")

    def _delete(self, left: str, deadline: Deadline) -> None:
        """Delete a set; absent is success."""
        if copies_of(left, self._run(["list shadows all"], deadline)):
            self._run([f"delete shadows set {left}"], deadline)
        self._record.unlink(missing_ok=True)

    def _run(self, lines: Sequence[str], deadline: Deadline) -> str:
        self._directory.mkdir(parents=True, exist_ok=True)
        script = self._directory / f"ask-{threading.get_ident()}.dsh"
        try:
            return run_script(self._program, lines, script, deadline)
        finally:
            script.unlink(missing_ok=True)


def plan_from(entry: ApplicationConfig | None, volumes: Callable[[], Sequence[str]]) -> Plan:
    """What the configuration's `vss` entry asks for; without one all fixed volumes, copied."""
    if entry is None:
        return Plan(tuple(volumes()), (), False)
    named = entry.text("volumes")
    return Plan(
        volumes=tuple(named.split(",")) if named else tuple(volumes()),
        writers=tuple(filter(None, (entry.text("writers") or "").split(","))),
        truncate=bool(entry.number("truncate", 0)),
    )


def _quoted(value: object) -> str:
    return f'"{value}"'
