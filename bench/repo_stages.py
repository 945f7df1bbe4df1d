"""What the stages of a copy cost by themselves, and what the copy costs, with the same data.

`python -m bench.repo_stages DISK DIRECTORY ROUNDS` prints both as JSON: processor seconds of each stage,
and of the whole, in one process. The stages are called as the copy calls them (2 MiB read at a time, cut into
chunks), one after the other in one thread, with nothing between the clock's two looks but the call itself.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.blocks.readers import FileReader
from atoll.model.extents import align, complement, merge
from atoll.repository.cutting import BLOCK_BYTES, Cut, Cutter
from atoll.repository.keys import KeyFile
from atoll.repository.packs import PACK_BYTES
from atoll.repository.repository import Repository
from bench import repo_atoll

_READ_BYTES = 2 << 20
_PARTS = 512
T = TypeVar("T")


class _Clock:
    """Processor seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def take(self, stage: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        result = work()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - began
        return result


def stages(disk: Path, directory: Path) -> dict[str, float]:
    """Processor seconds of each stage for all data of a disk; duplicates are not compressed."""
    clock = _Clock()
    reader = FileReader(disk)
    size = reader.size_bytes
    wanted = align(complement(merge(reader.holes()), size), BLOCK_BYTES, size)
    cutter = Cutter(np.uint64(int.from_bytes(os.urandom(8), "little") | 1), 64)
    compressor = zstandard.ZstdCompressor(level=1)
    key = os.urandom(32)
    cipher = AESGCM(key)
    known: set[bytes] = set()
    pack: list[bytes] = []
    packed = packs = 0
    for extent in wanted:
        for offset in range(extent.offset, extent.end, _READ_BYTES):
            length = min(_READ_BYTES, extent.end - offset)
            data = memoryview(clock.take("read", lambda: reader.read(offset, length)))  # noqa: B023
            cuts = clock.take("cut", lambda: _cut(cutter, data))  # noqa: B023
            ends = list(accumulate((cut.blocks * BLOCK_BYTES for cut in cuts), initial=0))
            chunks = [
                data[start:end]
                for cut, (start, end) in zip(cuts, pairwise(ends), strict=True)
                if not cut.zero
            ]
            names = clock.take(
                "BLAKE3",
                lambda: [blake3(chunk, key=key).digest() for chunk in chunks],  # noqa: B023
            )
            new = []
            for name, chunk in zip(names, chunks, strict=True):
                if name not in known:
                    known.add(name)
                    new.append((name, chunk))
            small = clock.take(
                "zstd",
                lambda: [(name, compressor.compress(chunk)) for name, chunk in new],  # noqa: B023
            )
            sealed = clock.take(
                "AES-GCM",
                lambda: [cipher.encrypt(bytes(12), body, name) for name, body in small],  # noqa: B023
            )
            pack += sealed
            packed += sum(map(len, sealed))
            if packed >= PACK_BYTES:
                clock.take("write", lambda: _write(directory / str(packs), pack))  # noqa: B023
                pack, packed, packs = [], 0, packs + 1
    clock.take("write", lambda: _write(directory / str(packs), pack))
    reader.close()
    return clock.seconds


def _cut(cutter: Cutter, data: memoryview) -> list[Cut]:
    return cutter.cut(cutter.marks(data), last=True, in_zeros=False)[0]


def _write(path: Path, parts: list[bytes]) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    for first in range(0, len(parts), _PARTS):
        os.writev(descriptor, parts[first : first + _PARTS])
    os.fsync(descriptor)
    os.close(descriptor)


def pipeline(disk: Path, directory: Path) -> float:
    """Processor seconds of a full copy, from its first byte to the last pack on disk."""
    place = directory / "repository"
    repo_atoll.create(place)
    key = KeyFile(place.with_name("repository.key"))
    reader = FileReader(disk)
    with Repository.open(place, key) as repository:
        repository.begin()
        began = time.process_time()
        repository.copy_disk(reader)
        repository.commit([])
        used = time.process_time() - began
    reader.close()
    return used


def main() -> None:
    """The median round's figures of both, taking turns."""
    disk, directory, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    found = []
    for turn in range(rounds + 1):
        work = directory / f"turn-{turn}"
        work.mkdir()
        try:
            whole = pipeline(disk, work)
            found.append({"stages": stages(disk, work), "pipeline": whole})
        finally:
            shutil.rmtree(work)
    # Memory that a process has for the first time is cleared for it; neither side is to pay for that.
    sys.stdout.write(json.dumps(found[1:]) + "\n")


if __name__ == "__main__":
    main()
