"""Every driver that Cinder registers can be loaded, and the page that lists them is current."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atoll.storage.drivers.cinder import start
from cinder_system import PYTHON

CATALOGUE = "atoll.storage.drivers.cinder.helper.catalogue"
PAGE = Path(__file__).parents[4] / "docs" / "drivers" / "cinder-drivers.md"

NEED_SETTINGS = {
    "dell_emc.powermax.fc.PowerMaxFCDriver",
    "dell_emc.powermax.iscsi.PowerMaxISCSIDriver",
    "fujitsu.eternus_dx.eternus_dx_fc.FJDXFCDriver",
    "fujitsu.eternus_dx.eternus_dx_iscsi.FJDXISCSIDriver",
    "ibm.ibm_storage.ibm_storage.IBMStorageDriver",
    "kioxia.kumoscale.KumoScaleBaseVolumeDriver",
    "lightos.LightOSVolumeDriver",
    "linstordrv.LinstorIscsiDriver",
    "macrosan.driver.MacroSANFCDriver",
    "macrosan.driver.MacroSANISCSIDriver",
    "solidfire.SolidFireDriver",
    "vmstore.nfs.VmstoreNfsDriver",
}
"""Those that ask for an address, a file or a host when they are made; with them they can be."""


def catalogue(*arguments: str) -> str:
    done = subprocess.run(
        [PYTHON, "-s", "-P", start.__file__, CATALOGUE, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def drivers() -> dict[str, dict[str, Any]]:
    return {
        each["driver"].removeprefix("cinder.volume.drivers."): each
        for each in json.loads(catalogue("json"))
    }


def test_every_driver_is_loaded_and_made_but_for_those_that_need_settings(
    drivers: dict[str, dict[str, Any]],
) -> None:
    assert len(drivers) == 103
    assert {name for name, each in drivers.items() if each["obstacle"]} == NEED_SETTINGS


def test_flags_are_what_the_sources_say(drivers: dict[str, dict[str, Any]]) -> None:
    assert sum(each["group_snapshots"] for each in drivers.values()) == 42
    rbd, pure = drivers["rbd.RBDDriver"], drivers["pure.PureFCDriver"]
    assert (rbd["speaks"], rbd["group_snapshots"], rbd["revert"]) == ("RBD", False, True)
    assert (pure["speaks"], pure["group_snapshots"], pure["revert"]) == ("FC", True, True)
    # It has the method, and does not say that what it does is consistent.
    assert not drivers["dell_emc.xtremio.XtremIOISCSIDriver"]["group_snapshots"]
    assert not drivers["dell_emc.vnx.driver.VNXDriver"]["supported"]


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == catalogue(), "run scripts/cinder-drivers"
