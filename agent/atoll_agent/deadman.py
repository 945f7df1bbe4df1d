"""A process that holds an application whose hold outlives the connection that took it.

A lock that ends with its session needs nothing but the session's death. Others
stay when everybody is gone: MongoDB's `fsyncLock`, Redis' `CLIENT PAUSE`, a
hook that has run, a database told to suspend its writes. For these the module
writes a `Holder`, and this process alone runs it: it takes the hold when told
to, and releases it when told to, when the agent dies (end of file), when the
watchdog kills its *fuse*, when a time of its own passes, or on SIGTERM. An
agent that was stopped for a while can therefore not hold anything late, and
one that was killed leaves a process that lets go.

The watchdog ends a broken hold with SIGKILL to the sessions that
`Application.open` returned. This process must outlive that to release, so what
`open` returns is the fuse: a fork that waits for nothing, and whose death this
process notices.

A release that fails is repeated until `release_seconds` have passed. From its
start until it has released, a file in `/run/atoll-agent` names this process;
one that is left over tells the next agent to release (`Lifeline.recover`).

The agent's end is `lifeline.Lifeline`. Input is one line of JSON (`Orders`),
then one line of JSON for each call, `{"id": …, "call": "open" | "hold" | "ask" |
"release", "seconds": …, "arguments": {…}}`; each is answered with one line,
`{"id": …, "answer": {…}}` or `{"id": …, "error": "…"}`. `{"ended": "…"}` comes
unasked, when it has let go by itself.

A module's part:

    def make_holder(arguments: Mapping[str, Any]) -> Holder    # in its module, named by kind

`arguments` came over the pipe, so a password may be among them. A holder writes
no file and no log while it holds: file systems may be frozen around it. It may
start programs, which then must not write either.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.watchdog import stay_in_memory

_PR_SET_PDEATHSIG = 1
_RETRY_SECONDS = 0.5
_TICK_SECONDS = 1.0


class Holder(Protocol):
    """One application, seen from the dead-man's process. All calls come from one thread.

    Every call obeys its deadline and raises ApplicationError when it fails.
    """

    def open(self, deadline: Deadline) -> Mapping[str, Any]:
        """Connect, so that hold and release need no new connection. Holds nobody up.

        An answer whose `holds` is true says that there is something to release already.
        """
        ...

    def hold(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """Take the hold; the answer is what `outliving` reads. After a failure `release` follows."""
        ...

    def ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """Whether it is ready or still held, as `outliving` asks, or what a module asks besides."""
        ...

    def release(self, deadline: Deadline) -> None:
        """Let go, also of a hold that failed half-way or was lost. Repeatable.

        Returns only when it is sure that nothing is held any more. It is only
        called after `hold` was or `open` held, on a new connection if the old one is gone.
        """
        ...


@dataclass(frozen=True)
class Orders:
    """Which holder to run. `hold_seconds` count from the call of `hold`, `armed_seconds` before it.

    `record` is the file that names this process while it may hold something;
    `may_hold` says that an earlier process may have left it held.
    """

    module: str
    arguments: Mapping[str, Any]
    record: Path
    may_hold: bool
    armed_seconds: float
    hold_seconds: float
    release_seconds: float


def main() -> int:
    """Serve one hold, from orders to release."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(wake_write, b"s"))
    line, rest = _read_line(b"")
    given = json.loads(line)
    orders = Orders(**{**given, "record": Path(given["record"])})
    holder: Holder = importlib.import_module(orders.module).make_holder(orders.arguments)
    fuse = _light_fuse()
    stay_in_memory()
    _write_record(orders.record)
    _say(id=0, answer={"fuse": fuse})
    try:
        return _DeadMan(orders, holder, fuse, wake_read, rest).run()
    finally:
        with suppress(ProcessLookupError):
            os.kill(fuse, signal.SIGKILL)


class _DeadMan:
    """Waits for the first of: a call, the agent's death, the fuse's death, its time, a signal."""

    def __init__(self, orders: Orders, holder: Holder, fuse: int, wake: int, rest: bytes) -> None:
        self._orders = orders
        self._holder = holder
        self._fuse = os.pidfd_open(fuse)
        self._wake = wake
        self._input = rest
        self._deadline = Deadline(orders.armed_seconds)
        self._limit = f"no hold began within {orders.armed_seconds:g} s"
        self._may_hold = orders.may_hold

    def run(self) -> int:
        while True:
            while b"\n" in self._input:
                line, _, self._input = self._input.partition(b"\n")
                call = json.loads(line)
                if call["call"] == "release":
                    return self._end("", call["id"])
                # Whoever went away while we worked is noticed before the next call.
                if reason := self._broken(0):
                    return self._end(reason)
                self._answer(call)
            if reason := self._broken(min(self._deadline.remaining, _TICK_SECONDS)):
                return self._end(reason)

    def _broken(self, seconds: float) -> str:
        """Take input for at most `seconds`; returns why the hold is over, if it is."""
        if self._deadline.passed:
            return self._limit
        ready, _, _ = select.select([0, self._fuse, self._wake], [], [], seconds)
        if self._fuse in ready:
            return "the watchdog ended it"
        if self._wake in ready:
            return "its process was told to stop"
        if 0 in ready:
            received = os.read(0, 65536)
            if not received:
                return "the agent died"
            self._input += received
        return ""

    def _answer(self, call: Mapping[str, Any]) -> None:
        deadline = Deadline(call["seconds"])
        try:
            if call["call"] == "open":
                answer = self._holder.open(deadline)
                self._may_hold |= bool(answer.get("holds"))
            elif call["call"] == "hold":
                self._may_hold = True
                self._deadline = Deadline(self._orders.hold_seconds)
                self._limit = f"{self._orders.hold_seconds:g} s passed without a release"
                answer = self._holder.hold(call["arguments"], deadline)
            else:
                answer = self._holder.ask(call["arguments"], deadline)
        except ApplicationError as error:
            _say(id=call["id"], error=str(error))
        except Exception as error:  # noqa: BLE001 - what a module got wrong must still be released
            _say(id=call["id"], error=f"the module failed: {error!r}")
        else:
            _say(id=call["id"], answer=dict(answer))

    def _end(self, reason: str, asked: int | None = None) -> int:
        """Release until it is done or the time for it is over; the record stays if it is not."""
        limit = Deadline(self._orders.release_seconds)
        failure = self._release(limit)
        while failure and not limit.passed:
            time.sleep(_RETRY_SECONDS)
            failure = self._release(limit)
        if failure:
            _say(id=asked, error=f"it could not be released: {failure}")
            return 1
        self._orders.record.unlink(missing_ok=True)
        if asked is None:
            _say(ended=reason)
        else:
            _say(id=asked, answer={})
        return 0

    def _release(self, limit: Deadline) -> str:
        """One attempt; returns an empty string or why it failed."""
        if not self._may_hold:
            return ""
        try:
            # An attempt that hangs must leave time for another one.
            self._holder.release(limit.within(max(limit.remaining / 4, _RETRY_SECONDS)))
        except ApplicationError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - and must be tried again
            return f"the module failed: {error!r}"
        return ""


def _light_fuse() -> int:
    """Fork the process whose death tells that the watchdog has ended the hold; returns its id."""
    parent = os.getpid()
    fuse = os.fork()
    if fuse:
        return fuse
    # It must not outlive us and so keep the agent's pipe or a watchdog's pidfd busy.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.closerange(0, 3)
    while os.getppid() == parent:
        signal.pause()
    os._exit(0)


def _write_record(record: Path) -> None:
    record.parent.mkdir(mode=0o700, exist_ok=True)
    beside = record.with_suffix(".new")
    beside.write_text(json.dumps({"pid": os.getpid(), "started": start_time(os.getpid())}))
    beside.rename(record)


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), stat); 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


def _read_line(received: bytes) -> tuple[bytes, bytes]:
    while b"\n" not in received:
        part = os.read(0, 65536)
        if not part:
            raise SystemExit(1)
        received += part
    line, _, rest = received.partition(b"\n")
    return line, rest


def _say(**event: Any) -> None:
    # Nobody may be left to hear it, which must not keep us from releasing.
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
