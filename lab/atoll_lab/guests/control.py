"""The lab's own way into a guest: commands over a virtio-serial port, no network needed."""

import json
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from atoll_lab.guests.errors import LabGuestError

PORT_NAME = "io.atoll.lab.0"
_LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a shell command inside a guest came to; `status` 124 means it outlived its timeout."""

    status: int
    output: str
    errors: str


class GuestShell:
    """Runs commands as root inside a lab guest through QEMU's UNIX socket.

    Each call connects anew, so a guest may reboot between two calls. QEMU
    serves one connection at a time: calls of several threads or processes
    queue up behind each other, so keep commands short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, command: str, timeout_seconds: float = 60.0) -> CommandResult:
        """Run a command line by the guest's /bin/sh.

        The command waits while the guest boots. LabGuestError when no answer
        came in `timeout_seconds`; the command may then still have run.
        """
        identity = uuid.uuid4().hex
        request = {"id": identity, "cmd": command, "timeout": timeout_seconds}
        deadline = time.monotonic() + timeout_seconds + 1.0
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(timeout_seconds + 1.0)
            try:
                channel.connect(str(self.path))
                # The first newline ends whatever a killed caller left half-written.
                channel.sendall(b"\n" + json.dumps(request).encode() + b"\n")
                return self._await(channel, identity, deadline)
            except TimeoutError as error:
                raise LabGuestError(
                    f"The guest behind {self.path} did not answer in {timeout_seconds:.0f} s; its "
                    f"serial log ends with: {self._last_words()}"
                ) from error
            except OSError as error:
                raise LabGuestError(
                    f"The guest behind {self.path} cannot be reached ({error}); is it running?"
                ) from error

    def check(self, command: str, timeout_seconds: float = 60.0) -> str:
        """Like `run`, but only the output; LabGuestError when the status is not 0."""
        result = self.run(command, timeout_seconds)
        if result.status:
            raise LabGuestError(
                f"`{command}` ended with {result.status} inside the guest: {result.errors.strip()}"
            )
        return result.output

    def _last_words(self) -> str:
        """The end of what it wrote to its console, which lies beside the socket."""
        try:
            text = self.path.with_name("serial.log").read_text(errors="replace")
        except OSError as error:
            return f"nothing ({error.strerror})"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(lines[-_LAST_LINES:]) or "nothing"

    def _await(self, channel: socket.socket, identity: str, deadline: float) -> CommandResult:
        pending = b""
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            channel.settimeout(remaining)
            chunk = channel.recv(65536)
            if not chunk:
                raise ConnectionError("QEMU closed the channel")
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                result = _result(line, identity)
                if result is not None:
                    return result


def _result(line: bytes, identity: str) -> CommandResult | None:
    """The reply to `identity`; None for the tail of another caller's."""
    try:
        reply = json.loads(line)
    except ValueError:
        return None
    if not isinstance(reply, dict) or reply.get("id") != identity:
        return None
    return CommandResult(int(reply["rc"]), str(reply["out"]), str(reply["err"]))
