"""LUNs as one initiator sees them."""

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.model.extents import Extent
from atoll.storage.backend import Chap
from atoll.storage.initiator.errors import IscsiError, ScsiCommandError, TargetUnreachableError
from atoll.storage.initiator.library import (
    BUSY,
    CHECK_CONDITION,
    GOOD,
    TASK_SET_FULL,
    IoVector,
    UnmapRange,
    library,
)
from atoll.storage.initiator.session import Answer, Login, Session
from atoll.storage.initiator.vital import BlockLimits, Inquiry, block_limits, inquiry_of

_TRANSFER_BYTES = 256 << 10
"""What libiscsi takes in one PDU."""

_DEPTH = 32
_DEPTH_BYTES = 1 << 20
"""How much is under way at once: commands, and what they transfer; measured, more is slower."""

_UNMAP_BYTES = 1 << 30
"""tgtd counts an unmap's bytes in 32 bits (bs_rdwr_request in usr/bs_rdwr.c)."""

_BLOCK_LIMITS = 0xB0
_DEVICE_IDENTIFICATION = 0x83
_SERIAL_NUMBER = 0x80
_ILLEGAL_REQUEST = 5
_UNIT_ATTENTION = 6
_AGAIN = 8
_BUSY_SECONDS = 0.5
_RECONNECT_SECONDS = (0.0, 1.0, 2.0, 3.0)
_STATUS_BYTES = 8 + 16 * 65536
_MAPPED = 0


@dataclass(frozen=True, slots=True)
class _Command:
    """`issue(context, callback, number)` queues it; `kept` is memory it reads or fills."""

    what: str
    size_bytes: int
    issue: Callable[..., Any]
    kept: object = None


class IscsiLun:
    """One LUN through one session. Thread-safe: calls go one at a time.

    A lost connection is made again, a few times, and what was under way is
    repeated, as real initiators do, unless `reconnect` is off. Offsets and
    lengths are multiples of the LUN's block size. InitiatorRefusedError (and its
    ChapRefusedError), TargetUnprovenError and TargetUnreachableError on opening;
    those and ScsiCommandError on commands.
    """

    def __init__(
        self,
        portal: str,
        target: str,
        lun: int,
        initiator: str,
        *,
        chap: Chap | None = None,
        timeout_seconds: int = 60,
        reconnect: bool = True,
    ) -> None:
        self._login = Login(portal, initiator, target, chap, timeout_seconds)
        self._lun = lun
        self._name = f"LUN {lun} of {target} at {portal}"
        self._reconnect = reconnect
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._session: Session | None = self._open()
        try:
            data = self._ask("read capacity", "iscsi_readcapacity16_task").data
            self._block_bytes = int.from_bytes(data[8:12], "big")
            self._zeroes_unmapped = data[14] & 0xC0 == 0xC0  # LBPME and LBPRZ (SBC-3, 5.16.2)
            self._transfer_bytes = self._limits().transfer(_TRANSFER_BYTES, self._block_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def thin(self) -> bool:
        """Whether the LUN takes ranges back, which read as zeros then."""
        return self._zeroes_unmapped

    def inquiry(self) -> Inquiry:
        """Who the LUN says it is."""
        return inquiry_of(
            self._inquire(0, 0),
            self._inquire(1, _SERIAL_NUMBER),
            self._inquire(1, _DEVICE_IDENTIFICATION),
        )

    def read_capacity(self) -> int:
        """The size in bytes."""
        data = self._ask("read capacity", "iscsi_readcapacity16_task").data
        return (int.from_bytes(data[:8], "big") + 1) * int.from_bytes(data[8:12], "big")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        return self.read_each([Extent(offset, length)])[0]

    def read_each(self, extents: Sequence[Extent]) -> list[bytes]:
        """The bytes of each extent, read several at once."""
        buffers = [bytearray(extent.length) for extent in extents]
        commands = [
            self._read_command(extent.offset + at, buffer, at)
            for extent, buffer in zip(extents, buffers, strict=True)
            for at in range(0, extent.length, self._transfer_bytes)
        ]
        for command, answer in zip(commands, self._run(commands), strict=True):
            if answer.missing_bytes:
                raise ScsiCommandError(
                    f"{self._name} gave {answer.missing_bytes} bytes less than asked for at a "
                    f"{command.what}; check the storage."
                )
        return [bytes(buffer) for buffer in buffers]

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`; on return the LUN has acknowledged it."""
        kept = ctypes.c_char_p(data)
        address = ctypes.cast(kept, ctypes.c_void_p).value or 0
        self._run(
            [
                self._write_command(
                    offset + at, address + at, min(self._transfer_bytes, len(data) - at), kept
                )
                for at in range(0, len(data), self._transfer_bytes)
            ]
        )

    def flush(self) -> None:
        """Have the LUN put everything acknowledged on its disks."""
        self._ask("flush", "iscsi_synchronizecache16_task", 0, 0, 0, 0)

    def unmap(self, offset: int, length: int) -> None:
        """Give the range back; it reads as zeros on Atoll's LUNs."""
        block = self._block(offset, length)
        for at in range(offset, offset + length, _UNMAP_BYTES):
            size = min(_UNMAP_BYTES, offset + length - at)
            ranges = (UnmapRange * 1)(UnmapRange(at // block, size // block))
            self._ask(
                f"unmap of {size} bytes at {at}", "iscsi_unmap_task", 0, 0, ranges, 1, kept=ranges
            )

    def holes(self) -> Iterator[Extent]:
        """Ranges that hold nothing and read as zeros, in order; none if the LUN does not tell.

        By GET LBA STATUS (SBC-3, 5.4), which counts only when the LUN says that
        unmapped blocks read as zeros.
        """
        size = self.read_capacity()
        at = 0
        while self._zeroes_unmapped and at < size:
            try:
                data = self._ask(
                    "get LBA status", "iscsi_get_lba_status_task", at // self._block_bytes,
                    _STATUS_BYTES,
                ).data  # fmt: skip
            except ScsiCommandError as error:
                if error.sense[0] == _ILLEGAL_REQUEST:  # it has no such command
                    return
                raise
            reached = at
            for place in range(8, len(data) - 15, 16):
                start = int.from_bytes(data[place : place + 8], "big") * self._block_bytes
                length = int.from_bytes(data[place + 8 : place + 12], "big") * self._block_bytes
                # A range may begin before what was asked for, and 32 bits may not hold its length.
                first, end = max(start, reached), min(start + length, size)
                if end > first and data[place + 12] & 0xF != _MAPPED:
                    yield Extent(first, end - first)
                reached = max(reached, end)
            if reached <= at:
                return
            at = reached

    def close(self) -> None:
        """Log out. Closing twice is harmless."""
        self._closing.set()
        with self._lock:
            self._drop()

    def __enter__(self) -> "IscsiLun":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_command(self, offset: int, buffer: bytearray, at: int) -> "_Command":
        """Fill a buffer from `at` on with what is at `offset`, as far as one transfer goes."""
        size = min(self._transfer_bytes, len(buffer) - at)
        block = self._block(offset, size)
        view = (ctypes.c_char * size).from_buffer(buffer, at)
        vector = (IoVector * 1)(IoVector(ctypes.addressof(view), size))

        def issue(context: int, then: Any, number: int) -> Any:
            return library().iscsi_read16_iov_task(
                context, self._lun, offset // block, size, block, 0, 0, 0, 0, 0, then, number,
                vector, 1,
            )  # fmt: skip

        return _Command(f"read of {size} bytes at {offset}", size, issue, (view, vector))

    def _write_command(self, offset: int, address: int, size: int, kept: object) -> "_Command":
        block = self._block(offset, size)

        def issue(context: int, then: Any, number: int) -> Any:
            return library().iscsi_write16_task(
                context, self._lun, offset // block, address, size, block, 0, 0, 0, 0, 0, then,
                number,
            )  # fmt: skip

        return _Command(f"write of {size} bytes at {offset}", size, issue, kept)

    def _limits(self) -> BlockLimits:
        try:
            return block_limits(self._inquire(1, _BLOCK_LIMITS))
        except ScsiCommandError:  # it has no such page
            return BlockLimits(0)

    def _inquire(self, vital: int, page: int) -> bytes:
        return self._ask("inquiry", "iscsi_inquiry_task", vital, page, 255).data

    def _block(self, offset: int, length: int) -> int:
        block = self._block_bytes
        if offset % block or length % block:
            raise IscsiError(
                f"{length} bytes at {offset} are not whole blocks of {block} bytes of {self._name}; "
                "align them."
            )
        return block

    def _ask(self, what: str, function: str, *arguments: object, kept: object = None) -> Answer:
        def issue(context: int, then: Any, number: int) -> Any:
            return getattr(library(), function)(context, self._lun, *arguments, then, number)

        return self._run([_Command(what, 0, issue, kept)])[0]

    def _run(self, commands: Sequence[_Command]) -> list[Answer]:
        """Do all of these, some at once, and again what a lost session took along."""
        answers: dict[int, Answer] = {}
        lost: IscsiError = IscsiError(f"{self._name} was closed; open it again.")
        with self._lock:
            for pause in (0.0, *(_RECONNECT_SECONDS if self._reconnect else ())):
                if self._closing.wait(pause) if pause else self._closing.is_set():
                    break
                try:
                    if self._session is None:
                        self._session = self._open_again()
                    self._drive(self._session, commands, answers)
                except ScsiCommandError:
                    raise
                except IscsiError as error:
                    lost = error
                    self._drop()
                except BaseException:
                    self._drop()  # commands may still be under way
                    raise
                else:
                    return [answers[index] for index in range(len(commands))]
        raise lost

    def _drive(
        self, session: Session, commands: Sequence[_Command], answers: dict[int, Answer]
    ) -> None:
        """Fill in the answers that are missing."""
        for _ in range(_AGAIN):
            todo = deque(index for index in range(len(commands)) if index not in answers)
            moving = 0
            busy = False
            failure: ScsiCommandError | None = None
            under_way: dict[int, int] = {}
            while todo or under_way:
                while todo and len(under_way) < _DEPTH and moving < _DEPTH_BYTES:
                    index = todo.popleft()
                    moving += commands[index].size_bytes
                    under_way[index] = session.start(commands[index].issue, commands[index].kept)
                index = next(iter(under_way))
                answer = session.finish(under_way.pop(index))
                moving -= commands[index].size_bytes
                if answer.status == GOOD:
                    answers[index] = answer
                elif answer.status in (BUSY, TASK_SET_FULL):
                    busy = True
                elif answer.status != CHECK_CONDITION or answer.sense[0] != _UNIT_ATTENTION:
                    failure = failure or self._failed(commands[index].what, answer, session.said())
                    todo.clear()  # those under way must end all the same
            if failure is not None:
                raise failure
            if len(answers) == len(commands):
                return
            if busy and self._closing.wait(_BUSY_SECONDS):
                break
        raise ScsiCommandError(
            f"{self._name} kept asking for attention at a {commands[0].what}; check the storage."
        )

    def _failed(self, what: str, answer: Answer, said: str) -> ScsiCommandError:
        return ScsiCommandError(
            f"{self._name} failed a {what} with status {answer.status:#x}, sense key "
            f"{answer.sense[0]:#x}, {answer.sense[1]:#06x}: {said}.",
            answer.sense,
        )

    def _open_again(self) -> Session:
        if not self._reconnect:
            raise TargetUnreachableError(f"{self._name} lost its session before; open it again.")
        return self._open()

    def _open(self) -> Session:
        session = Session(self._login)
        try:
            session.open(self._lun)
        except BaseException:
            session.end()
            raise
        return session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end()
