"""vcbRestore of what vcbMounter exported: from a run on real iSCSI into the simulated vCenter."""

import signal
import subprocess
import time

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from atoll_lab.pool import image
from atoll_lab.vmfs import Volume
from island_farm import DISKS, ESX1, UUIDS, content_of
from vcb_scripts import VMX, vcb_commands

pytestmark = pytest.mark.needs_root


@pytest.fixture
def vcb(farm, simulator, tmp_path):
    with vcb_commands(farm.pool, simulator.settings(), tmp_path) as run:
        with Volume(image(farm.pool, "prod", "lun1")) as volume:
            volume.write_file("/db1/db1.vmx", VMX.encode())
        farm.run("20260101-r1")
        yield run


@pytest.fixture
def stock(simulator):
    settings = simulator.settings()
    instance = SmartConnect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        pwd=settings.password,
        disableSslCertValidation=True,
    )
    yield instance
    Disconnect(instance)


def machines(farm) -> dict[str, str]:
    """Ids of all VMs by name."""
    return {vm.name: vm.moref for vm in farm.vcenter.inventory().vms}


def holds(simulator, moref: str) -> None:
    """The new VM's disks are what the run's were, byte for byte."""
    for unit, lun in enumerate(DISKS["db1"]):
        content = simulator.control.imported_disk(moref, 2000 + unit).read_bytes()
        assert content == content_of("db1", lun)


def test_from_a_run_into_vcenter(farm, simulator, vcb, stock, tmp_path):
    farm.write("lun2", "/db1/db1.vmdk", 0, b"written after the run")
    source, catalog = tmp_path / "export", tmp_path / "alternate"
    status, _, errors = vcb("vcbMounter", "-a", "name:db1", "-r", source)
    assert status == 0, errors
    told = (source / "catalog").read_text()
    assert 'folderpath= "/Datacenters/lab/vm"\n' in told
    assert 'resourcepool= "/Datacenters/lab/host/production/Resources"\n' in told
    catalog.write_text("display_name=killed\n")
    before = machines(farm)

    for number, seconds in ((signal.SIGTERM, 300.0), (signal.SIGKILL, 1.5)):
        simulator.control.set_lease(seconds)
        simulator.control.inject_fault("NfcUploadBody", delay_seconds=600)
        process = vcb.start("vcbRestore", "-s", source, "-a", catalog, stdout=subprocess.DEVNULL)
        try:
            while not [rule for rule in simulator.control.faults() if rule["fired"]]:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            assert machines(farm).keys() - before.keys() == {"killed"}
        finally:
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        simulator.control.clear_faults()
        if number is signal.SIGTERM:
            assert "Error: interrupted" in errors
            assert machines(farm) == before
    while machines(farm) != before:
        time.sleep(0.05)
    simulator.control.set_lease(300.0)

    catalog.write_text(f'display_name= "copy of db1"\nhost={ESX1.name}\n')
    status, said, errors = vcb("vcbRestore", "-s", source, "-a", catalog)
    assert status == 0, errors
    copy = machines(farm)["copy of db1"]
    assert f"Restored copy of db1 as moref:{copy}\n" in said
    assert 'Restoring "scsi0-0-1-db1.vmdk" (scsi0:1):\n\t0%=====================50%' in said
    holds(simulator, copy)
    config = vim.VirtualMachine(copy, stock._stub).config
    assert config.instanceUuid != UUIDS["db1"]

    status, said, errors = vcb("vcbRestore", "-s", source, "-b", "overwrite")
    assert status == 0, errors
    after = machines(farm)
    assert after.keys() == before.keys() | {"copy of db1"}
    assert after["db1"] != before["db1"]
    assert vim.VirtualMachine(after["db1"], stock._stub).config.instanceUuid == UUIDS["db1"]
    holds(simulator, after["db1"])
