"""A real cluster and a fake array for the session, which Cinder's own drivers speak to."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.storage.engine import ManagedEngine
from atoll_lab.ceph import mini_cluster
from atoll_lab.pool import create_loop_pool, destroy
from cinder_flash_array import CinderFlashArray, cinder_flash_array
from cinder_system import opened, section


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def rbd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The keys of a storage system in a cluster of one monitor, one manager and one disk."""
    with mini_cluster(tmp_path_factory.mktemp("cinder-ceph")) as cluster:
        yield {
            "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
            "options": {
                "rbd_ceph_conf": str(cluster.conf),
                "rbd_pool": cluster.pool,
                "rbd_user": cluster.user,
            },
        }


@pytest.fixture
def rbd_engine(rbd: dict[str, Any], tmp_path: Path) -> Iterator[ManagedEngine]:
    """An engine over the pool."""
    with opened(section(tmp_path, rbd)) as engine:
        yield engine


@pytest.fixture(scope="session")
def array(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CinderFlashArray]:
    """A FlashArray."""
    directory = tmp_path_factory.mktemp("cinder-array")
    media = create_loop_pool(directory, 4 << 30)
    try:
        with cinder_flash_array(media) as made:
            yield made
    finally:
        destroy(directory)


@pytest.fixture
def array_keys(array: CinderFlashArray, tmp_path: Path) -> dict[str, Any]:
    """The keys of a storage system on it."""
    return array.settings(tmp_path)
