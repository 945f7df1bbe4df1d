"""Changed extents are exact to the pool's chunk, discards and growth included."""

import pytest

from atoll.model.extents import Extent, merge
from san_system import MIB, SanSystem

pytestmark = pytest.mark.needs_root

CHUNK = 64 << 10


def chunks(*numbers: int) -> list[Extent]:
    return merge(Extent(number * CHUNK, CHUNK) for number in numbers)


def test_changed_extents_are_the_chunks_that_changed(system: SanSystem) -> None:
    engine = system.engine
    engine.create_group("exact")
    engine.create_lun("exact", "a", 16 * MIB)
    with system.connect("exact", "a") as session:
        for number in (0, 1, 7, 100, 255):
            session.write(number * CHUNK, b"old!" * 1024)
        engine.snapshot_group("exact", "s1")
        session.write(CHUNK + 512, b"new!" * 128)  # within a chunk
        session.write(50 * CHUNK - 512, b"two!" * 256)  # over the edge of two
        session.unmap(100 * CHUNK, CHUNK)
        engine.snapshot_group("exact", "s2")
        engine.grow_lun("exact", "a", 17 * MIB)
        session.read_capacity()
        session.write(17 * MIB - 512, b"last" * 128)
        engine.snapshot_group("exact", "s3")
    changed = engine.changed_extents
    assert list(changed("exact", "a", "s1", "s2")) == chunks(1, 49, 50, 100)
    assert list(changed("exact", "a", "s2", "s3")) == chunks(17 * MIB // CHUNK - 1)
    assert list(changed("exact", "a", "s1", "s1")) == []
    reader = engine.open_snapshot("exact", "a", "s2")
    held = chunks(0, 1, 7, 49, 50, 255)
    assert list(reader.holes()) == [
        Extent(2 * CHUNK, 5 * CHUNK),
        Extent(8 * CHUNK, 41 * CHUNK),
        Extent(51 * CHUNK, 204 * CHUNK),
    ]
    assert [extent for extent in held if not any(reader.read(*extent))] == []
    reader.close()
    engine.delete_group("exact", force=True)
