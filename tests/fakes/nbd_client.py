"""A bare NBD client, for what real ones never say, and a program run on an export."""

import socket
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
DF, REQ_ONE = 4, 8
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN = (1 << 31 | n for n in (1, 2, 3, 5, 6))


class Chunk(NamedTuple):
    """A chunk of a structured reply."""

    flags: int
    kind: int
    payload: bytes


class BareClient:
    """Connected and greeted; everything else is said by the test."""

    def __init__(self, where: Path | int, flags: int = 3) -> None:
        if isinstance(where, int):
            self.socket = socket.create_connection(("127.0.0.1", where))
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(where))
        self.socket.settimeout(20)
        assert self.exactly(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.socket.sendall(struct.pack(">I", flags))

    def exactly(self, length: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            piece = self.socket.recv(length - len(pieces))
            if not piece:
                raise EOFError
            pieces += piece
        return bytes(pieces)

    def option(self, number: int, data: bytes = b"") -> None:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def answer(self) -> tuple[int, bytes]:
        magic, _, kind, length = struct.unpack(">QIII", self.exactly(20))
        assert magic == 0x3E889045565A9
        return kind, self.exactly(length)

    def answers(self) -> list[tuple[int, bytes]]:
        """All replies up to the last one of an option."""
        found = [self.answer()]
        while found[-1][0] != 1 and found[-1][0] < 1 << 31:
            found.append(self.answer())
        return found

    def attach(self, name: bytes = b"disk") -> int:
        """Into transmission with simple replies; gives the size."""
        self.option(1, name)
        size, flags = struct.unpack(">QH", self.exactly(10))
        assert flags & 3 == 3
        return size

    def go(self, name: bytes = b"disk", *contexts: bytes) -> None:
        """Into transmission with structured replies, and contexts chosen."""
        self.option(8)
        assert self.answers() == [(1, b"")]
        if contexts:
            self.option(10, meta_query(name, *contexts))
            assert len(self.answers()) == len(contexts) + 1
        self.option(7, struct.pack(">I", len(name)) + name + b"\0\0")
        assert self.answers()[-1] == (1, b"")

    def send(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, 77, offset, length))

    def simple(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"") -> int:
        """The error of a simple reply."""
        self.send(kind, offset, length)
        self.socket.sendall(data)
        magic, error, cookie = struct.unpack(">IIQ", self.exactly(16))
        assert (magic, cookie) == (SIMPLE_MAGIC, 77)
        return error

    def chunks(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0) -> list[Chunk]:
        """The structured reply, to its end."""
        self.send(kind, offset, length, flags)
        found: list[Chunk] = []
        while not found or not found[-1].flags & 1:
            magic, had, what, cookie, size = struct.unpack(">IHHQI", self.exactly(20))
            assert (magic, cookie) == (CHUNK_MAGIC, 77)
            found.append(Chunk(had, what, self.exactly(size)))
        return found

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def meta_query(name: bytes, *queries: bytes) -> bytes:
    """The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""
    counted = [struct.pack(">I", len(query)) + query for query in queries]
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) + b"".join(counted)


def error_of(chunk: Chunk) -> tuple[int, str, int | None]:
    """(error, message, offset if it has one) of an error chunk."""
    assert chunk.kind in (1 << 15 | 1, 1 << 15 | 2)
    error, length = struct.unpack_from(">IH", chunk.payload)
    rest = chunk.payload[6 + length :]
    offset = int.from_bytes(rest, "big") if chunk.kind == 1 << 15 | 2 else None
    assert len(rest) == (8 if offset is not None else 0)
    return error, chunk.payload[6 : 6 + length].decode(), offset


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
