"""A writer over several LUNs whose order tells whether a snapshot of them is one instant."""

import struct
import threading
from collections.abc import Sequence
from itertools import pairwise

from atoll.model.readers import BlockReader
from atoll.storage.initiator import IscsiLun

BLOCK = 4096
_SLOTS = 64
_NUMBERS = struct.Struct(f"<{BLOCK // 8}Q")


class OrderedWriter(threading.Thread):
    """Writes 1, 2, 3… to the first LUN, then to the next, each after the other is acknowledged.

    With `flush` each write is flushed before the next. `written` is the last
    number that every LUN has acknowledged.
    """

    def __init__(self, sessions: Sequence[IscsiLun], *, flush: bool) -> None:
        super().__init__(daemon=True)
        self._sessions = sessions
        self._flush = flush
        self._ending = threading.Event()
        self.written = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        """Write until told to end."""
        try:
            while not self._ending.is_set():
                number = self.written + 1
                for session in self._sessions:
                    # Spread over the LUN, so that what a snapshot must flush is not one page.
                    block = _NUMBERS.pack(*[number] * (BLOCK // 8))
                    session.write(number % _SLOTS * BLOCK, block)
                    if self._flush:
                        session.flush()
                self.written = number
        except Exception as error:  # noqa: BLE001 - kept for whoever ends the thread
            self.failure = error

    def end(self) -> None:
        """Stop, and raise what went wrong while writing."""
        self._ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def newest(reader: BlockReader) -> int:
    """The last number a LUN holds; ValueError when an earlier one is missing or a block is torn."""
    blocks = [_NUMBERS.unpack(reader.read(slot * BLOCK, BLOCK)) for slot in range(_SLOTS)]
    if any(len(set(block)) != 1 for block in blocks):
        raise ValueError("a block is torn")
    highest: int = max(block[0] for block in blocks)
    for slot, block in enumerate(blocks):
        if block[0] != max(0, highest - (highest - slot) % _SLOTS):
            raise ValueError("an earlier write is missing")
    return highest


def is_one_instant(numbers: Sequence[int]) -> bool:
    """Whether each LUN holds what the one before it did, or all from one on are one write behind."""
    falling = all(before >= after for before, after in pairwise(numbers))
    return falling and numbers[0] - numbers[-1] <= 1
