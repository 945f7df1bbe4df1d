"""The stream to one client, in the clear or under TLS."""

import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

Buffer = bytes | memoryview

_RECEIVE_BYTES = 16 << 10
_RECORDS_BYTES = 256 << 10


class Channel:
    """A client's connection. One thread at a time receives, one at a time sends.

    `until` bounds everything by a moment of the monotonic clock, after which
    it raises TimeoutError. A client that is gone is EOFError or OSError.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = b""
        self._taken = 0
        self._deadline: float | None = None

    def until(self, deadline: float | None) -> None:
        """Bound what follows; None bounds nothing."""
        self._deadline = deadline
        self._socket.settimeout(None)

    def receive(self, length: int) -> bytes:
        """Exactly `length` bytes; EOFError when the client ends before."""
        held = self._received
        end = self._taken + length
        if end <= len(held):
            start, self._taken = self._taken, end
            return held[start:end]
        pieces = [held[self._taken :]]
        missing = length - len(pieces[0])
        self._received, self._taken = b"", 0
        while missing > 0:
            piece = self._some()
            if not piece:
                raise EOFError
            pieces.append(piece[:missing])
            if len(piece) > missing:
                self._received, self._taken = piece, missing
            missing -= len(piece)
        return b"".join(pieces)

    def skip(self, length: int) -> None:
        """Take as many bytes and forget them."""
        while length > 0:
            length -= len(self.receive(min(length, _RECEIVE_BYTES)))

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send all parts, one behind the other."""
        self._limit()
        sent = self._socket.sendmsg(parts)
        for part in parts:
            if sent < len(part):
                self._socket.sendall(memoryview(part)[sent:])
                sent = 0
            else:
                sent -= len(part)

    def under_tls(self, context: ssl.SSLContext) -> "Channel":
        """The same connection once it is encrypted; OSError when it cannot be."""
        if self._taken < len(self._received):
            # Sent before encryption began, it may be anyone's: nothing of it may count after.
            raise ConnectionError("bytes were sent between STARTTLS and its answer")
        return _TlsChannel(self._socket, context, self._deadline)

    def holds(self, length: int) -> bool:
        """Whether as many bytes were received already and not yet taken."""
        return len(self._received) - self._taken >= length

    def hang_up(self) -> None:
        """End the connection under whoever sends or receives on it."""
        with suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and let go of it; nobody may use it any more."""
        self.hang_up()
        self._socket.close()

    def _some(self) -> bytes:
        """What is there, at least a byte; nothing at the end."""
        self._limit()
        return self._socket.recv(_RECEIVE_BYTES)

    def _limit(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)


class _TlsChannel(Channel):
    """Encrypts in memory under a lock of its own.

    OpenSSL allows one thread in a connection at a time, and here one waits for
    requests while others answer: the waiting is done outside of it.
    """

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, deadline: float | None
    ) -> None:
        super().__init__(connection)
        self._deadline = deadline
        self._lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while not self._shaken():
            self._flush()
            if not self._feed():
                raise ConnectionError("the client ended the connection during the TLS handshake")
        self._flush()

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send all parts, one behind the other."""
        for part in parts:
            view = memoryview(part)
            while view:
                with self._lock:
                    view = view[self._tls.write(view[:_RECORDS_BYTES]) :]
                    records = self._outgoing.read()
                self._limit()
                self._socket.sendall(records)

    def _some(self) -> bytes:
        while True:
            # An answer of TLS's own to what is read waits for the next thing that is sent.
            with self._lock, suppress(ssl.SSLWantReadError):
                return self._tls.read(_RECEIVE_BYTES)
            if not self._feed():
                return b""

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            self._flush()  # the alert that tells the client why
            raise
        return True

    def _feed(self) -> bool:
        """Wait for bytes of the client; False at their end."""
        piece = super()._some()
        with self._lock:
            self._incoming.write(piece)
        return bool(piece)

    def _flush(self) -> None:
        if records := self._outgoing.read():
            self._limit()
            self._socket.sendall(records)
