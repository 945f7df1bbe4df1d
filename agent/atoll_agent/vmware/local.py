"""The UNIX socket on which VMware Tools' script talks to whoever holds, in this guest alone.

One line of JSON each way: `{"op": "freeze" | "freezeFail" | "thaw"}` is
answered with `{"account": "…" | null}` once it is done.
"""

import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from pathlib import Path

SERVICE = "agent.sock"
"""The socket of an agent that serves."""

HOLDER = "vmware-holder.sock"
"""The socket of a process that lives for one hold, where no agent serves."""

OPERATIONS = ("freeze", "freezeFail", "thaw")

_MAX_REQUEST_BYTES = 256
_MAX_ANSWER_BYTES = 65536
_REQUEST_SECONDS = 5.0
_POLL_SECONDS = 3600.0


class LocalServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers root, and nobody else, at `directory`/`name`. `act` does what is asked."""

    daemon_threads = True

    def __init__(self, directory: Path, name: str, act: Callable[[str], str | None]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / name
        self.act = act
        # One that is alive would be asked, not replaced: the script looks before it starts any.
        self._path.unlink(missing_ok=True)
        super().__init__(str(self._path), _Handler)
        self._path.chmod(0o600)

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,), daemon=True).start()

    def stop(self) -> None:
        """Take no more requests; those under way go on. To be called after `start`."""
        # Wakes the thread that waits for a request, which would otherwise do so for an hour.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()
        self._path.unlink(missing_ok=True)

    def verify_request(self, request: object, client_address: object) -> bool:
        """The kernel says who asks; the file's mode keeps others away already."""
        assert isinstance(request, socket.socket)
        peer = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", peer)
        return user in {0, os.geteuid()}


class _Handler(socketserver.StreamRequestHandler):
    timeout = _REQUEST_SECONDS
    server: LocalServer

    def handle(self) -> None:
        try:
            given = json.loads(self.rfile.readline(_MAX_REQUEST_BYTES))
            operation = given["op"]
        except (ValueError, KeyError, TypeError, OSError):
            return
        if operation not in OPERATIONS:
            return
        answer = json.dumps({"account": self.server.act(operation)}).encode() + b"\n"
        try:
            self.wfile.write(answer)
        except OSError:
            # The script was killed or gave up: nobody will ask for the thaw of what it wanted held.
            if operation == "freeze":
                self.server.act("freezeFail")


def ask(directory: Path, name: str, operation: str, seconds: float) -> str | None:
    """Have it done and return the account, None when there was nothing to do.

    Raises OSError when nobody answers in time or at all.
    """
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(seconds)
        channel.connect(str(directory / name))
        channel.sendall(json.dumps({"op": operation}).encode() + b"\n")
        received = b""
        while not received.endswith(b"\n"):
            part = channel.recv(_MAX_ANSWER_BYTES)
            if not part or len(received) > _MAX_ANSWER_BYTES:
                raise ConnectionError("the agent hung up")
            received += part
    try:
        account = json.loads(received)["account"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionError("the agent's answer makes no sense") from error
    return None if account is None else str(account)
