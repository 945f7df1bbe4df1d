"""A real cluster for the session, and storage systems in its pool."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from atoll.storage.drivers.ceph.driver import Settings
from atoll_lab.ceph import MiniCluster, mini_cluster
from ceph_system import CephSystem


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """One monitor, one manager, one disk."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with mini_cluster(tmp_path_factory.mktemp("ceph")) as made:
        yield made


_NUMBERS = count(1)


@pytest.fixture
def system(cluster: MiniCluster, tmp_path: Path) -> Iterator[CephSystem]:
    """A storage system of its own in the cluster's pool, empty before and after."""
    settings = Settings(
        conf=cluster.conf, pool=cluster.pool, user=cluster.user, keyring=cluster.keyring
    )
    made = CephSystem(settings, tmp_path, f"{os.getpid():08x}{next(_NUMBERS):04x}")
    try:
        yield made
    finally:
        made.clear()
