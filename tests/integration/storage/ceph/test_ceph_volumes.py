"""Volumes, snapshots and clones of the Ceph backend, on a real cluster and over iSCSI."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.drivers.ceph import backend
from atoll.storage.drivers.ceph.driver import Settings, create
from ceph_system import MIB, CephSystem, new_id

pytestmark = pytest.mark.needs_root

BLOCK = 4096


def test_a_volume_comes_grows_and_goes(system: CephSystem) -> None:
    made = system.backend
    assert made.volumes() == {}
    volume = system.volume(16 * MIB)
    made.create_volume(system.group, volume, 16 * MIB, "group/lun")
    assert made.volumes() == {volume: 16 * MIB}
    made.grow_volume(system.group, volume, 32 * MIB)
    made.grow_volume(system.group, volume, 24 * MIB)
    assert system.reopen().volumes() == {volume: 32 * MIB}
    made.delete_volume(system.group, volume)
    made.delete_volume(system.group, volume)
    assert made.volumes() == {}
    room = made.room()
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


def test_many_threads_read_one_snapshot(system: CephSystem) -> None:
    content = os.urandom(12 * MIB)
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, content)
    session.close()
    reader = system.backend.open_snapshot(volume, system.snapshot(volume))
    extents = [Extent(offset, 70_000) for offset in range(0, 11 * MIB, 100_001)]

    def read_all(_: int) -> None:
        for extent in extents:
            data = b"".join(piece for _, piece in reader.read_many([extent]))
            assert data == content[extent.offset : extent.end]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read_all, range(8)))
    gathered = dict(reader.read_many(extents))
    assert all(gathered[each.offset] == content[each.offset : each.end] for each in extents)
    assert [len(data) for _, data in reader.read_many([Extent(15 * MIB, 4 * MIB)])] == [MIB]
    reader.close()


def test_systems_that_share_a_pool_see_only_their_own(system: CephSystem, tmp_path: Path) -> None:
    other = CephSystem(system.settings, tmp_path / "other", "f" * 12)
    mine, theirs = system.volume(), other.volume()
    snapshot = system.snapshot(mine)
    try:
        assert set(system.backend.volumes()) == {mine}
        assert set(other.backend.volumes()) == {theirs}
        assert other.backend.snapshots() == []
        other.backend.delete_snapshot(snapshot, [])
        assert system.backend.snapshots() == [snapshot]
    finally:
        other.clear()


def test_a_snapshot_of_unknown_volumes_can_go(system: CephSystem) -> None:
    volumes = [system.volume(), system.volume()]
    snapshot, other = system.snapshot(*volumes), system.snapshot(volumes[0])
    system.backend.delete_snapshot(snapshot, [])
    assert system.backend.snapshots() == [other]


def test_a_snapshot_that_was_cut_short_is_taken_anew(system: CephSystem) -> None:
    volumes = [system.volume(), system.volume()]
    sessions = system.serve(*volumes)
    snapshot = new_id()
    system.backend.take_snapshot(system.group, snapshot, volumes[:1])
    for session in sessions:
        session.write(0, b"late" * 1024)
        session.close()
    system.backend.take_snapshot(system.group, snapshot, volumes)
    for volume in volumes:
        assert system.read(volume, snapshot)[:4] == b"late"


def test_a_barrier_that_breaks_leaves_no_snapshot(
    system: CephSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = system.volume()
    (session,) = system.serve(volume)
    monkeypatch.setattr(backend, "_LIMIT_SECONDS", 0.0)
    with pytest.raises(StorageUnreachableError):
        system.snapshot(volume)
    assert system.backend.snapshots() == []
    session.write(0, b"goes" * 1024)
    session.close()


def test_what_tgt_cannot_do_it_does_not_promise(system: CephSystem) -> None:
    """UNMAP fails in tgt's RBD module, and it would show blocks of 4 MiB."""
    volume = system.volume()
    (session,) = system.serve(volume)
    assert not session.thin
    answer = session._ask("read capacity", "iscsi_readcapacity16_task").data
    assert answer[13] & 0xF == 3  # 8 logical blocks a physical one: 4096 bytes
    session.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user": "stranger"}, "client.stranger"),
        ({"pool": "nowhere"}, "nowhere"),
        ({"conf": Path("/does/not/exist.conf")}, "/does/not/exist.conf"),
    ],
)
def test_a_system_that_is_unfit_is_told_of(
    system: CephSystem, tmp_path: Path, wrong: dict[str, object], said: str
) -> None:
    fit = system.settings.model_copy(update={"state_directory": tmp_path / "state"})
    create("test", fit)
    with pytest.raises(StorageUnreachableError, match=said):
        create("test", fit.model_copy(update=wrong))


def test_settings_that_tgtd_cannot_be_told_are_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(conf=Path("/etc/a;b.conf"), pool="atoll")
    with pytest.raises(ValidationError):
        Settings(pool="a/b")
