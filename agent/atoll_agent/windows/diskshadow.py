"""Runs diskshadow.exe, the requester of VSS that Windows Server brings, and reads its answers.

Its commands and their output: Microsoft Learn, "DiskShadow", "list writers",
"list shadows", "exec". What is read here is the same in every language of
Windows: identifiers, numbers and `VSS_…` names. A script is given with `/s`; a
command that fails ends it with an exit status that is not zero.
"""

import re
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError

_GUID = r"\{[0-9A-Fa-f-]{36}\}"
_SET = re.compile(rf"VSS_SHADOW_SET\b[^{{]*({_GUID})")
_WRITER = re.compile(r'^\s*\* WRITER "?([^"\n]+?)"?\s*$', re.MULTILINE)
_STATUS = re.compile(r"(\d+) \(VSS_WS_([A-Z_]+)\)")
_FAILURE = re.compile(r"(0x[0-9A-Fa-f]{8})")
_MAX_OUTPUT_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Writer:
    """A VSS writer: `state` is a VSS_WRITER_STATE without its prefix, `failure` an HRESULT."""

    name: str
    state: str
    failure: str

    @property
    def failed(self) -> bool:
        """Whether its part of the last shadow copy is not to be trusted."""
        return self.state.startswith("FAILED") or int(self.failure, 16) != 0


class Script:
    """A run of diskshadow with a script, whose output is read as it comes."""

    def __init__(self, program: str, lines: Sequence[str], file: Path) -> None:
        file.write_text("".join(f"{line}\r\n" for line in lines), encoding="utf-8", newline="")
        try:
            self._process = subprocess.Popen(
                [program, "/s", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise ApplicationError(f"{program} could not be started: {error.strerror}") from error
        self._changed = threading.Condition()
        self._output = ""
        self._ended = False
        threading.Thread(target=self._read, name="diskshadow", daemon=True).start()

    @property
    def output(self) -> str:
        """What it has written so far."""
        with self._changed:
            return self._output

    def wait(self, deadline: Deadline) -> str:
        """Its whole output once it has ended well. Raises ApplicationError with its last words."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, deadline.remaining)
            if not self._ended:
                raise ApplicationError("diskshadow did not end in time")
        if self._process.wait():
            raise ApplicationError(f"diskshadow failed: {_last_words(self._output)}")
        return self._output

    def wait_for_line(self, pattern: str, deadline: Deadline) -> str:
        """The output up to a line that matches, while it still runs. Raises ApplicationError."""
        found = re.compile(pattern, re.MULTILINE)
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or found.search(self._output), deadline.remaining
            )
            if found.search(self._output):
                return self._output
            ended = self._ended
        if ended:
            return self.wait(deadline)
        raise ApplicationError("no shadow copies were made in time")

    def end(self) -> None:
        """End it at once if it still runs. Repeatable."""
        with suppress(OSError):
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                with self._changed:
                    if len(self._output) < _MAX_OUTPUT_CHARACTERS:
                        self._output += line.decode(errors="replace").replace("\r", "")
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def run_script(program: str, lines: Sequence[str], file: Path, deadline: Deadline) -> str:
    """The output of a script that ended well. Raises ApplicationError; then it is ended."""
    script = Script(program, lines, file)
    try:
        return script.wait(deadline)
    finally:
        script.end()


def shadow_set(output: str) -> str:
    """The identifier of the set that `create` made. Raises ApplicationError when it made none."""
    found = _SET.search(output)
    if found is None:
        raise ApplicationError(f"diskshadow made no shadow copies: {_last_words(output)}")
    return found[1]


def copies_of(identifier: str, listing: str) -> int:
    """How many copies of a set `list shadows all` has; each names its set once."""
    return listing.lower().count(identifier.lower())


def read_writers(output: str) -> list[Writer]:
    """The writers of `list writers status`."""
    writers = []
    starts = [*_WRITER.finditer(output)]
    for index, start in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(output)
        text = output[start.end() : end]
        status, failure = _STATUS.search(text), _FAILURE.search(text)
        if status is not None:
            writers.append(Writer(start[1], status[2], failure[1] if failure else "0x00000000"))
    return writers


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-500:] or "it said nothing"
