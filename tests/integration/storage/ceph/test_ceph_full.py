"""What a full pool refuses, at once and in so many words, and what it lets through."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from atoll.model.errors import PoolFullError, StorageUnreachableError
from atoll_lab.ceph import MiniCluster
from ceph_system import MIB, CephSystem, new_id

pytestmark = pytest.mark.needs_root


@pytest.fixture
def pool(cluster: MiniCluster) -> Iterator[MiniCluster]:
    """The cluster, with a pool without bounds again afterwards."""
    try:
        yield cluster
    finally:
        set_quota(cluster, 0)
        wait_for(lambda: "full" not in cluster.ask("health"))


def fill(cluster: MiniCluster) -> None:
    set_quota(cluster, 8 * MIB)
    wait_for(lambda: "full" in cluster.ask("health"))


def set_quota(cluster: MiniCluster, size_bytes: int) -> None:
    cluster.ask("osd", "pool", "set-quota", cluster.pool, "max_bytes", str(size_bytes))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.5)


def test_what_a_full_pool_cannot_do_it_says_at_once(pool: MiniCluster, system: CephSystem) -> None:
    backend, volume, first = system.backend, system.volume(), system.volume()
    backend.delete_volume(system.group, first)  # the first removal in a pool's life needs room
    (session,) = system.serve(volume)
    session.write(0, os.urandom(12 * MIB))
    session.close()
    backend.serve(system.group, [])
    snapshot = system.snapshot(volume)
    fill(pool)
    assert backend.room().free_bytes == 0
    refused = new_id()
    with pytest.raises(PoolFullError):
        backend.create_volume(system.group, refused, 16 * MIB, "group/refused")
    backend.delete_volume(system.group, refused)
    assert set(backend.volumes()) == {volume}
    assert len(system.read(volume, snapshot)) == 16 * MIB
    backend.delete_snapshot(snapshot, [volume])
    backend.delete_volume(system.group, volume)
    assert backend.volumes() == {}


def test_a_snapshot_of_a_lun_whose_writes_wait_fails_in_time(
    pool: MiniCluster, system: CephSystem
) -> None:
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, os.urandom(12 * MIB))
    fill(pool)
    writing = threading.Thread(target=session.write, args=(0, os.urandom(MIB)))
    writing.start()
    writing.join(timeout=2)
    assert writing.is_alive()
    with pytest.raises(StorageUnreachableError, match="full pool"):
        system.snapshot(volume)
    set_quota(pool, 0)
    writing.join(timeout=60)
    assert not writing.is_alive()
    session.close()
    system.backend.serve(system.group, [])
    # tgtd may have made the snapshot after all, when it could, and nobody knows of it.
    system.backend.delete_volume(system.group, volume)
    assert system.backend.volumes() == {}
