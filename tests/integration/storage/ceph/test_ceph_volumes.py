"""Volumes, snapshots and clones of the Ceph backend, on a real cluster and over iSCSI."""

import pytest

from atoll.model.extents import Extent
from ceph_system import MIB, CephSystem

pytestmark = pytest.mark.needs_root

BLOCK = 4096


def test_a_volume_comes_grows_and_goes(system: CephSystem) -> None:
    backend = system.backend
    assert backend.volumes() == {}
    volume = system.volume(16 * MIB)
    backend.create_volume(system.group, volume, 16 * MIB, "group/lun")
    assert backend.volumes() == {volume: 16 * MIB}
    backend.grow_volume(system.group, volume, 32 * MIB)
    backend.grow_volume(system.group, volume, 24 * MIB)
    assert system.reopen().volumes() == {volume: 32 * MIB}
    backend.delete_volume(system.group, volume)
    backend.delete_volume(system.group, volume)
    assert backend.volumes() == {}
    room = backend.room()
    assert 0 < room.free_bytes <= room.total_bytes


def test_snapshots_read_back(system: CephSystem) -> None:
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, b"a" * BLOCK)
    first = system.snapshot(volume)
    session.write(0, b"b" * BLOCK)
    session.write(8 * MIB, b"c" * BLOCK)
    second = system.snapshot(volume)
    assert set(system.backend.snapshots()) == {first, second}
    assert system.read(volume, first) == b"a" * BLOCK + bytes(16 * MIB - BLOCK)
    reader = system.backend.open_snapshot(volume, second)
    assert reader.read(16 * MIB - 4, 100) == bytes(4)
    assert list(reader.holes()) == [
        Extent(BLOCK, 8 * MIB - BLOCK),
        Extent(8 * MIB + BLOCK, 8 * MIB - BLOCK),
    ]
    reader.close()
    reader.close()
    assert list(system.backend.changed_extents(volume, first, second)) == [
        Extent(0, BLOCK),
        Extent(8 * MIB, BLOCK),
    ]
    session.close()
