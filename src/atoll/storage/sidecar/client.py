"""Atoll's side of a sidecar: starts it, asks it, and tells its errors as Atoll's own."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRWPair
from typing import Any

from atoll.model import errors
from atoll.model.errors import AtollError, StorageUnreachableError

_ERRORS: dict[str, type[AtollError]] = {
    each.code: each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, AtollError)
}


class Sidecar:
    """One process started by `command`, which speaks on its standard input and output.

    Started at the first call, again after it died, and gone with this process.
    Thread-safe: a call at a time. `name` is what messages call it.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: BufferedRWPair | None = None

    def call(self, call: str, **arguments: object) -> Any:
        """What the call returns, as JSON has it; AtollError as the sidecar raised it."""
        with self._calling():
            reply = self._ask(call, arguments)
            return reply["result"]

    def read(self, call: str, **arguments: object) -> bytes:
        """The bytes a call returns."""
        with self._calling():
            reply = self._ask(call, arguments)
            return self._receive(reply["bytes"])

    def items(self, call: str, **arguments: object) -> Iterator[Any]:
        """What a call's iterator yields. Not lazy across calls: others wait until all is here."""
        with self._calling():
            parts: list[Any] = []
            reply = self._ask(call, arguments)
            while "part" in reply:
                parts += reply["part"]
                reply = self._reply()
        return iter(parts)

    def close(self) -> None:
        """End it; the next call would start it again."""
        with self._lock:
            self._end()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except AtollError:
                raise
            except BaseException:
                self._end()  # interrupted: its answer is still to come, and is not the next call's
                raise

    def _ask(self, call: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        stream = self._running()
        try:
            stream.write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            stream.flush()
        except OSError as error:
            raise self._died() from error
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        if self._stream is None:
            raise self._died()
        try:
            line = self._stream.readline()
        except OSError as error:
            raise self._died() from error
        if not line.endswith(b"\n"):
            raise self._died()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            kind = _ERRORS.get(reply["error"], StorageUnreachableError)
            raise kind(reply["message"])
        return reply

    def _receive(self, length: int) -> bytes:
        data = self._stream.read(length) if self._stream else b""
        if len(data) < length:
            raise self._died()
        return data

    def _running(self) -> BufferedRWPair:
        if self._stream is not None and self._process is not None and self._process.poll() is None:
            return self._stream
        self._end()
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise StorageUnreachableError(
                f"Cannot start the sidecar of {self._name} ({self._command[0]}): "
                f"{error.strerror}; install what docs/drivers names."
            ) from error
        finally:
            theirs.close()
        self._stream = ours.makefile("rwb")
        ours.close()  # the stream keeps it open
        return self._stream

    def _died(self) -> StorageUnreachableError:
        status = self._end()
        return StorageUnreachableError(
            f"The sidecar of {self._name} ended (status {status}); what it said last is on "
            "standard error. Try again."
        )

    def _end(self) -> int | None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
            self._stream = None
        if self._process is None:
            return None
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status
