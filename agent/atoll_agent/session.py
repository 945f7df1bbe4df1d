"""A database client kept open as a subprocess, so that its locks live exactly as long as it does."""

import os
import re
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.owners import as_owner

_MAX_ANSWER_BYTES = 1 << 20


class StillRunningError(ApplicationError):
    """The statement has not ended yet; `collect` may be called again."""


class StatementError(ApplicationError):
    """The server refused the statement; the session goes on."""


class Session:
    """One client on its server's local socket. Not thread-safe.

    Statements go to standard input, each followed by one that prints a marker
    on a line of its own; what the client writes to standard error before the
    marker is the statement's failure, and so is a line of its output that
    matches `refusal`, for clients that do not tell them apart. When the agent
    dies, the client reads end of file and leaves, and the server drops its
    locks. `terminator` ends a statement. `descriptors` are left open in the
    client, for a password that it reads from a pipe.
    """

    def __init__(
        self,
        argv: Sequence[str],
        mark: Callable[[str], str],
        environment: Mapping[str, str],
        owner: str | None,
        *,
        terminator: str = ";",
        refusal: re.Pattern[str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self._mark = mark
        self._terminator = terminator
        self._refusal = refusal
        self._count = 0
        self._answer = b""
        self._errors = b""
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **environment},
                cwd="/",
                pass_fds=descriptors,
                **as_owner(owner),
            )
        except OSError as error:
            raise ApplicationError(
                f"The client {argv[0]} could not be started: {error}."
            ) from error
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream.fileno(), selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """The client's process id."""
        return self._process.pid

    def ask(self, statement: str, deadline: Deadline) -> str:
        """Run a statement and return what it printed, without the last line break.

        Raises ApplicationError when the server refuses, the client is gone or
        the time is over; after the latter only `close` makes sense.
        """
        self.send(statement)
        return self.collect(deadline)

    def send(self, statement: str) -> None:
        """Start a statement whose answer `collect` fetches."""
        self._count += 1
        self._answer = b""
        line = f"{statement}{self._terminator}\n{self._mark(self._marker())}\n"
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError as error:
            raise self._lost() from error

    def collect(self, deadline: Deadline) -> str:
        """The answer to what was sent; StillRunningError when the deadline passes first."""
        # Some clients pad the line, and some print more after it.
        end = re.compile(rb"^[ \t]*%b[ \t]*\r?\n" % self._marker().encode(), re.MULTILINE)
        while (found := end.search(self._answer)) is None:
            if not self._receive(deadline.remaining):
                raise StillRunningError("The server did not answer in time.")
        # The client reported failures before it went on to the marker.
        self._receive(0)
        errors, self._errors = self._errors.decode(errors="replace").strip(), b""
        if errors:
            raise StatementError(_first_line(errors))
        answer = self._answer[: found.start()].decode(errors="replace").removesuffix("\n")
        if self._refusal is not None and (refused := self._refusal.search(answer)):
            raise StatementError(_first_words(answer[refused.start() :]))
        return answer

    def close(self) -> None:
        """End the client; the server rolls back and drops its locks."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _marker(self) -> str:
        return f"atoll-{self._process.pid}-{self._count}"

    def _receive(self, seconds: float) -> bool:
        """Take what has arrived within `seconds`; False when nothing has."""
        assert self._process.stdout is not None
        ready = self._selector.select(seconds)
        for key, _ in ready:
            part = os.read(key.fd, 65536)
            if key.fd == self._process.stdout.fileno():
                if not part:
                    raise self._lost()
                self._answer += part
            elif part:
                self._errors += part
            else:
                self._selector.unregister(key.fd)
        if len(self._answer) + len(self._errors) > _MAX_ANSWER_BYTES:
            raise ApplicationError(f"The answer is larger than {_MAX_ANSWER_BYTES} bytes.")
        return bool(ready)

    def _lost(self) -> ApplicationError:
        try:
            self._process.wait(1)
            _, errors = self._process.communicate(timeout=1)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            errors = b""
        # A client with a refusal of its own says on standard output why it leaves.
        told = self._answer.decode(errors="replace")
        if self._refusal is not None and (refused := self._refusal.search(told)):
            return ApplicationError(_first_words(told[refused.start() :]))
        said = _first_line((self._errors + (errors or b"")).decode(errors="replace").strip())
        return ApplicationError(said or "The connection to the server was lost.")


def _first_words(text: str) -> str:
    """The beginning of a refusal that some clients spread over lines."""
    return " ".join(line.strip() for line in text.splitlines()[:3] if line.strip())[:500]


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip(" -")]
    named = [line for line in lines if "ERROR" in line or "error:" in line]
    return named[0][:500] if named else _first_words(text)
