"""Where a disk is cut into chunks: at places that its content decides, so that equal files meet.

A file lies at another offset on each disk, but nearly always at a multiple of 4 KiB, the block of
the guest's file system. So content is looked at in blocks: a sum of each, multiplied by a secret,
says whether a chunk may end after it. That costs a read from memory, and chunkers that look at each
byte cost more than all the rest of a copy.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.repository.keys import MasterKey
from atoll.repository.store import Buffer

BLOCK_BYTES = 4096
_WORDS = BLOCK_BYTES // 8


class Marks(NamedTuple):
    """What the blocks of a piece of a disk say, one element a block.

    `draws` (uint32) are evenly spread over blocks of any content; `zero` (bool) is exact.
    """

    draws: NDArray[np.uint32]
    zero: NDArray[np.bool_]


class Cut(NamedTuple):
    """A piece of `blocks` blocks: of zeros only, or a chunk."""

    blocks: int
    zero: bool


@dataclass(frozen=True, slots=True)
class Cutter:
    """The rule by which blocks become chunks, the same for every disk of a repository.

    Chunks have about `mean` blocks, `shortest` at least and `longest` at most. Zeros that are at
    least `shortest` long are no chunk, and a chunk ends where they begin.
    """

    secret: np.uint64
    mean: int

    @classmethod
    def of(cls, master: MasterKey, chunk_bytes: int) -> "Cutter":
        """The rule of a repository."""
        secret = int.from_bytes(master.derive("cutting")[:8], "little") | 1
        return cls(np.uint64(secret), max(1, chunk_bytes // BLOCK_BYTES))

    @property
    def shortest(self) -> int:
        """Blocks of the shortest chunk; an end of the disk, or of what is read, makes shorter ones."""
        return max(1, self.mean // 4)

    @property
    def shortest_bytes(self) -> int:
        """The same in bytes."""
        return self.shortest * BLOCK_BYTES

    @property
    def longest(self) -> int:
        """Blocks of the longest chunk."""
        return self.mean * 4

    @property
    def sight(self) -> int:
        """How many blocks must be known beyond a chunk's first for its end to be certain."""
        return self.longest + 2 * self.shortest

    def marks(self, data: Buffer) -> Marks:
        """Look at bytes that begin at a block; a last block that is cut short counts with zeros."""
        odd = len(data) % BLOCK_BYTES
        if odd:
            data = bytes(data) + bytes(BLOCK_BYTES - odd)
        words = np.frombuffer(data, "<u8").reshape(-1, _WORDS)
        sums = words.sum(axis=1, dtype=np.uint64)
        draws = ((sums * self.secret) >> np.uint64(32)).astype(np.uint32)
        zero = sums == 0
        if zero.any():
            # Sums may overflow to nothing, and a guest may see to that.
            doubtful = np.flatnonzero(zero)
            zero[doubtful] = ~words[doubtful].any(axis=1)
        return Marks(draws, zero)

    def cut(self, marks: Marks, *, last: bool, in_zeros: bool) -> tuple[list[Cut], int]:
        """The pieces that are certain, and how many blocks they have together.

        With `last` nothing follows, and all blocks are cut. `in_zeros` says that the piece before was
        of zeros, which go on. The result does not depend on how a disk was dealt out over calls, if
        each is given what the last one left and what follows.
        """
        count = len(marks.zero)
        cuts: list[Cut] = []
        at = 0
        begins, ends = self._zeros(marks.zero, in_zeros)
        likely = np.flatnonzero(marks.draws < (1 << 31) // self.mean).tolist()
        rather = np.flatnonzero(marks.draws < min((1 << 32) - 1, (1 << 33) // self.mean)).tolist()
        run = 0
        while at < count:
            while run < len(begins) and ends[run] <= at:
                run += 1
            edge = begins[run] if run < len(begins) else count
            if edge == at:
                cuts.append(Cut(ends[run] - at, zero=True))
                at = ends[run]
                continue
            if not last and count - at < self.sight:
                break
            known = edge < count or last
            end = self._end(at, edge, likely, rather, known=known)
            cuts.append(Cut(end - at, zero=False))
            at = end
        return cuts, at

    def _zeros(self, zero: NDArray[np.bool_], in_zeros: bool) -> tuple[list[int], list[int]]:
        """First blocks and ends of the runs of zeros that are long enough to stand alone."""
        if not zero.any():
            return [], []
        steps = np.flatnonzero(np.diff(zero, prepend=False, append=False))
        begins, ends = steps[0::2], steps[1::2]
        long = ends - begins >= self.shortest
        if in_zeros and begins[0] == 0:
            long[0] = True
        return begins[long].tolist(), ends[long].tolist()

    def _end(self, at: int, edge: int, likely: list[int], rather: list[int], *, known: bool) -> int:
        """Where the chunk that begins at `at` ends, `edge` at the latest."""
        farthest = min(at + self.longest, edge)
        # What is left before an edge must be a chunk as well.
        latest = min(farthest, edge - self.shortest) if known else farthest
        first, middle = at + self.shortest, at + self.mean
        # Hard to end before the middle, easy after it: so lengths keep close to the mean.
        for candidates, low, high in (
            (likely, first, min(middle, latest + 1)),
            (rather, max(first, middle), latest + 1),
        ):
            found = bisect_left(candidates, low - 1)
            if found < len(candidates) and candidates[found] + 1 < high:
                return candidates[found] + 1
        return edge if farthest == edge else max(first, latest)
