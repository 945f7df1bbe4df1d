"""A site of which runs are backed up by the recipes, once for all of their tests."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from recipe_farm import RecipeFarm

from atoll.fuse import device
from atoll.vsphere.client import VCenter
from atoll_lab.blueprint import HOSTS
from iscsi_site import SimulatorProcess, pool_of, vmfs_engine


@pytest.fixture(scope="package")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecipeFarm]:
    """Two VMs and two runs of them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    work = tmp_path_factory.mktemp("recipes")
    simulator = SimulatorProcess(work)
    try:
        with vmfs_engine(work) as engine:
            simulator.start()
            with VCenter.connect(simulator.settings()) as vcenter:
                shown = [engine.present("prod", lun, [HOSTS[0].iqn]) for lun in ("lun1", "lun2")]
                for portal in {portal for each in shown for portal in each.portals}:
                    simulator.control.add_portal(HOSTS[0].name, f"{portal.address}:{portal.port}")
                vcenter.rescan(HOSTS[0].name)
            farm = RecipeFarm(work, pool_of(work), simulator)
            farm.build()
            yield farm
    finally:
        simulator.end()
        for place in device.mounts():
            if work in place.parents:
                subprocess.run(["umount", "-l", place], check=False)
