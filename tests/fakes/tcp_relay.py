"""A path that can be cut: it passes TCP connections on until told to fail."""

import contextlib
import select
import socket
import threading

from atoll.model.storage import Portal


class TcpRelay:
    """Listens on a port of its own and passes everything on to `portal`."""

    def __init__(self, portal: Portal) -> None:
        self._to = (portal.address, portal.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.portal = Portal(
            "127.0.0.1", self._listener.getsockname()[1], portal.target, portal.lun_number
        )
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent = threading.Event()
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._wake_out, self._wake_in = socket.socketpair()
        self._thread.start()

    def silence(self) -> None:
        """Swallow everything from now on, as a switch that lost its power."""
        self._silent.set()

    def reset(self) -> None:
        """Break what is connected and let nobody connect, as a controller that died."""
        self._wake_in.send(b"x")
        self._thread.join()

    def close(self) -> None:
        """End."""
        if self._thread.is_alive():
            self.reset()

    def __enter__(self) -> "TcpRelay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        waiting = select.poll()
        peers: dict[int, tuple[socket.socket, socket.socket]] = {}
        for one in (self._listener, self._wake_out):
            waiting.register(one, select.POLLIN)
        while True:
            for number, _ in waiting.poll():
                if number == self._wake_out.fileno():
                    for one in (self._listener, self._wake_in, self._wake_out):
                        one.close()
                    for one, _ in peers.values():
                        # Closing with unread data resets instead of ending in good order.
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        one.close()
                    return
                if number == self._listener.fileno():
                    here = self._listener.accept()[0]
                    there = socket.create_connection(self._to)
                    self.connections += 1
                    for one, other in ((here, there), (there, here)):
                        peers[one.fileno()] = (one, other)
                        waiting.register(one, select.POLLIN)
                    continue
                one, other = peers[number]
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = one.recv(1 << 20)
                if data and not self._silent.is_set():
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        other.sendall(data)
                elif not data:
                    waiting.unregister(one)
                    with contextlib.suppress(OSError):
                        other.shutdown(socket.SHUT_WR)
