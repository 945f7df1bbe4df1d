"""One SAN guest for all tests of the driver, and a prepared storage system on it."""

import os
from collections.abc import Iterator

import pytest

from atoll_lab.san.guest import SanGuest, san_guest
from san_system import SanSystem


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SanGuest]:
    """A booted guest with a volume group of all disks but the last.

    With udev, as nearly all servers are; the suite's own guest is without.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with san_guest(tmp_path_factory.mktemp("san"), udev=True) as booted:
        yield booted


@pytest.fixture(scope="session")
def system(guest: SanGuest, tmp_path_factory: pytest.TempPathFactory) -> SanSystem:
    """The storage system on it; tests make groups of their own."""
    return SanSystem(guest, tmp_path_factory.mktemp("state"))
