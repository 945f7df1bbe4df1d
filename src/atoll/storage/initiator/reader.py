"""Reads a LUN that does not change over one or several portals."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from atoll.model.extents import Extent
from atoll.model.storage import Portal
from atoll.storage.backend import Chap
from atoll.storage.initiator.errors import IscsiError, ScsiCommandError, WrongLunError
from atoll.storage.initiator.lun import IscsiLun
from atoll.storage.initiator.vital import Inquiry

_PIECE_BYTES = 1 << 20
_BATCH_EXTENTS = 64
_BLOCK_BYTES = 4096
"""Reads are made of whole blocks of this size, which every LUN's block size divides."""

_PATIENCE_SECONDS = 15.0
"""An array's other controller takes a while."""

_PAUSE_SECONDS = 1.0
_AVOID_SECONDS = 30.0
_NOT_READY = 2
"""Sense key of a port that is in standby, unavailable or in transition (SPC-4, 5.15.2.4)."""

_Result = TypeVar("_Result")


class IscsiReader:
    """A BlockReader over a LUN.

    It has several sessions, spread over the portals. When a portal stops
    answering, for `timeout_seconds` or with a word, sessions go on over another
    one. TargetUnreachableError when all were tried for `patience_seconds`; when
    none lets us in, that is said after one round.
    Every portal must lead to the LUN with this NAA name, or else to the one the
    first portal led to: WrongLunError.
    """

    def __init__(
        self,
        portals: Sequence[Portal],
        initiator: str,
        *,
        naa: str | None = None,
        chap: Chap | None = None,
        connections: int = 2,
        timeout_seconds: int = 20,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._paths = _Paths(
            tuple(portals), initiator, naa, chap, timeout_seconds, patience_seconds
        )
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        self._all = [_Lane(self._paths, number) for number in range(connections)]
        self._workers = ThreadPoolExecutor(connections, thread_name_prefix="iscsi-reader")
        for lane in self._all:
            self._lanes.put(lane)
        try:
            self._size_bytes = self._on_lane(IscsiLun.read_capacity)
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        return self._read_each([Extent(offset, length)])[0]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, in pieces of at most 1 MiB, read ahead over all sessions."""
        under_way: deque[tuple[list[Extent], Future[list[bytes]]]] = deque()
        try:
            for batch in _batches(extents, self._size_bytes):
                if self._paths.closing.is_set():
                    raise _closed()
                under_way.append((batch, self._workers.submit(self._read_each, batch)))
                if len(under_way) > len(self._all):
                    yield from _results(*under_way.popleft())
            while under_way:
                yield from _results(*under_way.popleft())
        finally:
            for _, waiting in under_way:
                waiting.cancel()

    def holes(self) -> Iterable[Extent]:
        """Ranges the LUN says are unmapped, in order; none when it says nothing."""
        return self._on_lane(lambda lun: list(lun.holes()))

    def close(self) -> None:
        """Log out everywhere, after reads that are under way. Closing twice is harmless."""
        self._paths.closing.set()
        self._workers.shutdown()
        for lane in [self._lanes.get() for _ in self._all]:
            lane.close()
            self._lanes.put(lane)

    def _read_each(self, extents: Sequence[Extent]) -> list[bytes]:
        """The bytes of each extent, cut at the end; they may begin and end anywhere."""
        wanted, whole = [], []
        for extent in extents:
            end = max(min(extent.end, self._size_bytes), extent.offset)
            start = extent.offset // _BLOCK_BYTES * _BLOCK_BYTES
            last = min(-(-end // _BLOCK_BYTES) * _BLOCK_BYTES, self._size_bytes)
            wanted.append((extent.offset - start, end - extent.offset))
            whole.append(Extent(start, max(last - start, 0)))
        blocks = self._on_lane(lambda lun: lun.read_each(whole))
        return [
            block if size == len(block) else block[skip : skip + size]
            for (skip, size), block in zip(wanted, blocks, strict=True)
        ]

    def _on_lane(self, action: Callable[[IscsiLun], _Result]) -> _Result:
        lane = self._lanes.get()
        try:
            return lane.do(action)
        finally:
            self._lanes.put(lane)


class _Paths:
    """The portals of one LUN, and which of them are not worth a try just now."""

    def __init__(
        self,
        portals: tuple[Portal, ...],
        initiator: str,
        naa: str | None,
        chap: Chap | None,
        timeout_seconds: int,
        patience_seconds: float,
    ) -> None:
        self._portals = portals
        self._initiator = initiator
        self._chap = chap
        self._timeout_seconds = timeout_seconds
        self.patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._naa = naa
        self._known: Inquiry | None = None
        self._avoided: dict[Portal, float] = {}
        self.closing = threading.Event()

    def order(self, first: int) -> list[Portal]:
        """All portals beginning with one of them, those that failed lately last."""
        turned = [self._portals[(first + step) % len(self._portals)] for step in range(self.count)]
        now = time.monotonic()
        with self._lock:
            return sorted(turned, key=lambda portal: self._avoided.get(portal, 0) > now)

    @property
    def count(self) -> int:
        """How many portals there are."""
        return len(self._portals)

    def avoid(self, portal: Portal) -> None:
        """A portal failed."""
        with self._lock:
            self._avoided[portal] = time.monotonic() + _AVOID_SECONDS

    def open(self, portal: Portal) -> IscsiLun:
        """Log in over a portal; what is reached must be what was reached before."""
        lun = IscsiLun(
            _address(portal), portal.target, portal.lun_number, self._initiator, chap=self._chap,
            timeout_seconds=self._timeout_seconds, reconnect=False,
        )  # fmt: skip
        try:
            self._check(portal, lun.inquiry())
        except BaseException:
            lun.close()
            raise
        return lun

    def _check(self, portal: Portal, found: Inquiry) -> None:
        with self._lock:
            if self._known is None and self._naa in (None, found.naa):
                self._known = found
            if found == self._known:
                return
            wanted = self._known.naa if self._known else self._naa
        raise WrongLunError(
            f"LUN {portal.lun_number} of {portal.target} at {_address(portal)} is {found.naa} "
            f"(serial {found.serial}) and not {wanted}; correct the portals."
        )


class _Lane:
    """One session, over whichever portal works; used by one thread at a time."""

    def __init__(self, paths: _Paths, number: int) -> None:
        self._paths = paths
        self._number = number
        self._lun: IscsiLun | None = None
        self._portal: Portal | None = None

    def do(self, action: Callable[[IscsiLun], _Result]) -> _Result:
        """Do something with the LUN, again over other portals if one fails meanwhile."""
        failure = _closed()
        if self._lun is not None and not self._paths.closing.is_set():
            try:
                return action(self._lun)
            except IscsiError as error:
                failure = self._failed(error)
        deadline = time.monotonic() + self._paths.patience_seconds
        pause = 0.0
        while not self._paths.closing.wait(pause):
            hopeless = True
            for portal in self._paths.order(self._number):
                try:
                    self._portal = portal
                    self._lun = self._paths.open(portal)
                    return action(self._lun)
                except IscsiError as error:
                    failure = self._failed(error)
                    hopeless = hopeless and not failure.retryable
            if hopeless or time.monotonic() > deadline:
                break
            pause = pause * 2 or _PAUSE_SECONDS
        raise failure

    def close(self) -> None:
        """Log out."""
        lun, self._lun = self._lun, None
        if lun is not None:
            lun.close()

    def _failed(self, error: IscsiError) -> IscsiError:
        """Give the portal up, unless it did its part and the LUN itself failed."""
        if isinstance(error, ScsiCommandError) and error.sense[0] != _NOT_READY:
            raise error
        self.close()
        if self._portal is not None:
            self._paths.avoid(self._portal)
        return error


def _closed() -> IscsiError:
    return IscsiError("The reader of this LUN was closed; open it again.")


def _address(portal: Portal) -> str:
    host = f"[{portal.address}]" if ":" in portal.address else portal.address
    return f"{host}:{portal.port}"


def _batches(extents: Iterable[Extent], size_bytes: int) -> Iterator[list[Extent]]:
    """Pieces to be read at once: about a MiB of them."""
    batch: list[Extent] = []
    room = _PIECE_BYTES
    for extent in extents:
        end = min(extent.end, size_bytes)
        for offset in range(extent.offset, end, _PIECE_BYTES):
            piece = Extent(offset, min(_PIECE_BYTES, end - offset))
            if batch and (piece.length > room or len(batch) == _BATCH_EXTENTS):
                yield batch
                batch, room = [], _PIECE_BYTES
            batch.append(piece)
            room -= piece.length
    if batch:
        yield batch


def _results(batch: list[Extent], read: Future[list[bytes]]) -> Iterator[tuple[int, bytes]]:
    for extent, data in zip(batch, read.result(), strict=True):
        yield extent.offset, data
