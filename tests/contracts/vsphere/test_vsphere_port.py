"""What Atoll asks of vSphere, asked over TLS of the simulator."""

import re
from pathlib import Path

import pytest
from pyVim.task import WaitForTask

from atoll.model.errors import VCenterOperationError
from atoll.model.inventory import Datastore, Host, VirtualDisk, VirtualMachine
from atoll.vsphere.client import VCenter
from atoll_lab.vcenter.control import NewDisk
from vsphere_site import (
    APP1_UUID,
    DB1_UUID,
    ESX1,
    ESX2,
    ISLAND,
    MIB,
    NAA1,
    NAA2,
    SimulatedSite,
    simulated_site,
)


def where(placements):
    return {uuid: (place.host, place.datastores) for uuid, place in placements.items()}


def test_inventory_joins_vms_disks_datastores_and_luns(site, vcenter):
    found = vcenter.inventory()

    assert {(host.name, host.iqn) for host in found.hosts} == {
        (plan.name, plan.iqn) for plan in (ESX1, ESX2, ISLAND)
    }
    assert all(isinstance(host, Host) for host in found.hosts)
    vmfs1 = found.datastore("vmfs1")
    assert vmfs1 == Datastore(vmfs1.moref, "vmfs1", "VMFS", (NAA1,), True, site.uuids["vmfs1"])
    assert found.datastore("vmfs2").extents == (NAA2,)
    db1 = next(vm for vm in found.vms if vm.name == "db1")
    assert db1 == VirtualMachine(
        moref=db1.moref,
        instance_uuid=DB1_UUID,
        name="db1",
        host=ESX1.name,
        powered_on=True,
        template=False,
        guest_os="Debian GNU/Linux 12 (64-bit)",
        disks=(
            VirtualDisk(2000, "Hard disk 1", "vmfs1", "db1/db1.vmdk", 3072 * MIB, "persistent"),
            VirtualDisk(2001, "Hard disk 2", "vmfs2", "db1/db1_1.vmdk", 512 * MIB, "persistent"),
        ),
        has_snapshot=False,
        vmx_path="[vmfs1] db1/db1.vmx",
        bios_uuid=db1.bios_uuid,
    )
    assert re.fullmatch("[0-9a-f-]{36}", db1.bios_uuid)


def test_a_hosts_own_disk_is_not_shared_storage(vcenter):
    found = vcenter.inventory()

    scratch = next(vm for vm in found.vms if vm.name == "scratch1")
    assert not scratch.powered_on
    assert not found.datastore(scratch.disks[0].datastore).shared


def test_a_lun_that_one_host_alone_has_mounted_is_shared_storage(site, vcenter):
    site.fabric.present(NAA2, ESX2.iqn)
    site.control.remove_vm("db1")
    site.control.rescan(ESX1.name)

    found = vcenter.inventory()

    assert "vmfs2" not in next(
        host.datastores for host in site.control.hosts() if host.name == ESX1.name
    )
    assert found.datastore("vmfs2").shared


@pytest.mark.parametrize("page_size", [1, 3])
def test_inventory_reads_every_page(tmp_path: Path, page_size: int):
    with simulated_site(tmp_path, page_size=page_size) as site:
        with VCenter.connect(site.settings()) as vcenter:
            found = vcenter.inventory()

        assert len(found.hosts) == 3
        assert len(found.datastores) == 5
        assert {vm.name for vm in found.vms} == {"db1", "app1", "scratch1"}


def test_inventory_leaves_no_view_behind(site, vcenter):
    vcenter.inventory()
    vcenter.placement([DB1_UUID, "no-such-vm"])

    moids = list(site.simulator.site.registry._objects)
    assert not [moid for moid in moids if moid.startswith("session-view")]


def test_placeholders_and_cluster_services_are_left_out_with_a_reason(site, vcenter):
    site.control.add_vm("db9-phVm", "vmfs1", "db9/db9.vmx", [], ESX1.name, "Other")
    disk = NewDisk(2000, "Hard disk 1", "x/x.vmdk", MIB, "vmfs1")
    site.control.add_vm(
        "vCLS-00000000-0000-4000-8000-000000000001",
        "vmfs1",
        "v/v.vmx",
        [disk],
        ESX1.name,
        "Other",
        manager="com.vmware.vim.eam",
    )
    site.control.add_vm("billing-phVm", "vmfs1", "b/b.vmx", [disk], ESX1.name, "Other")

    found = vcenter.inventory()

    assert {vm.name for vm in found.left_out} == {
        "db9-phVm",
        "vCLS-00000000-0000-4000-8000-000000000001",
    }
    assert all(vm.reason for vm in found.left_out)
    assert "billing-phVm" in {vm.name for vm in found.vms}


def test_snapshots_templates_and_raw_mappings_are_told(site, vcenter, stock):
    disk = NewDisk(2000, "Hard disk 1", "r/r.vmdk", MIB, "vmfs1", kind="rdm")
    site.control.add_vm("raw1", "vmfs1", "r/r.vmx", [disk], ESX1.name, "Other")
    site.control.add_vm("gold", "vmfs1", "g/g.vmx", [], ESX1.name, "Other", template=True)
    app1 = stock.content.searchIndex.FindByUuid(None, APP1_UUID, True, True)
    WaitForTask(app1.CreateSnapshot_Task("before", "", False, False), si=stock)

    vms = {vm.name: vm for vm in vcenter.inventory().vms}

    assert vms["raw1"].disks[0].rdm
    assert vms["gold"].template
    assert vms["app1"].has_snapshot
    assert vms["app1"].disks[0].path == "app1/app1-000001.vmdk"
    assert not vms["db1"].has_snapshot


@pytest.mark.parametrize("mode", ["virtualMode", "physicalMode"])
def test_a_raw_mapping_is_followed_to_its_lun(site, vcenter, stock, mode):
    disk = NewDisk(2000, "Hard disk 1", "r/r.vmdk", MIB, "vmfs1", "persistent", "rdm", mode, NAA2)
    site.control.add_vm("raw1", "vmfs1", "r/r.vmx", [disk], ESX1.name, "Other", powered_on=True)

    raw1 = next(vm for vm in vcenter.inventory().vms if vm.name == "raw1")
    (found,) = raw1.disks
    assert (found.rdm_mode, found.lun) == (mode, NAA2)
    before = vcenter.placement([raw1.instance_uuid])[raw1.instance_uuid]
    assert before.raw_luns == ((2000, found.lun_uuid),)

    vm = stock.content.searchIndex.FindByUuid(None, raw1.instance_uuid, True, True)
    backing = vm.config.hardware.device[1].backing
    assert (backing.lunUuid, backing.deviceName) == (found.lun_uuid, f"vml.{found.lun_uuid}")
    WaitForTask(vm.CreateSnapshot_Task("s", "", False, False), si=stock)
    (found,) = next(vm for vm in vcenter.inventory().vms if vm.name == "raw1").disks
    assert found.lun == NAA2
    held = mode == "virtualMode"
    assert found.path == ("r/r-000001.vmdk" if held else "r/r.vmdk")
    assert found.below == (("[vmfs1] r/r.vmdk",) if held else ())

    with site.simulator.site.change():
        site.simulator.site.vm_named("raw1").state.disks[0].lun = NAA1
    after = vcenter.placement([raw1.instance_uuid])[raw1.instance_uuid]
    assert after.raw_luns != before.raw_luns


def test_placement_follows_vmotion_and_storage_vmotion(site, vcenter):
    vcenter.inventory()
    before = vcenter.placement([DB1_UUID, APP1_UUID])
    assert where(before) == {
        DB1_UUID: (ESX1.name, ("vmfs1", "vmfs2")),
        APP1_UUID: (ESX2.name, ("vmfs2",)),
    }

    site.control.vmotion("db1", ESX2.name)
    assert where(vcenter.placement([DB1_UUID])) == {DB1_UUID: (ESX2.name, ("vmfs1", "vmfs2"))}

    site.control.vmotion("app1", datastore="vmfs1")
    assert where(vcenter.placement([APP1_UUID])) == {APP1_UUID: (ESX2.name, ("vmfs1",))}


def test_placement_tells_what_a_vm_writes_to(site, vcenter, stock):
    before = vcenter.placement([APP1_UUID])[APP1_UUID]
    assert (before.powered_on, before.has_snapshot) == (True, False)
    assert before.disks
    vm = stock.content.searchIndex.FindByUuid(None, APP1_UUID, True, True)
    WaitForTask(vm.CreateSnapshot_Task("s", "", False, False), si=stock)
    after = vcenter.placement([APP1_UUID])[APP1_UUID]
    assert after.has_snapshot
    assert after.disks != before.disks
    site.control.set_power("app1", False)
    assert not vcenter.placement([APP1_UUID])[APP1_UUID].powered_on


def test_placement_needs_no_inventory_before_it(vcenter):
    assert where(vcenter.placement([APP1_UUID])) == {APP1_UUID: (ESX2.name, ("vmfs2",))}


def test_placement_leaves_out_what_vcenter_does_not_know(site, vcenter):
    vcenter.inventory()
    site.control.remove_vm("app1")

    found = vcenter.placement([DB1_UUID, APP1_UUID, "never-was"])

    assert set(found) == {DB1_UUID}


def test_placement_finds_a_vm_registered_again_under_a_new_moref(site, vcenter, stock):
    old = next(vm for vm in vcenter.inventory().vms if vm.name == "app1")
    content = stock.content
    vm = content.searchIndex.FindByUuid(None, APP1_UUID, True, True)
    WaitForTask(vm.PowerOffVM_Task(), si=stock)
    vm.UnregisterVM()
    folder = content.rootFolder.childEntity[0].vmFolder
    host = next(host for host in _hosts(content) if host.name == ESX1.name)
    task = folder.RegisterVM_Task("[vmfs2] app1/app1.vmx", None, False, None, host)
    WaitForTask(task, si=stock)

    assert where(vcenter.placement([APP1_UUID])) == {APP1_UUID: (ESX1.name, ("vmfs2",))}
    assert next(vm for vm in vcenter.inventory().vms if vm.name == "app1").moref != old.moref


def test_placement_names_a_datastore_that_is_newer_than_the_inventory(site, vcenter):
    site.fabric.present(NAA2)
    for name in ("db1", "app1"):
        site.control.remove_vm(name)
    for host in (ESX1, ESX2):
        site.control.rescan(host.name)
    assert "vmfs2" not in {store.name for store in vcenter.inventory().datastores}
    site.fabric.present(NAA2, ESX1.iqn)
    vcenter.rescan(ESX1.name)
    disk = NewDisk(2000, "Hard disk 1", "n/n.vmdk", MIB, "vmfs2")
    site.control.add_vm("new1", "vmfs2", "n/n.vmx", [disk], ESX1.name, "Other", APP1_UUID)

    assert where(vcenter.placement([APP1_UUID])) == {APP1_UUID: (ESX1.name, ("vmfs2",))}


def test_rescan_mounts_what_was_presented_and_nothing_else(site: SimulatedSite, vcenter):
    def seen() -> tuple[str, ...]:
        return next(host.luns for host in site.control.hosts() if host.name == ISLAND.name)

    vcenter.rescan(ISLAND.name)
    assert seen() == ()
    site.fabric.present(NAA1, ESX1.iqn, ESX2.iqn, ISLAND.iqn)
    assert seen() == (), "a presented LUN is seen only after a rescan"

    vcenter.rescan(ISLAND.name)

    assert seen() == (NAA1,)
    island = next(host for host in site.control.hosts() if host.name == ISLAND.name)
    assert island.datastores == ("island1-local", "vmfs1")


def test_rescan_of_an_unknown_host_names_those_there_are(vcenter):
    with pytest.raises(VCenterOperationError, match=r"no host called esx9.*esx1\.lab"):
        vcenter.rescan("esx9")


def _hosts(content):
    return [
        host
        for cluster in content.rootFolder.childEntity[0].hostFolder.childEntity
        for host in cluster.host
    ]
