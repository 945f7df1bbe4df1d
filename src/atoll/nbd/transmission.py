"""The transmission phase: requests of one client, answered by a few threads of its own.

Source: doc/proto.md, "Transmission". The threads take turns at receiving: whoever has a request
lets the next one wait and answers it, so no request changes hands and nothing queues but in the
kernel. What a client has in flight takes one piece of memory for each of its threads, and a client
that stops listening stops nobody else.
"""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from atoll.model.errors import AtollError
from atoll.nbd import protocol as nbd
from atoll.nbd.channel import Buffer
from atoll.nbd.negotiation import Agreement

PIECE_BYTES = 1 << 20
"""What a thread holds of an answer at most, however much was asked for."""

_SLOW_SECONDS = 0.0002
"""A read that took longer waited for a disk or computed. One that did not is copied from memory,
where a second thread of the same client would only contend for the interpreter."""

_VALID_FLAGS = {nbd.CMD_READ: nbd.CMD_FLAG_DF, nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_REQ_ONE}
_WRITES = (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES)


class _Request(NamedTuple):
    flags: int
    kind: int
    cookie: int
    offset: int
    length: int


class _UnreadableError(Exception):
    """A range could not be read: (the first byte of the piece, what to tell the client)."""

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message


class Transmission:
    """Answers one client until it leaves.

    Up to `threads` work at once for a client that pipelines, where reading takes time.
    """

    def __init__(self, agreement: Agreement, threads: int) -> None:
        self._channel = agreement.channel
        self._export = agreement.export
        self._structured = agreement.structured
        self._contexts = agreement.contexts
        self._room = threads - 1
        self._slow = False
        self._helpers: list[threading.Thread] = []
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._ended = False

    def run(self) -> None:
        """Return when the client has left and no thread works for it any more."""
        self._work()
        # One that is joined has put all it started on the list.
        for helper in self._helpers:
            helper.join()

    def _work(self) -> None:
        clean = False
        try:
            while (request := self._next()) is not None:
                self._answer(request)
            clean = True
        except (OSError, EOFError):
            pass  # the client is gone, or half an answer is out: nothing more can be said to it
        finally:
            self._ended = True
            if not clean:
                self._channel.hang_up()

    def _next(self) -> _Request | None:
        """The next request, None when there is none to come; EOFError, OSError."""
        with self._receiving:
            if self._ended:
                return None
            magic, *fields = nbd.REQUEST.unpack(self._channel.receive(nbd.REQUEST.size))
            request = _Request(*fields)
            if magic != nbd.REQUEST_MAGIC:
                raise ConnectionError("no request")
            if request.kind == nbd.CMD_DISC:
                self._ended = True
                return None
            if request.kind == nbd.CMD_WRITE:
                if request.length > nbd.MAX_PAYLOAD_BYTES:
                    raise ConnectionError("more payload than was agreed on")
                self._channel.skip(request.length)
            if self._slow and self._room and self._channel.holds(nbd.REQUEST.size):
                self._add_helper()
            return request

    def _add_helper(self) -> None:
        """Another request has come already: another thread has work."""
        self._room -= 1
        helper = threading.Thread(target=self._work, name="nbd-helper", daemon=True)
        try:
            helper.start()
        except RuntimeError:
            return  # the system gives no more threads; those there are do it all
        self._helpers.append(helper)

    def _answer(self, request: _Request) -> None:
        kind = request.kind
        if kind in _WRITES:
            self._fail(request, nbd.EPERM, "This export is read-only.")
        elif request.flags & ~_VALID_FLAGS.get(kind, 0):
            self._fail(request, nbd.EINVAL, "A flag is not known for this command.")
        elif kind == nbd.CMD_FLUSH:
            self._succeed(request)
        elif kind not in (nbd.CMD_READ, nbd.CMD_BLOCK_STATUS, nbd.CMD_CACHE):
            self._fail(request, nbd.EINVAL, "This command is not known here.")
        elif request.offset + request.length > self._export.size_bytes:
            self._fail(request, nbd.EINVAL, "The range reaches past the end.")
        elif kind == nbd.CMD_CACHE:
            # Nothing is gained by it: what is behind a reader has caches of its own.
            self._succeed(request)
        elif kind == nbd.CMD_BLOCK_STATUS:
            self._describe(request)
        elif request.length > nbd.MAX_PAYLOAD_BYTES:
            # "a client should be prepared to retry with smaller requests", of structured replies
            error = nbd.EOVERFLOW if self._structured else nbd.EINVAL
            self._fail(request, error, "More was asked for than the maximum payload.")
        elif not self._structured:
            self._read_simple(request)
        elif request.length == 0:
            self._succeed(request)
        elif request.flags & nbd.CMD_FLAG_DF:
            self._read_whole(request)
        else:
            self._read_in_chunks(request)

    def _succeed(self, request: _Request) -> None:
        if self._structured:
            self._send(_header(request, nbd.REPLY_NONE, 0))
        else:
            self._send(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie))

    def _fail(self, request: _Request, error: int, message: str, offset: int | None = None) -> None:
        if self._structured:
            self._send(nbd.error_chunk(request.cookie, error, message, offset))
        else:
            self._send(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, request.cookie))

    def _describe(self, request: _Request) -> None:
        if not self._contexts or not request.length:
            self._fail(request, nbd.EINVAL, "Agree on a metadata context, and give a length.")
            return
        parts = []
        only_one = bool(request.flags & nbd.CMD_FLAG_REQ_ONE)
        for number, status in self._contexts:
            described = status.descriptors(request.offset, request.length, only_one)
            last = number == self._contexts[-1][0]
            parts += [
                _header(request, nbd.REPLY_BLOCK_STATUS, 4 + len(described), last),
                number.to_bytes(4, "big") + described,
            ]
        self._send(*parts)

    def _read_in_chunks(self, request: _Request) -> None:
        """Data and holes in chunks of their own; a hole goes with the data behind it."""
        end = request.offset + request.length
        parts: list[Buffer] = []
        try:
            for offset, length, hole in self._pieces(request):
                done = offset + length == end
                if hole:
                    parts.append(_hole(request, offset, length, done))
                else:
                    parts += [_data(request, offset, length, done), self._read(offset, length)]
                if done or not hole:
                    self._send(*parts)
                    parts.clear()
        except _UnreadableError as error:
            self._fail(request, nbd.EIO, error.message, error.offset)

    def _pieces(self, request: _Request) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether a hole) of what makes up the range, in order."""
        for offset, length, hole in self._export.holes.runs(request.offset, request.length):
            if hole or length <= PIECE_BYTES:
                yield offset, length, hole
            else:
                end = offset + length
                for at in range(offset, end, PIECE_BYTES):
                    yield at, min(PIECE_BYTES, end - at), False

    def _read_whole(self, request: _Request) -> None:
        """One content chunk, whatever is in it ("don't fragment")."""
        runs = self._export.holes.runs(request.offset, request.length)
        _, length, hole = next(runs)
        if hole and length == request.length:
            self._send(_hole(request, request.offset, length, True))
            return
        # Once its header is out, a chunk has to be completed; what failed is said in another one.
        one_piece = request.length <= PIECE_BYTES
        header = _data(request, request.offset, request.length, one_piece)
        trouble = self._send_content(request, header, pad=True)
        if trouble is not None:
            self._fail(request, nbd.EIO, trouble.message, trouble.offset)
        elif not one_piece:
            self._succeed(request)

    def _read_simple(self, request: _Request) -> None:
        header = nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)
        if not request.length:
            self._send(header)
            return
        trouble = self._send_content(request, header, pad=False)
        if trouble is not None:
            self._fail(request, nbd.EIO, trouble.message)

    def _send_content(
        self, request: _Request, header: bytes, *, pad: bool
    ) -> _UnreadableError | None:
        """The header and the whole range in one stretch; what failed, if all the same it is whole.

        Nothing was sent when the first piece fails. When another does, zeros
        stand for the rest with `pad`; without, ConnectionError ends the client.
        """
        offset, end = request.offset, request.offset + request.length
        parts: list[Buffer] = [header]
        with self._sending:
            while offset < end:
                try:
                    data = self._read(offset, min(PIECE_BYTES, end - offset))
                except _UnreadableError as error:
                    if offset > request.offset:
                        if not pad:
                            raise ConnectionError("cannot be read to the end") from error
                        self._pad(end - offset)
                    return error
                self._channel.send([*parts, data])
                parts.clear()
                offset += len(data)
        return None

    def _pad(self, length: int) -> None:
        zeros = bytes(min(length, PIECE_BYTES))
        while length > 0:
            part = zeros[: min(length, len(zeros))]
            self._channel.send([part])
            length -= len(part)

    def _read(self, offset: int, length: int) -> bytes:
        began = time.monotonic()
        try:
            data = self._export.read(offset, length)
        except AtollError as error:
            raise _UnreadableError(offset, str(error)) from error
        except Exception as error:
            # What it says was not written for whoever is on the other side.
            raise _UnreadableError(offset, "These bytes cannot be read.") from error
        if time.monotonic() - began > _SLOW_SECONDS:
            self._slow = True
        return data

    def _send(self, *parts: Buffer) -> None:
        with self._sending:
            self._channel.send(parts)


def _header(request: _Request, kind: int, length: int, done: bool = True) -> bytes:
    return nbd.CHUNK.pack(nbd.CHUNK_MAGIC, int(done), kind, request.cookie, length)


def _data(request: _Request, offset: int, length: int, done: bool) -> bytes:
    return nbd.DATA_CHUNK.pack(
        nbd.CHUNK_MAGIC, int(done), nbd.REPLY_OFFSET_DATA, request.cookie, 8 + length, offset
    )


def _hole(request: _Request, offset: int, length: int, done: bool) -> bytes:
    return nbd.HOLE_CHUNK.pack(
        nbd.CHUNK_MAGIC, int(done), nbd.REPLY_OFFSET_HOLE, request.cookie, 12, offset, length
    )
