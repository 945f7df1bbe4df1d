"""Pools that are missing, unmounted, full, side by side, or lost their daemons."""

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError
from atoll.model.storage import Portal
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll.storage.records import Owed, Records
from atoll_lab import pool as loop_pool
from atoll_lab.iscsi import IscsiLun

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20


def connect(portal: Portal) -> IscsiLun:
    return IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST)


def test_what_is_no_pool_is_not_taken_for_one(tmp_path: Path, btrfs_mount: Path) -> None:
    with pytest.raises(StorageUnreachableError, match="cannot be opened"):
        open_embedded(tmp_path / "missing")
    with pytest.raises(StorageUnreachableError, match="not on btrfs"):
        open_embedded(tmp_path)
    with pytest.raises(StorageUnreachableError, match="not on btrfs"):
        create_pool(tmp_path, "p")
    empty = btrfs_mount / "empty"
    empty.mkdir()
    with pytest.raises(StorageUnreachableError, match="atoll-pool"):
        open_embedded(empty)


def test_creating_a_pool_again_keeps_it(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    create_pool(pool, pool.name)
    assert [group.name for group in engine.groups()] == ["g"]
    with pytest.raises(StorageConflictError):
        create_pool(pool, "another")


def test_guests_disks_are_nobody_elses_business(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    engine.snapshot_group("g", "s")
    images = list(pool.rglob("*.img"))
    assert len(images) == 2
    assert {stat.S_IMODE(image.stat().st_mode) for image in images} == {0o600}
    for part in ("groups", "snapshots"):
        assert stat.S_IMODE((pool / part).stat().st_mode) == 0o700


def test_unmounting_mounting_and_destroying(tmp_path: Path) -> None:
    root = loop_pool.create_loop_pool(tmp_path / "lab", 512 * MIB)
    try:
        create_pool(root, "lab")
        engine = open_embedded(root, Rules(Allowances(reserve_bytes=MIB)))
        engine.create_group("g")
        lun = engine.create_lun("g", "a", 16 * MIB)
        shown = engine.present("g", "a", [HOST])
        with connect(shown.portals[0]) as session:
            session.write(0, b"kept" * 128)
        engine.stop()
        engine.stop()
        loop_pool.unmount(tmp_path / "lab")
        with pytest.raises(StorageUnreachableError):
            open_embedded(root)
        assert loop_pool.create_loop_pool(tmp_path / "lab", 512 * MIB) == root
        again = open_embedded(root, Rules(Allowances(reserve_bytes=MIB)))
        assert again.groups()[0].luns == (lun,)
        assert again.presentations() == [shown]
        assert again.reconcile() != []
        with connect(shown.portals[0]) as session:
            assert session.read(0, 512) == b"kept" * 128
        again.stop()
    finally:
        loop_pool.destroy(tmp_path / "lab")
        loop_pool.destroy(tmp_path / "lab")
    assert list((tmp_path / "lab").iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_a_pool_that_fills_up_says_so(tmp_path: Path) -> None:
    root = loop_pool.create_loop_pool(tmp_path, 256 * MIB)
    try:
        create_pool(root, "small")
        engine = open_embedded(root, Rules(Allowances(reserve_bytes=64 * MIB)))
        engine.create_group("g")
        engine.create_lun("g", "a", 1024 * MIB)
        with loop_pool.image(root, "g", "a").open("r+b") as image:
            for offset in range(0, 512 * MIB, MIB):
                if engine.capacity().free_bytes < 64 * MIB:
                    break
                os.pwrite(image.fileno(), os.urandom(MIB), offset)
                os.fdatasync(image.fileno())
        with pytest.raises(PoolFullError):
            engine.snapshot_group("g", "s")
        assert engine.snapshots("g") == []
    finally:
        loop_pool.destroy(tmp_path)


def test_a_killed_daemon_comes_back_the_same(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    lun = engine.create_lun("g", "a", 16 * MIB)
    engine.create_lun("g", "b", 16 * MIB)
    shown = [engine.present("g", name, [HOST]) for name in ("a", "b")]
    process = loop_pool.daemon(pool, engine.runtime_directory, "g")
    assert process is not None
    with process:
        process.signal(signal.SIGKILL)
        assert process.ended(60)
    # It may only be out of sight, and then nothing would hold its writes back.
    with pytest.raises(StorageUnreachableError, match="atoll cleanup"):
        engine.snapshot_group("g", "s")
    assert len(engine.reconcile()) == 3
    assert engine.snapshot_group("g", "s").pause_seconds > 0
    assert engine.presentations() == shown
    with connect(shown[0].portals[0]) as session:
        assert session.inquiry().naa == lun.naa
    assert engine.reconcile() == []


def test_luns_in_use_are_never_moved_to_another_address(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    with connect(engine.present("g", "a", [HOST]).portals[0]) as session:
        moved = open_embedded(pool, Rules(Allowances(reserve_bytes=MIB)), addresses=["127.0.0.2"])
        with pytest.raises(StorageConflictError, match=r"served at 127\.0\.0\.1:"):
            moved.reconcile()
        session.write(0, b"kept" * 128)


def test_two_pools_serve_side_by_side(btrfs_mount: Path, engine: ManagedEngine) -> None:
    root = btrfs_mount / "beside"
    root.mkdir()
    create_pool(root, "beside")
    other = open_embedded(root, Rules(Allowances(reserve_bytes=MIB)))
    try:
        portals = []
        for one in (engine, other):
            one.create_group("g")
            one.create_lun("g", "a", 16 * MIB)
            portals.append(one.present("g", "a", [HOST]).portals[0])
        assert portals[0].port != portals[1].port
        first, second = (connect(portal) for portal in portals)
        first.write(0, b"1" * 512)
        second.write(0, b"2" * 512)
        assert (first.read(0, 1024)[0], second.read(0, 1024)[0]) == (ord("1"), ord("2"))
        first.close()
        other.stop()
        assert connect(portals[0]).read(0, 512) == b"1" * 512
        second.close()
    finally:
        other.stop()


def test_a_taken_port_is_told(btrfs_mount: Path) -> None:
    import socket

    root = btrfs_mount / "ported"
    root.mkdir()
    create_pool(root, "ported")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = open_embedded(root, Rules(Allowances(reserve_bytes=MIB)), ports=(port, port))
        engine.create_group("g")
        engine.create_lun("g", "a", 16 * MIB)
        with pytest.raises(StorageUnreachableError, match="No port"):
            engine.present("g", "a", [HOST])
    engine.present("g", "a", [HOST])
    engine.stop()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(StorageUnreachableError, match=str(port)),
    ):
        engine.reconcile()
    assert loop_pool.daemon(root, engine.runtime_directory, "g") is None
    engine.reconcile()
    engine.stop()


def test_strangers_in_the_pool_are_told_and_left_for_a_while(
    pool: Path, engine: ManagedEngine
) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    stranger = loop_pool.image(pool, "g", "a").with_name(f"{'5' * 32}.img")
    stranger.write_bytes(b"precious")
    for _ in range(2):
        (said,) = engine.reconcile()
        assert "5" * 32 in said
        assert "7.0 days" in said
    assert stranger.read_bytes() == b"precious"
    (said,) = open_embedded(pool, Rules(grace_seconds=0)).reconcile()
    assert "Removed the volume" in said
    assert not stranger.exists()
    assert engine.reconcile() == []


def test_a_removal_cut_short_after_the_fact_is_forgotten(
    engine: ManagedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: Records, owed: Owed) -> None:
        raise InterruptedError(owed.id)

    engine.create_group("g")
    monkeypatch.setattr(Records, "paid", die)
    with pytest.raises(InterruptedError):
        engine.delete_group("g")
    monkeypatch.undo()
    assert len(engine.reconcile()) == 1
    assert engine.reconcile() == []


def test_a_lost_image_is_told(pool: Path, engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    loop_pool.image(pool, "g", "a").unlink()
    assert "g/a" in engine.reconcile()[0]
    with pytest.raises(StorageUnreachableError, match=r"\.img"):
        engine.grow_lun("g", "a", 32 * MIB)
    engine.delete_lun("g", "a")
    assert engine.reconcile() == []


def test_growing_under_writes_loses_none(engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    session = connect(engine.present("g", "a", [HOST]).portals[0])
    ending = threading.Event()
    failures: list[Exception] = []
    written: dict[int, int] = {}

    def write() -> None:
        number = 0
        try:
            while not ending.is_set():
                number += 1
                session.write(number % 256 * 4096, number.to_bytes(8, "little") * 512)
                written[number % 256] = number
        except Exception as error:  # noqa: BLE001 - the test fails on it
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for mebibytes in range(17, 27):
        reached = len(written), max(written.values(), default=0)
        engine.grow_lun("g", "a", mebibytes * MIB)
        while not failures and max(written.values(), default=0) < reached[1] + 20:
            writer.join(timeout=0.01)
    ending.set()
    writer.join()
    assert failures == []
    assert session.read_capacity() == 26 * MIB
    for slot, number in written.items():
        assert session.read(slot * 4096, 4096) == number.to_bytes(8, "little") * 512
    session.close()


def test_discards_are_answered_and_read_as_zeros(engine: ManagedEngine) -> None:
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    with connect(engine.present("g", "a", [HOST]).portals[0]) as session:
        for number in range(200):
            session.write(number * 4096, b"x" * 4096)
            session.unmap(number * 4096, 4096)
            assert session.read(number * 4096, 4096) == bytes(4096)


def test_a_daemon_that_was_looked_for_often_rests(pool: Path, engine: ManagedEngine) -> None:
    """tgtd keeps a connection on which nothing was asked, and reads it in a circle for ever."""
    engine.create_group("g")
    engine.create_lun("g", "a", 16 * MIB)
    engine.present("g", "a", [HOST])
    with loop_pool.daemon(pool, engine.runtime_directory, "g") as process:
        descriptors = Path(f"/proc/{process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for _ in range(5):
            engine.presentations()
            engine.reconcile()
            engine.delete_snapshot("g", engine.snapshot_group("g", "s").name)
        assert len(list(descriptors.iterdir())) == before
