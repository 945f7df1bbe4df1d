"""Where on the volume new blocks go: in one run, in a row after another, or scattered."""

import random

from atoll_lab.vmfs.allocation import Pool, Run
from atoll_lab.vmfs.device import Device
from atoll_lab.vmfs.layout import FILE_BLOCK

_PIECE_BLOCKS = 4


class Placement:
    """Takes file blocks from the pool; what was deleted there never shows in a new file."""

    def __init__(self, device: Device, blocks: Pool) -> None:
        self._device = device
        self._blocks = blocks

    def place(self, count: int, after: int | None = None) -> list[Run]:
        """Own `count` cleared blocks: right after a block, in one run, or in the longest runs."""
        if not count:
            return []
        free = list(self._blocks.free_runs())
        if sum(run.length for run in free) < count:
            raise self._blocks.full(count)
        chosen: list[Run] = []
        if after is not None:
            chosen = [Run(r.first, count) for r in free if r.first == after and r.length >= count]
        if not chosen:
            chosen = [Run(run.first, count) for run in free if run.length >= count][:1]
        if not chosen:
            for run in sorted(free, key=lambda r: -r.length):
                missing = count - sum(r.length for r in chosen)
                if missing:
                    chosen.append(Run(run.first, min(run.length, missing)))
        return self._own(chosen)

    def scatter(self, count: int) -> list[Run]:
        """Own `count` cleared blocks in small pieces with gaps between them, in no order."""
        step = 2 * _PIECE_BLOCKS
        pieces: list[Run] = []
        missing = count
        for run in self._blocks.free_runs():
            for first in range(run.first, run.first + run.length - step + 1, step):
                if missing:
                    pieces.append(Run(first, min(_PIECE_BLOCKS, missing)))
                    missing -= pieces[-1].length
        if missing:  # no room for gaps: whatever there is
            return self.place(count)
        random.Random(count).shuffle(pieces)
        return self._own(pieces)

    def _own(self, runs: list[Run]) -> list[Run]:
        self._blocks.take(runs)
        for run in runs:  # what was deleted here must not show in a new disk
            self._device.clear(run.first * FILE_BLOCK, run.length * FILE_BLOCK)
        return runs
