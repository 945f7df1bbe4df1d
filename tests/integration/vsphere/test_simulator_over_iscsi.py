"""Hosts that see a LUN only when it is presented over real iSCSI and they rescanned."""

import pytest

from atoll.model.errors import VCenterUnreachableError
from atoll.vsphere.client import VCenter
from atoll_lab.blueprint import HOSTS
from atoll_lab.vcenter.control import NewDisk

pytestmark = pytest.mark.needs_root

ESX1, ESX2, ISLAND = HOSTS
UUID = "50000000-0000-4000-8000-0000000000d1"


def portals_of(presentation):
    return {f"{portal.address}:{portal.port}" for portal in presentation.portals}


def status(simulator, plan):
    return next(host for host in simulator.control.hosts() if host.name == plan.name)


def test_a_lun_comes_with_presentation_and_rescan_and_goes_with_withdrawal(engine, simulator):
    naas = {lun.name: lun.naa for group in engine.groups() for lun in group.luns}
    shown = engine.present("prod", "lun1", [ESX1.iqn, ESX2.iqn])
    engine.present("prod", "lun2", [ESX2.iqn])
    for host in HOSTS:
        for portal in portals_of(shown):
            simulator.control.add_portal(host.name, portal)
    assert all(host.luns == () for host in simulator.control.hosts()), "nobody rescanned yet"

    with VCenter.connect(simulator.settings()) as vcenter:
        for host in HOSTS:
            vcenter.rescan(host.name)

        assert set(status(simulator, ESX1).luns) == {naas["lun1"]}
        assert set(status(simulator, ESX2).luns) == {naas["lun1"], naas["lun2"]}
        assert status(simulator, ISLAND).luns == ()
        found = vcenter.inventory()
        assert found.datastore("lun1").extents == (naas["lun1"],)
        assert found.datastore("lun2").shared
        assert {host.iqn for host in found.hosts} == {plan.iqn for plan in HOSTS}

        engine.present("prod", "lun1", [ESX2.iqn])
        assert set(status(simulator, ESX1).luns) == {naas["lun1"]}, "the host does not know yet"
        vcenter.rescan(ESX1.name)
        assert status(simulator, ESX1).luns == ()
        assert status(simulator, ESX1).datastores == ("esx1-local",)


def test_a_clone_presented_to_the_island_is_unresolved_there(engine, simulator):
    engine.snapshot_group("prod", "run1")
    clone = engine.clone("prod", "run1", "run1-view")
    shown = [engine.present(clone.name, lun.name, [ISLAND.iqn]) for lun in clone.luns]
    for portal in {portal for each in shown for portal in portals_of(each)}:
        simulator.control.add_portal(ISLAND.name, portal)

    with VCenter.connect(simulator.settings()) as vcenter:
        vcenter.rescan(ISLAND.name)

        assert set(status(simulator, ISLAND).luns) == {lun.naa for lun in clone.luns}
        assert status(simulator, ISLAND).datastores == ("island1-local",)
        session = vcenter._session
        volumes = session.call("ask the island", unresolved)
    assert sorted(volume.vmfsLabel for volume in volumes) == ["lun1", "lun2"]
    engine.delete_clone(clone.name)


def test_a_killed_simulator_comes_back_as_it_was(engine, simulator):
    shown = engine.present("prod", "lun1", [ESX1.iqn])
    for portal in portals_of(shown):
        simulator.control.add_portal(ESX1.name, portal)
    simulator.control.rescan(ESX1.name)
    disk = NewDisk(2000, "Hard disk 1", "db1/db1.vmdk", 1 << 20, "lun1")
    simulator.control.add_vm("db1", "lun1", "db1/db1.vmx", [disk], ESX1.name, "Debian", UUID)
    with VCenter.connect(simulator.settings()) as vcenter:
        before = vcenter.inventory()
        settings = simulator.settings()

        simulator.kill()
        simulator.start()

        assert simulator.settings() == settings
        with pytest.raises(VCenterUnreachableError):
            vcenter.inventory()  # over the connection that died with the process
        assert vcenter.inventory() == before, "the client logs in again by itself"
    assert simulator.finish() == 0


def unresolved(content):
    host = next(
        host
        for cluster in content.rootFolder.childEntity[0].hostFolder.childEntity
        for host in cluster.host
        if host.name == ISLAND.name
    )
    return host.configManager.datastoreSystem.QueryUnresolvedVmfsVolumes()
