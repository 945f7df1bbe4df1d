"""One directory's entries, compact enough for a million of them."""

import pickle
import tempfile
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from atoll.filesystems.interface import Entry

_CHUNK_ROWS = 256
_DECODED_CHUNKS = 8
_ROW_BYTES = 800  # of one that is decoded, as measured


class Row(NamedTuple):
    """A name and what it stands for; `entry` is None when that is damaged."""

    name: bytes
    entry: Entry | None


class Listing:
    """Rows in a fixed order. A large directory lies in a temporary file that has no name."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._lock = threading.Lock()
        self._starts = array("Q", [0])
        self._decoded: OrderedDict[int, tuple[Row, ...]] = OrderedDict()
        hashes = array("Q")
        source = iter(rows)
        self._file: BinaryIO | None = None
        while chunk := tuple(islice(source, _CHUNK_ROWS)):
            hashes.extend(_hash(row.name) for row in chunk)
            number = len(self._starts) - 1
            if number == _DECODED_CHUNKS:
                # Open as long as the listing is kept.
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                self._starts = array("Q", [0])
                for known in self._decoded.values():
                    self._store(known)
            if number < _DECODED_CHUNKS:
                self._decoded[number] = chunk
                self._starts.append(0)
            else:
                self._store(chunk)
        table = np.frombuffer(hashes, dtype=np.uint64)
        self._order = np.argsort(table, kind="stable").astype(np.uint32)
        self._hashes = table[self._order]

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def weight_bytes(self) -> int:
        """What keeping it costs, in memory and in the temporary file."""
        decoded = min(len(self), _DECODED_CHUNKS * _CHUNK_ROWS) * _ROW_BYTES
        return 4096 + int(self._starts[-1]) + decoded + 12 * len(self)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """All rows from number `start`."""
        for number in range(start // _CHUNK_ROWS, len(self._starts) - 1):
            chunk = self._chunk(number)
            yield from chunk[max(0, start - number * _CHUNK_ROWS) :]

    def find(self, name: bytes) -> Row | None:
        """The row of a name; the first where a damaged directory has it twice."""
        wanted = np.uint64(_hash(name))
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self) and self._hashes[at] == wanted:
            chunk, place = divmod(int(self._order[at]), _CHUNK_ROWS)
            row = self._chunk(chunk)[place]
            if row.name == name:
                return row
            at += 1
        return None

    def _store(self, chunk: tuple[Row, ...]) -> None:
        if self._file is not None:
            self._starts.append(self._starts[-1] + self._file.write(pickle.dumps(chunk)))

    def _chunk(self, number: int) -> tuple[Row, ...]:
        with self._lock:
            chunk = self._decoded.get(number)
            if chunk is None and self._file is not None:
                start, end = self._starts[number], self._starts[number + 1]
                self._file.seek(start)
                # Our own objects, checked before they were written; no guest's bytes are run.
                loaded = pickle.loads(self._file.read(end - start))  # noqa: S301
                chunk = cast(tuple[Row, ...], loaded)
                self._decoded[number] = chunk
                if len(self._decoded) > _DECODED_CHUNKS:
                    self._decoded.popitem(last=False)
            else:
                self._decoded.move_to_end(number)
            return cast(tuple[Row, ...], chunk)


def _hash(name: bytes) -> int:
    """Keyed by nothing, but long enough that a guest finds no two names alike by the thousands."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
