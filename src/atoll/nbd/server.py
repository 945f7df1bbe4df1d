"""A read-only NBD server over a UNIX socket: a disk of a restore point for QEMU, not restored first.

Fixed newstyle negotiation and simple replies. Source: the NBD project's doc/proto.md.
"""

import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from atoll.model.errors import RestoreTargetError
from atoll.model.readers import BlockReader

_INIT = b"NBDMAGICIHAVEOPT"
_OPTION_MAGIC = b"IHAVEOPT"
_OPTION_REPLY = 0x3E889045565A9
_REQUEST, _REPLY = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _LIST, _INFO, _GO = 1, 2, 3, 6, 7
_ACK, _SERVER, _INFORMATION = 1, 2, 3
_UNSUPPORTED, _INVALID, _UNKNOWN = 0x80000001, 0x80000003, 0x80000006
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
# has flags, read-only, several connections see the same
_FLAGS = 1 | 2 | 1 << 8
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _CACHE, _ZERO = range(7)
_EPERM, _EIO, _EINVAL = 1, 5, 22
_MAX_OPTION_BYTES = 64 << 10
_MAX_OPTIONS = 64
_MAX_PAYLOAD_BYTES = 32 << 20
_PREFERRED_BYTES = 64 << 10
_WORKERS = 4
_IN_FLIGHT = 16


class NbdExport:
    """Serves `reader` as export `name` while the `with` block lasts; gives the `nbd+unix://` address.

    Any number of clients at once, each with several requests in flight. Writes
    are refused. A client that talks nonsense is disconnected and disturbs no
    other. Read errors of the reader reach the client as I/O errors and stay in
    `read_errors`. The socket is for this user alone. Raises RestoreTargetError
    when the socket cannot be made.
    """

    def __init__(self, reader: BlockReader, socket_path: Path, name: str = "disk") -> None:
        self._reader = reader
        self._path = socket_path
        self._name = name
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        self.read_errors: list[Exception] = []

    @property
    def uri(self) -> str:
        """The address for QEMU."""
        return f"nbd+unix:///{quote(self._name, safe='')}?socket={quote(str(self._path))}"

    def __enter__(self) -> str:
        """Listen, and give the address."""
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._clear_leftover()
            # The mode of a socket file is the socket's own at bind: no moment of being open to all.
            os.fchmod(self._listener.fileno(), 0o600)
            self._listener.bind(str(self._path))
            self._listener.listen(16)
        except OSError as error:
            self._listener.close()
            raise RestoreTargetError(
                f"No NBD socket can be made at {self._path} ({error.strerror or error}); choose a"
                " shorter or another path."
            ) from error
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._acceptor.start()
        return self.uri

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect every client and remove the socket."""
        with self._lock:
            self._closing = True
            clients = dict(self._clients)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for client in clients:
            _hang_up(client)
        for thread in clients.values():
            thread.join()
        self._path.unlink(missing_ok=True)

    def _clear_leftover(self) -> None:
        """A socket nobody listens on was left by a process that was killed."""
        # Connecting to what is no socket is refused in the same way, and must cost nobody a file.
        if not self._path.is_socket():
            return
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink(missing_ok=True)
            except FileNotFoundError:
                return

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the listener was shut down
            with self._lock:
                if self._closing:
                    client.close()
                    return
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._clients[client] = thread
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._negotiate(client):
                self._transmit(client)
        except (OSError, EOFError):
            pass  # the client is gone, or is not worth talking to: its connection ends either way
        finally:
            with self._lock:
                self._clients.pop(client, None)
            client.close()

    def _negotiate(self, client: socket.socket) -> bool:
        """True when the client goes on to read."""
        client.sendall(_INIT + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
        (flags,) = struct.unpack(">I", _exactly(client, 4))
        if flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
            return False
        for _ in range(_MAX_OPTIONS):
            magic, option, length = struct.unpack(">8sII", _exactly(client, 16))
            if magic != _OPTION_MAGIC or length > _MAX_OPTION_BYTES:
                return False
            data = _exactly(client, length)
            if option == _EXPORT_NAME:
                if not self._is_ours(data):
                    return False
                client.sendall(struct.pack(">QH", self._reader.size_bytes, _FLAGS))
                client.sendall(b"" if flags & _NO_ZEROES else bytes(124))
                return True
            if option == _ABORT:
                _answer(client, option, _ACK)
                return False
            if option == _LIST:
                if data:
                    _answer(client, option, _INVALID)
                else:
                    name = self._name.encode()
                    _answer(client, option, _SERVER, struct.pack(">I", len(name)) + name)
                    _answer(client, option, _ACK)
            elif option in (_INFO, _GO):
                if self._describe(client, option, data) and option == _GO:
                    return True
            else:
                _answer(client, option, _UNSUPPORTED)
        return False

    def _describe(self, client: socket.socket, option: int, data: bytes) -> bool:
        length = int.from_bytes(data[:4], "big")
        name, rest = data[4 : 4 + length], data[4 + length :]
        if len(data) < 6 or len(rest) < 2 or len(rest) != 2 + 2 * int.from_bytes(rest[:2], "big"):
            _answer(client, option, _INVALID)
            return False
        if not self._is_ours(name):
            _answer(client, option, _UNKNOWN)
            return False
        export = struct.pack(">HQH", _INFO_EXPORT, self._reader.size_bytes, _FLAGS)
        sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, _PREFERRED_BYTES, _MAX_PAYLOAD_BYTES)
        _answer(client, option, _INFORMATION, export)
        _answer(client, option, _INFORMATION, sizes)
        _answer(client, option, _ACK)
        return True

    def _is_ours(self, name: bytes) -> bool:
        return name in (b"", self._name.encode())  # the empty name asks for the default export

    def _transmit(self, client: socket.socket) -> None:
        sending = threading.Lock()
        free = threading.BoundedSemaphore(_IN_FLIGHT)

        def reply(cookie: int, error: int, content: bytes = b"") -> None:
            with sending:
                client.sendall(struct.pack(">IIQ", _REPLY, error, cookie) + content)

        def read(cookie: int, offset: int, length: int) -> None:
            try:
                reply(cookie, *self._read(offset, length))
            except OSError:
                _hang_up(client)  # half a reply may be out: nothing more can be said on it
            finally:
                free.release()

        # A pool for each client: one that stops listening holds up nobody else.
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="nbd-read") as pool:
            try:
                while True:
                    magic, _, kind, cookie, offset, length = struct.unpack(
                        ">IHHQQI", _exactly(client, 28)
                    )
                    if magic != _REQUEST or kind == _DISCONNECT:
                        return
                    if kind == _READ and length <= _MAX_PAYLOAD_BYTES:
                        free.acquire()
                        pool.submit(read, cookie, offset, length)
                    elif kind == _WRITE:
                        if length > _MAX_PAYLOAD_BYTES:
                            return
                        _exactly(client, length)
                        reply(cookie, _EPERM)
                    elif kind in (_TRIM, _ZERO):
                        reply(cookie, _EPERM)
                    else:
                        reply(cookie, 0 if kind in (_FLUSH, _CACHE) else _EINVAL)
            finally:
                _hang_up(client)

    def _read(self, offset: int, length: int) -> tuple[int, bytes]:
        """(error, content) as NBD has it."""
        if offset + length > self._reader.size_bytes:
            return _EINVAL, b""
        try:
            return 0, self._reader.read(offset, length)
        except Exception as error:  # noqa: BLE001 - kept, and an I/O error to the client
            with self._lock:
                self.read_errors.append(error)
            return _EIO, b""


def _exactly(client: socket.socket, length: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < length:
        piece = client.recv(min(length - len(pieces), 1 << 20))
        if not piece:
            raise EOFError
        pieces += piece
    return bytes(pieces)


def _answer(client: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
    client.sendall(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(data)) + data)


def _hang_up(client: socket.socket) -> None:
    with suppress(OSError):  # it may be gone already
        client.shutdown(socket.SHUT_RDWR)
