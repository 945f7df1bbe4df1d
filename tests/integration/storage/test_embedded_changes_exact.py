"""The extent-tree diff against FIEMAP and against the bytes themselves."""

import fcntl
import os
import random
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from atoll.model.extents import Extent
from atoll.storage.drivers.embedded.btrfs import FileExtent
from atoll.storage.drivers.embedded.changes import differences
from atoll.storage.engine import ManagedEngine
from atoll_lab.pool import image, snapshot_image

pytestmark = pytest.mark.needs_root

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = 4096
_FIEMAP = 3 << 30 | 32 << 16 | 0x66 << 8 | 11
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
_LAST, _UNWRITTEN = 0x1, 0x800


def fiemap(path: Path) -> Iterator[FileExtent]:
    """The file's extents as the generic ioctl tells them (linux/fiemap.h)."""
    start, count = 0, 512
    with path.open("rb") as file:
        while True:
            buffer = bytearray(32 + 56 * count)
            struct.pack_into("=QQIIII", buffer, 0, start, 2**64 - 1 - start, 0, 0, count, 0)
            fcntl.ioctl(file, _FIEMAP, buffer)
            (mapped,) = struct.unpack_from("=20xI", buffer)
            for index in range(mapped):
                logical, physical, length, flags = _FIEMAP_EXTENT.unpack_from(
                    buffer, 32 + 56 * index
                )
                start = logical + length
                origin = None if flags & _UNWRITTEN else (physical - logical, 0)
                yield FileExtent(logical, length, origin)
                if flags & _LAST:
                    return
            if not mapped:
                return


def differing_blocks(engine: ManagedEngine, older: str, newer: str) -> set[int]:
    with (
        closing(engine.open_snapshot("g", "a", older)) as old,
        closing(engine.open_snapshot("g", "a", newer)) as new,
    ):
        before = old.read(0, old.size_bytes).ljust(new.size_bytes, b"\0")
        after = new.read(0, new.size_bytes)
    return {
        offset // BLOCK
        for offset in range(0, len(after), BLOCK)
        if before[offset : offset + BLOCK] != after[offset : offset + BLOCK]
    }


def blocks(extents: list[Extent]) -> set[int]:
    return {
        offset // BLOCK for extent in extents for offset in range(extent.offset, extent.end, BLOCK)
    }


@pytest.mark.parametrize("seed", range(4))
def test_exact_to_the_block_and_agrees_with_fiemap(
    pool: Path, engine: ManagedEngine, seed: int
) -> None:
    random_ = random.Random(seed)
    engine.create_group("g")
    engine.create_lun("g", "a", SIZE)
    path = image(pool, "g", "a")
    size = SIZE
    changed = 0
    for generation in range(6):
        with path.open("r+b") as file:
            for _ in range(200):
                offset = random_.randrange(size // 512 - 512) * 512
                length = random_.randrange(1, 257) * 512
                if random_.random() < 0.3:
                    # Whole blocks: of a part, btrfs writes zeros anew even where there were zeros.
                    offset, length = offset // BLOCK * BLOCK, -(-length // BLOCK) * BLOCK
                    _punch(file.fileno(), offset, length)
                else:
                    os.pwrite(file.fileno(), random_.randbytes(length), offset)
        engine.snapshot_group("g", f"s{generation}")
        if generation:
            older, newer = f"s{generation - 1}", f"s{generation}"
            found = list(engine.changed_extents("g", "a", older, newer))
            differing = differing_blocks(engine, older, newer)
            assert blocks(found) == differing
            paths = [snapshot_image(pool, "g", name, "a") for name in (older, newer)]
            assert blocks(list(differences(fiemap(paths[0]), fiemap(paths[1]), size))) == blocks(
                found
            )
            changed += len(differing)
        if generation == 2:
            size += 8 * MIB
            engine.grow_lun("g", "a", size)
    assert changed > 1000


def test_many_extents_span_many_searches(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", SIZE)
    engine.snapshot_group("g", "empty")
    with image(pool, "g", "a").open("r+b") as file:
        for block in range(0, SIZE // BLOCK, 2):
            os.pwrite(file.fileno(), b"x" * BLOCK, block * BLOCK)
    engine.snapshot_group("g", "full")
    found = list(engine.changed_extents("g", "a", "empty", "full"))
    assert found == [Extent(offset, BLOCK) for offset in range(0, SIZE, 2 * BLOCK)]
    assert list(engine.changed_extents("g", "a", "full", "full")) == []


def test_compressed_images_miss_nothing(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", SIZE)
    path = image(pool, "g", "a")
    os.setxattr(path, "btrfs.compression", b"zstd")
    with path.open("r+b") as file:
        for offset in range(0, SIZE, MIB):
            os.pwrite(file.fileno(), bytes([1 + offset // MIB]) * MIB, offset)
    engine.snapshot_group("g", "before")
    with path.open("r+b") as file:
        for offset in range(0, SIZE, MIB):
            os.pwrite(file.fileno(), b"new!" * 1024, offset + 10 * BLOCK)
    engine.snapshot_group("g", "after")
    found = blocks(list(engine.changed_extents("g", "a", "before", "after")))
    assert differing_blocks(engine, "before", "after") <= found


def _punch(descriptor: int, offset: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2
    done = libc.fallocate64(
        descriptor, keep_size | punch_hole, ctypes.c_int64(offset), ctypes.c_int64(length)
    )
    assert done == 0, os.strerror(ctypes.get_errno())
