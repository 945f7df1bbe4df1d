"""Real LUNs on real iSCSI, and the simulator as a process of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.storage.engine import ManagedEngine
from atoll.vsphere.client import VCenter
from iscsi_site import SimulatorProcess, pool_of, vmfs_engine
from island_farm import Farm


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ManagedEngine]:
    """A pool with group `prod` of two LUNs, each a VMFS volume of the LUN's name."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with vmfs_engine(tmp_path) as running:
        yield running


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[SimulatorProcess]:
    """A simulator that runs."""
    running = SimulatorProcess(tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.fixture
def farm(engine: ManagedEngine, simulator: SimulatorProcess, tmp_path: Path) -> Iterator[Farm]:
    """Two VMs on both LUNs."""
    with VCenter.connect(simulator.settings()) as vcenter:
        yield Farm(engine, pool_of(tmp_path), simulator, vcenter, tmp_path)
