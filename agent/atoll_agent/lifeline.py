"""The agent's end of a dead-man's process, which takes and releases a hold for a module.

How and why there is such a process: `deadman`. What an Application does with it: `outliving`.
"""

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from atoll_agent.clock import Deadline
from atoll_agent.deadman import start_time
from atoll_agent.errors import ApplicationError
from atoll_agent.protocol import MAX_BUDGET_SECONDS, MAX_LEASE_SECONDS

RECORDS = Path("/run/atoll-agent")
"""Gone after a reboot, as is what was held before it."""

ARMED_SECONDS = 180.0
"""How long a process waits for its hold; longer than the agent keeps a guest armed."""

HOLD_SECONDS = MAX_BUDGET_SECONDS + MAX_LEASE_SECONDS + 10.0
"""When it lets go by itself, should neither the agent nor the watchdog have told it to."""

RELEASE_SECONDS = 300.0

_START_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_QUICK_SECONDS = 0.1
_LEAST_SECONDS = 0.1
_SHARE = 0.9
# How long a process that has answered may take to leave.
_LEAVE_SECONDS = 1.0


class Lifeline:
    """One dead-man's process. Not thread-safe, as an Application is not."""

    def __init__(
        self, kind: str, name: str, arguments: Mapping[str, Any], records: Path = RECORDS
    ) -> None:
        self._what = f"{kind} {name}"
        self._module = f"atoll_agent.modules.{kind}"
        self._arguments = dict(arguments)
        self._record = records / f"{kind}-{name.replace(os.sep, '_')}.held"
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._calls = 0
        self._ended = ""

    @property
    def pid(self) -> int | None:
        """The process itself, which nobody should kill before it has released."""
        return None if self._process is None else self._process.pid

    def recover(self, deadline: Deadline) -> None:
        """Release what a process that was killed may have left held. Repeatable.

        Waits for a process that is still releasing. Raises ApplicationError
        when it cannot be said that all is released.
        """
        _await_end(self._record, self._what, deadline)
        if not self._record.exists():
            return
        self._start(may_hold=True)
        self._started(deadline)
        if refusal := self.close():
            raise ApplicationError(f"{self._what} may still be held: {refusal}")

    def open(self, deadline: Deadline) -> list[int]:
        """Start the process and have its holder connect; returns what the watchdog may kill.

        Raises ApplicationError; then no process is left.
        """
        self.close()
        self.recover(deadline)
        try:
            self._start(may_hold=False)
            fuse = self._started(deadline)
            self._call("open", {}, deadline)
        except ApplicationError:
            self.close(_QUICK_SECONDS)
            raise
        return [fuse]

    def hold(self, arguments: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Have the holder take the hold.

        After an ApplicationError it is being released, which is not waited for:
        the file systems want what is left of the budget.
        """
        try:
            return self._call("hold", arguments, deadline)
        except ApplicationError:
            self.close(_QUICK_SECONDS)
            raise

    def ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Ask the holder; ApplicationError says so when it has let go by itself."""
        return self._call("ask", arguments, deadline)

    def close(self, seconds: float = _CLOSE_SECONDS) -> str:
        """Release and end the process, waiting for that long. Repeatable.

        Returns an empty string, or why nothing says that it was released: then
        the process goes on trying, and `recover` after it.
        """
        if self._process is None:
            return ""
        outcome = ""
        try:
            if not self._ended:
                self._call("release", {}, Deadline(seconds))
        except ApplicationError as error:
            # One that ended by itself has released before it said so.
            outcome = "" if self._ended else str(error)
        self._drop(left=not outcome)
        if outcome and self._orphaned():
            outcome = self._release_anew(seconds)
        return outcome

    def _orphaned(self) -> bool:
        return self._record.exists() and not _process_of(self._record)

    def _release_anew(self, seconds: float) -> str:
        """The process was killed and left a hold behind: another one releases it, waited for or not."""
        try:
            self._start(may_hold=True)
            if seconds >= _CLOSE_SECONDS:
                self._started(Deadline(_START_SECONDS))
                self._call("release", {}, Deadline(seconds))
        except ApplicationError as error:
            self._drop(left=False)
            return str(error)
        # One that nobody waits for reads that we are gone, and releases.
        self._drop(left=False)
        return ""

    def _start(self, may_hold: bool) -> None:
        source = str(Path(__file__).parent.parent)
        self._received, self._ended, self._calls = b"", "", 0
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-B", "-s", "-m", "atoll_agent.deadman"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
                # The package lies in a directory or in the zipapp; both are importable like this.
                env={"PYTHONPATH": source, "PATH": os.environ.get("PATH", os.defpath)},
                # Not in our process group: what is sent to stop us must not stop it.
                start_new_session=True,
            )
        except OSError as error:
            raise ApplicationError(f"the process that holds {self._what} did not start") from error
        self._write(
            {
                "module": self._module,
                "arguments": self._arguments,
                "record": str(self._record),
                "may_hold": may_hold,
                "armed_seconds": ARMED_SECONDS,
                "hold_seconds": HOLD_SECONDS,
                "release_seconds": RELEASE_SECONDS,
            }
        )

    def _started(self, deadline: Deadline) -> int:
        """Wait until the process answers; returns its fuse."""
        return int(self._read(0, deadline.within(_START_SECONDS))["fuse"])

    def _call(self, call: str, arguments: Mapping[str, Any], deadline: Deadline) -> dict[str, Any]:
        if self._process is None or self._ended:
            raise self._lost()
        self._calls += 1
        seconds = max(deadline.remaining, _LEAST_SECONDS)
        # A little less for the process, so that we hear its reason when it obeys its deadline.
        given = {"id": self._calls, "call": call, "seconds": seconds * _SHARE}
        self._write({**given, "arguments": dict(arguments)})
        return self._read(self._calls, Deadline(seconds))

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        data = json.dumps(message).encode() + b"\n"
        # One that is gone has said why, which is read next.
        with suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]

    def _read(self, call: int, deadline: Deadline) -> dict[str, Any]:
        """The answer to that call; answers to earlier ones, which nobody waited for, are dropped."""
        while True:
            event = json.loads(self._read_line(deadline))
            if "ended" in event:
                self._ended = event["ended"]
                raise self._lost()
            if event["id"] != call:
                continue
            if "error" in event:
                raise ApplicationError(event["error"])
            answer: dict[str, Any] = event["answer"]
            return answer

    def _read_line(self, deadline: Deadline) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(deadline.remaining):
                    raise ApplicationError(f"{self._what} did not answer in time")
                part = os.read(descriptor, 65536)
                if not part:
                    raise ApplicationError(f"the process that holds {self._what} was killed")
                self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _drop(self, left: bool) -> None:
        """Close our ends, which tells a process that still runs to release and leave."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_SECONDS if left else _QUICK_SECONDS)

    def _lost(self) -> ApplicationError:
        return ApplicationError(f"{self._what} is not held: {self._ended or 'it was not opened'}")


def _await_end(record: Path, what: str, deadline: Deadline) -> None:
    """Wait for the process that a record names to release and end."""
    pid = _process_of(record)
    if not pid:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            if not selector.select(deadline.remaining):
                raise ApplicationError(f"{what} is still being released from an earlier hold")
    finally:
        os.close(descriptor)


def _process_of(record: Path) -> int:
    """The living process that a record names; 0 when it is gone."""
    try:
        named = json.loads(record.read_text())
        pid, started = int(named["pid"]), int(named["started"])
    except (OSError, ValueError, KeyError):
        return 0
    return pid if started and start_time(pid) == started else 0
