"""Holds what no module knows, by programs of the admin's: `/etc/atoll/hooks.d` and `agent.json`.

A hook is called with one word: `prepare` while everything serves, `freeze` to
hold, `thaw` after a freeze that succeeded, `abort` after one that failed or of
which nobody knows, `testify` in a restored guest. `thaw` and `abort` are called
by the dead-man's process also when the agent is dead, and repeated until they
succeed. Nothing that comes over the network names or changes a hook.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig, HeldApplication, Testimony
from atoll_agent.clock import Deadline
from atoll_agent.command import run_command
from atoll_agent.errors import ApplicationError, ConfigError
from atoll_agent.outliving import OutlivingApplication

KIND = "hooks"
DIRECTORY = Path("/etc/atoll/hooks.d")

# As run-parts(8) has it, so that no editor's backup and no half-installed file is run.
_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
_DEFAULT_SECONDS = 30
_MAX_WITNESS = 4096
_MAX_POSITION = 200
_MAX_DETAIL = 500


@dataclass(frozen=True)
class _Said:
    """What a hook printed: its lines `position: …` and `witness: …`, and the rest."""

    position: str
    witness: str | None
    rest: str


class Hook(OutlivingApplication):
    """One program, which holds whatever it holds."""

    def __init__(self, name: str, path: Path, seconds: int) -> None:
        super().__init__(KIND, name)
        self._path = path
        self._seconds = float(seconds)
        self._not_prepared = ""

    def remark(self, deadline: Deadline) -> str:
        refusal = why_not_trusted(self._path)
        return f"cannot be held: {refusal}" if refusal else f"held by {self._path}"

    def prepare(self, deadline: Deadline) -> None:
        self._not_prepared = ""
        try:
            _call(self._path, "prepare", deadline.within(self._seconds))
        except ApplicationError as error:
            self._not_prepared = f"its preparation failed: {error}"
            raise

    def open(self, deadline: Deadline) -> list[int]:
        if refusal := why_not_trusted(self._path):
            self.close()
            raise ApplicationError(refusal)
        return super().open(deadline)

    def flush_again(self, deadline: Deadline) -> None:
        """Nothing: a hook prepares once."""

    def hold(self, deadline: Deadline) -> HeldApplication:
        held = super().hold(deadline)
        remarks = [self._not_prepared, held.detail]
        return replace(held, detail="; ".join(each for each in remarks if each))

    def testify(self, deadline: Deadline) -> Testimony:
        witness, position, answering, detail = None, "", False, ""
        try:
            said = _call(self._path, "testify", deadline.within(self._seconds))
            witness, position, detail, answering = said.witness, said.position, said.rest, True
        except ApplicationError as error:
            detail = str(error)
        return Testimony(
            kind=KIND,
            name=self.name,
            answering=answering,
            witness=witness,
            wal_replayed_bytes=None,
            repair_ran=None,
            position=position,
            detail=detail,
        )

    def _arguments(self) -> Mapping[str, Any]:
        return {"path": str(self._path), "seconds": self._seconds}


class HookHolder:
    """One hook in the dead-man's process (`deadman.Holder`)."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._frozen = False

    def open(self, deadline: Deadline) -> Mapping[str, Any]:
        return {}

    def hold(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """→ `{"position", "witness", "remarks"}`."""
        said = _call(self._path, "freeze", deadline)
        self._frozen = True
        remarks = [said.rest] if said.rest else []
        return {"position": said.position, "witness": said.witness, "remarks": remarks}

    def ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """That it is asked and answers is all: a hook has no say between freeze and thaw."""
        return {}

    def release(self, deadline: Deadline) -> None:
        _call(self._path, "thaw" if self._frozen else "abort", deadline.within(self._seconds))


def make_holder(arguments: Mapping[str, Any]) -> HookHolder:
    """The part that runs in the dead-man's process."""
    return HookHolder(Path(arguments["path"]), arguments["seconds"])


def discover(
    configured: Sequence[ApplicationConfig], look: bool, directory: Path = DIRECTORY
) -> list[Hook]:
    """The executable files of the directory by their names, and the configuration's.

    An entry of the same name sets the time limit of one that was found.
    """
    entries = {entry.name: entry for entry in configured}
    found = []
    for path in sorted(directory.iterdir()) if look and directory.is_dir() else ():
        if _NAME.match(path.name) and path.is_file() and os.access(path, os.X_OK):
            entry = entries.pop(path.name, None)
            seconds = entry.number("seconds", _DEFAULT_SECONDS) if entry else _DEFAULT_SECONDS
            found.append(Hook(path.name, path, seconds))
    for entry in entries.values():
        command = entry.text("command")
        if command is None:
            continue
        if not command.startswith("/"):
            raise ConfigError(f"applications: command of {entry.name} must be an absolute path.")
        seconds = entry.number("seconds", _DEFAULT_SECONDS)
        found.append(Hook(entry.name, Path(command), seconds))
    return found


def why_not_trusted(path: Path) -> str:
    """Empty when only root can have written the program, else who else could.

    Every directory on the way counts: whoever may write one of them may put
    another program in its place.
    """
    for part in (*reversed(path.parents), path):
        try:
            found = part.lstat()
        except OSError as error:
            return f"{part} cannot be looked at: {error.strerror}"
        if stat.S_ISLNK(found.st_mode):
            return f"{part} is a symbolic link"
        if found.st_uid != 0 or found.st_mode & 0o022:
            return f"{part} must belong to root and be writable by root alone"
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o100:
        return f"{path} is not an executable file"
    return ""


def _call(path: Path, word: str, deadline: Deadline) -> _Said:
    """Run the hook with one word. Raises ApplicationError when it does not end well in time."""
    if refusal := why_not_trusted(path):
        raise ApplicationError(refusal)
    outcome = run_command([str(path), word], deadline)
    position, witness, rest = "", None, []
    for line in outcome.output.splitlines():
        name, colon, value = line.partition(":")
        if colon and name == "position":
            position = value.strip()[:_MAX_POSITION]
        elif colon and name == "witness":
            witness = value.strip()[:_MAX_WITNESS]
        else:
            rest.append(line)
    said = "; ".join(rest)[:_MAX_DETAIL]
    if outcome.status:
        told = f": {said}" if said else ""
        raise ApplicationError(f"{path} {word} ended with status {outcome.status}{told}")
    return _Said(position, witness, said)
