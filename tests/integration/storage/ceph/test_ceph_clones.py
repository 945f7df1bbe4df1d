"""Clones stand by themselves, and chains of them stay short."""

import os
import time

import pytest

from atoll.model.errors import StorageConflictError
from atoll.storage.drivers.ceph.names import image_name
from atoll_lab.ceph import MiniCluster
from ceph_system import MIB, CephSystem

pytestmark = pytest.mark.needs_root

LONGEST_CHAIN = 4  # of helper/flattening.py, which only the distribution's Python can import


def has_parent(cluster: MiniCluster, system: CephSystem, volume: str) -> bool:
    spec = f"{cluster.pool}/{image_name(system.place.id, volume)}"
    return "parent:" in cluster.rbd("info", spec)


def chain(system: CephSystem, length: int) -> list[str]:
    """A volume, a clone of it, a clone of that, and so on; each with a block of its own."""
    volumes = [system.volume()]
    for number in range(length):
        (session,) = system.serve(volumes[-1])
        session.write(number * 8192, bytes([number + 1]) * 4096)
        session.close()
        volumes.append(system.clone(system.snapshot(volumes[-1]), volumes[-1]))
    return volumes


def test_a_chain_of_clones_is_cut_in_the_background(
    cluster: MiniCluster, system: CephSystem
) -> None:
    *volumes, last = chain(system, LONGEST_CHAIN + 1)
    assert all(has_parent(cluster, system, volume) for volume in volumes[1:])
    (session,) = system.serve(last)
    deadline = time.monotonic() + 60
    number = 0
    while has_parent(cluster, system, last):
        number += 1
        session.write(8 * MIB, number.to_bytes(4, "big") * 1024)  # while the manager works
        assert time.monotonic() < deadline, "it was never flattened"
    session.write(8 * MIB, b"done" * 1024)
    for each in range(LONGEST_CHAIN + 1):
        assert session.read(each * 8192, 4096) == bytes([each + 1]) * 4096
    session.close()
    copy = system.clone(system.snapshot(last), last)
    assert has_parent(cluster, system, copy)


def test_a_clone_that_is_to_be_flattened_can_go_at_once(
    cluster: MiniCluster, system: CephSystem
) -> None:
    *_, last = chain(system, LONGEST_CHAIN + 1)
    system.backend.delete_volume(system.group, last)
    assert last not in system.backend.volumes()


def test_a_snapshot_outlives_what_was_made_of_it(system: CephSystem) -> None:
    content = os.urandom(4096)
    volume = system.volume()
    (session,) = system.serve(volume)
    session.write(0, content)
    snapshot = system.snapshot(volume)
    session.write(0, os.urandom(4096))
    copies = [system.clone(snapshot, volume) for _ in range(3)]
    sessions = system.serve(volume, *copies)
    for each in sessions[1:]:
        assert each.read(0, 4096) == content
        each.write(0, os.urandom(4096))
    for each in (session, *sessions):
        each.close()
    assert system.read(volume, snapshot)[:4096] == content
    system.backend.serve(system.group, [])
    for copy in copies:
        system.backend.delete_volume(system.group, copy)
    system.backend.revert(system.group, snapshot, [volume])
    (session,) = system.serve(volume)
    assert session.read(0, 4096) == content
    session.close()


def test_a_volume_with_somebody_elses_snapshot_stays(
    cluster: MiniCluster, system: CephSystem
) -> None:
    volume = system.volume()
    spec = f"{cluster.pool}/{image_name(system.place.id, volume)}@by-hand"
    cluster.rbd("snap", "create", spec)
    assert system.backend.snapshots() == []
    with pytest.raises(StorageConflictError, match="rbd snap ls"):
        system.backend.delete_volume(system.group, volume)
    cluster.rbd("snap", "rm", "--no-progress", spec)
    system.backend.delete_volume(system.group, volume)
    assert system.backend.volumes() == {}
