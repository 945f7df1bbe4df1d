"""QEMU's two JSON protocols over UNIX sockets: the machine's (QMP) and its guest agent's."""

import json
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from atoll_lab.guests.errors import LabGuestError, RefusedError

_GREETING_SECONDS = 30.0
_MAX_BYTES = 1 << 24


class _Channel:
    """One JSON object a line each way, with a deadline for every answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise LabGuestError(f"{path} cannot be reached ({error}); is the guest on?") from error

    def close(self) -> None:
        self._socket.close()

    def send(self, line: bytes) -> None:
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise LabGuestError(f"{self._path} was closed: {error}.") from error

    def receive(self, deadline: float) -> Any:
        """The next object; LabGuestError when none came by then."""
        while b"\n" not in self._pending:
            remaining = deadline - time.monotonic()
            self._socket.settimeout(max(remaining, 0.001))
            try:
                part = self._socket.recv(65536)
            except OSError as error:
                raise LabGuestError(f"{self._path} did not answer in time.") from error
            if not part or len(self._pending) > _MAX_BYTES:
                raise LabGuestError(f"{self._path} was closed.")
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        # The guest agent begins its answer to a sync with a byte that JSON cannot hold.
        return json.loads(line.lstrip(b"\xff"))


class Machine:
    """A connection to QEMU itself; one at a time, others wait."""

    def __init__(self, path: Path) -> None:
        self._channel = _Channel(path)
        try:
            self._channel.receive(time.monotonic() + _GREETING_SECONDS)
            self.run("qmp_capabilities")
        except BaseException:
            self._channel.close()
            raise

    def run(self, command: str, seconds: float = 60.0, **arguments: Any) -> Any:
        """Run a command and return its answer; events meanwhile are dropped.

        RefusedError when QEMU says no, LabGuestError when it says nothing.
        """
        # Python has no `-` in names.
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._channel.send(json.dumps({"execute": command, "arguments": given}).encode() + b"\n")
        deadline = time.monotonic() + seconds
        while True:
            answer = self._channel.receive(deadline)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RefusedError(f"QEMU refused {command}: {answer['error']['desc']}.")

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()


class GuestAgent:
    """A connection to the agent in the guest. LabGuestError when it does not answer in time."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._channel = _Channel(path)
        try:
            self._synchronise(seconds)
        except BaseException:
            self._channel.close()
            raise

    def run(self, command: str, seconds: float) -> Any:
        """Run a command and return its answer."""
        self._channel.send(json.dumps({"execute": command}).encode() + b"\n")
        answer = self._channel.receive(time.monotonic() + seconds)
        if "error" in answer:
            raise LabGuestError(f"The guest refused {command}: {answer['error']['desc']}.")
        return answer["return"]

    def __enter__(self) -> "GuestAgent":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def _synchronise(self, seconds: float) -> None:
        """Pass over what an earlier connection left unread (QEMU Guest Agent Protocol Reference)."""
        number = secrets.randbits(31)
        command: Mapping[str, Any] = {
            "execute": "guest-sync-delimited",
            "arguments": {"id": number},
        }
        self._channel.send(b"\xff" + json.dumps(command).encode() + b"\n")
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self._channel.receive(deadline).get("return") == number:
                    return
            except (ValueError, AttributeError):
                continue
