"""The simulator as pyVmomi's own client, and its lazy attributes, see it."""

import threading

import pytest
from pyVim.connect import SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from atoll_lab.vcenter.control import Control, ControlError
from atoll_lab.vcenter.simulator import Simulator
from vmfs_headers import write_vmfs_headers
from vsphere_site import (
    APP1_UUID,
    DB1_UUID,
    ESX1,
    ESX2,
    ISLAND,
    NAA1,
    PASSWORD,
    USER,
    simulated_site,
)

Q = vmodl.query.PropertyCollector
CLONE = "naa.6001405" + "c" * 25


def _vm(stock, uuid=DB1_UUID):
    return stock.content.searchIndex.FindByUuid(None, uuid, True, True)


def _host(stock, plan):
    clusters = stock.content.rootFolder.childEntity[0].hostFolder.childEntity
    return next(h for cluster in clusters for h in cluster.host if h.name == plan.name)


def _watch(stock, vm, *paths):
    spec = Q.FilterSpec(
        objectSet=[Q.ObjectSpec(obj=vm)],
        propSet=[Q.PropertySpec(type=vim.VirtualMachine, pathSet=list(paths))],
    )
    return stock.content.propertyCollector.CreateFilter(spec, True)


def test_every_property_of_every_object_can_be_sent(site, stock):
    """A missing required field would only show when somebody reads it."""
    for moid, managed in list(site.simulator.site.registry._objects.items()):
        if managed.moid in ("ServiceInstance", "SessionManager"):
            continue
        spec = Q.FilterSpec(
            objectSet=[Q.ObjectSpec(obj=managed.ref)],
            propSet=[Q.PropertySpec(type=managed.kind, all=True)],
        )
        answer = stock.content.propertyCollector.RetrieveProperties([spec])
        assert [item.obj._moId for item in answer] == [moid]


def test_login_with_a_wrong_password_is_invalid_login(site):
    with pytest.raises(vim.fault.InvalidLogin):
        SmartConnect(
            host="127.0.0.1",
            port=site.simulator.endpoint.port,
            user=USER,
            pwd="no",
            disableSslCertValidation=True,
        )


def test_without_a_session_there_is_only_the_front_door(site, stock):
    site.control.expire_sessions()

    assert stock.content.sessionManager.currentSession is None
    with pytest.raises(vim.fault.NotAuthenticated):
        stock.content.viewManager.CreateContainerView(stock.content.rootFolder, None, True)

    stock.content.sessionManager.Login(USER, PASSWORD)
    assert stock.content.sessionManager.currentSession.userName == USER


def test_power_follows_tasks_and_refuses_what_makes_no_sense(site, stock):
    vm = _vm(stock)
    assert WaitForTask(vm.PowerOffVM_Task(), si=stock) == "success"
    assert vm.runtime.powerState == "poweredOff"
    with pytest.raises(vim.fault.InvalidPowerState):
        WaitForTask(vm.PowerOffVM_Task(), si=stock)
    WaitForTask(vm.PowerOnVM_Task(), si=stock)
    assert vm.runtime.powerState == "poweredOn"
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.UnregisterVM()


def test_the_power_hook_moves_the_real_guest_and_can_fail(tmp_path):
    calls = []

    def hook(vm: str, on: bool) -> None:
        calls.append((vm, on))
        if on:
            raise RuntimeError("no memory left")

    with simulated_site(tmp_path, power_hook=hook) as site:
        stock = SmartConnect(
            host="127.0.0.1",
            port=site.simulator.endpoint.port,
            user=USER,
            pwd=PASSWORD,
            disableSslCertValidation=True,
        )
        vm = _vm(stock)
        WaitForTask(vm.PowerOffVM_Task(), si=stock)
        with pytest.raises(vim.fault.GenericVmConfigFault, match="no memory left"):
            WaitForTask(vm.PowerOnVM_Task(), si=stock)

        assert calls == [("db1", False), ("db1", True)]
        assert vm.runtime.powerState == "poweredOff"


def test_migration_needs_the_datastores_on_the_other_host(site, stock):
    vm = _vm(stock)
    WaitForTask(vm.MigrateVM_Task(None, _host(stock, ESX2), "defaultPriority", None), si=stock)
    assert vm.runtime.host.name == ESX2.name

    with pytest.raises(vim.fault.InaccessibleDatastore):
        WaitForTask(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=_host(stock, ISLAND))), si=stock)
    assert vm.runtime.host.name == ESX2.name


def test_relocation_of_one_disk_leaves_the_other(site, stock):
    vm = _vm(stock)
    vmfs1 = next(store for store in vm.datastore if store.name == "vmfs1")
    locator = vim.vm.RelocateSpec.DiskLocator(diskId=2001, datastore=vmfs1)

    WaitForTask(vm.RelocateVM_Task(vim.vm.RelocateSpec(disk=[locator])), si=stock)

    assert [store.name for store in vm.datastore] == ["vmfs1"]


def test_snapshots_form_a_tree_and_leave_delta_files(site, stock):
    vm = _vm(stock)
    for name in ("one", "two"):
        WaitForTask(vm.CreateSnapshot_Task(name, "", False, True), si=stock)
    root = vm.snapshot.rootSnapshotList[0]
    assert (root.name, root.childSnapshotList[0].name) == ("one", "two")
    backing = vm.config.hardware.device[1].backing
    assert backing.fileName == "[vmfs1] db1/db1-000002.vmdk"
    assert backing.parent.parent.fileName == "[vmfs1] db1/db1.vmdk"

    WaitForTask(root.snapshot.RemoveSnapshot_Task(False), si=stock)
    assert [each.name for each in vm.snapshot.rootSnapshotList] == ["two"]
    WaitForTask(vm.RemoveAllSnapshots_Task(), si=stock)
    assert vm.snapshot is None
    assert vm.config.hardware.device[1].backing.fileName == "[vmfs1] db1/db1.vmdk"


def test_a_task_can_be_cancelled_before_its_work(site, stock):
    site.control.set_task_seconds("PowerOffVM_Task", 3600.0)
    vm = _vm(stock)
    task = vm.PowerOffVM_Task()
    task.CancelTask()

    with pytest.raises(vmodl.fault.RequestCanceled):
        WaitForTask(task, si=stock)
    assert vm.runtime.powerState == "poweredOn"


def test_updates_tell_what_changed_and_only_that(site, stock):
    collector = stock.content.propertyCollector
    watched = _watch(stock, _vm(stock), "runtime.host", "name")
    first = collector.WaitForUpdatesEx("", Q.WaitOptions(maxWaitSeconds=0))
    assert first.filterSet[0].objectSet[0].kind == "enter"
    assert collector.WaitForUpdatesEx(first.version, Q.WaitOptions(maxWaitSeconds=0)) is None

    mover = threading.Thread(target=site.control.vmotion, args=("db1", ESX2.name))
    mover.start()
    second = collector.WaitForUpdatesEx(first.version, Q.WaitOptions(maxWaitSeconds=60))
    mover.join()

    (change,) = second.filterSet[0].objectSet[0].changeSet
    assert (change.name, change.val.name) == ("runtime.host", ESX2.name)
    again = collector.WaitForUpdatesEx(first.version, Q.WaitOptions(maxWaitSeconds=0))
    assert again.filterSet[0].objectSet[0].changeSet[0].name == "runtime.host", "a lost answer"
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        collector.WaitForUpdatesEx("77", Q.WaitOptions(maxWaitSeconds=0))
    watched.DestroyPropertyFilter()
    assert collector.WaitForUpdatesEx("", Q.WaitOptions(maxWaitSeconds=0)) is None


def test_updates_tell_when_a_vm_leaves(site, stock):
    collector = stock.content.propertyCollector
    _watch(stock, _vm(stock, APP1_UUID), "name")
    first = collector.WaitForUpdatesEx("", Q.WaitOptions(maxWaitSeconds=0))
    site.control.remove_vm("app1")

    second = collector.WaitForUpdatesEx(first.version, Q.WaitOptions(maxWaitSeconds=60))

    assert second.filterSet[0].objectSet[0].kind == "leave"


def test_an_unknown_path_and_a_gone_object_are_refused(site, stock):
    vm = _vm(stock, APP1_UUID)
    with pytest.raises(vmodl.query.InvalidProperty):
        _watch(stock, vm, "runtime.shoeSize")
    site.control.remove_vm("app1")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _watch(stock, vm, "name")


def test_a_method_the_simulator_lacks_is_not_implemented(stock):
    with pytest.raises(vmodl.fault.NotImplemented):
        _vm(stock).ResetVM_Task()


def test_send_targets_can_be_added_and_removed_by_the_api(site, stock):
    host = _host(stock, ISLAND)
    storage = host.configManager.storageSystem
    target = vim.host.InternetScsiHba.SendTarget(address="192.0.2.9", port=3261)
    hba = next(
        each
        for each in host.config.storageDevice.hostBusAdapter
        if isinstance(each, vim.host.InternetScsiHba)
    )
    assert hba.iScsiName == ISLAND.iqn
    storage.AddInternetScsiSendTargets(hba.device, [target])
    assert "192.0.2.9:3261" in _status(site, ISLAND).portals
    storage.RescanHba(hba.device)  # a portal that does not answer does not fail the rescan
    storage.RemoveInternetScsiSendTargets(hba.device, [target])
    assert "192.0.2.9:3261" not in _status(site, ISLAND).portals
    with pytest.raises(vim.fault.NotFound):
        storage.AddInternetScsiSendTargets("vmhba9", [target])


def test_a_clone_is_unresolved_and_not_mounted(site, stock, tmp_path):
    write_vmfs_headers(tmp_path / "clone", NAA1, "vmfs1", 1)  # its header was written for NAA1
    site.fabric.add(tmp_path / "clone", CLONE)
    site.fabric.present(CLONE, ISLAND.iqn)
    site.control.rescan(ISLAND.name)

    assert _status(site, ISLAND).luns == (CLONE,)
    assert _status(site, ISLAND).datastores == ("island1-local",)
    system = _host(stock, ISLAND).configManager.datastoreSystem
    (volume,) = system.QueryUnresolvedVmfsVolumes()
    assert volume.vmfsLabel == "vmfs1"
    assert volume.vmfsUuid == site.uuids["vmfs1"]
    assert volume.extent[0].device.diskName == CLONE
    assert volume.resolveStatus.resolvable


def test_a_volume_over_two_luns_mounts_when_both_are_seen(site, stock, tmp_path):
    naas = ["naa.6001405" + digit * 25 for digit in "89"]
    for ordinal, naa in enumerate(naas):
        write_vmfs_headers(tmp_path / naa, naa, "wide", 7, ordinal=ordinal, extents=2)
        site.fabric.add(tmp_path / naa, naa)
    site.fabric.present(naas[0], ISLAND.iqn)
    site.control.rescan(ISLAND.name)
    assert "wide" not in _status(site, ISLAND).datastores

    site.fabric.present(naas[1], ISLAND.iqn)
    site.control.rescan(ISLAND.name)

    assert "wide" in _status(site, ISLAND).datastores
    wide = next(each for each in _host(stock, ISLAND).datastore if each.name == "wide")
    assert [extent.diskName for extent in wide.info.vmfs.extent] == naas


def test_a_lost_lun_leaves_a_datastore_inaccessible_while_vms_need_it(site, stock):
    site.fabric.present(NAA1, ESX2.iqn)
    site.control.rescan(ESX1.name)

    vmfs1 = next(each for each in _vm(stock).datastore if each.name == "vmfs1")
    access = {mount.key.name: mount.mountInfo.accessible for mount in vmfs1.host}
    assert access == {ESX1.name: False, ESX2.name: True}


def test_faults_strike_as_often_as_asked_and_where_asked(site, stock):
    site.control.inject_fault("PowerOffVM_Task", target="app1", fault="vim.fault.InvalidState")
    WaitForTask(_vm(stock).PowerOffVM_Task(), si=stock)
    with pytest.raises(vim.fault.InvalidState):
        _vm(stock, APP1_UUID).PowerOffVM_Task()
    WaitForTask(_vm(stock, APP1_UUID).PowerOffVM_Task(), si=stock)
    assert [rule["fired"] for rule in site.control.faults()] == [1]
    site.control.clear_faults()
    assert site.control.faults() == []


def test_a_fault_after_the_work_loses_the_answer_only(site, stock):
    WaitForTask(_vm(stock, APP1_UUID).PowerOffVM_Task(), si=stock)
    site.control.inject_fault("UnregisterVM", fault="vmodl.fault.HostCommunication", when="after")
    with pytest.raises(vmodl.fault.HostCommunication):
        _vm(stock, APP1_UUID).UnregisterVM()
    assert _vm(stock, APP1_UUID) is None


def test_wrong_control_requests_are_refused_with_a_reason(site):
    with pytest.raises(ControlError, match="no VM ghost"):
        site.control.vmotion("ghost", ESX1.name)
    with pytest.raises(ControlError, match=r"island1\.lab has not mounted"):
        site.control.vmotion("db1", ISLAND.name)
    with pytest.raises(ControlError, match="before, after or task"):
        site.control.inject_fault("Login", when="never")
    with pytest.raises(ControlError, match="does not answer"):
        Control(site.directory.parent).ping()


def test_a_restart_finds_everything_as_it_was(tmp_path):
    with simulated_site(tmp_path) as site:
        site.control.vmotion("db1", ESX2.name)
        before, state = site.simulator.endpoint, site.simulator.site.state
        fabric = site.fabric
    with Simulator(tmp_path / "vcenter", fabric, USER, PASSWORD) as simulator:
        assert (simulator.endpoint.port, simulator.endpoint.thumbprint) == (
            before.port,
            before.thumbprint,
        )
        assert simulator.site.state == state
        assert (
            simulator.site.vm_named("db1").state.host == simulator.site.host_named(ESX2.name).moid
        )


def _status(site, plan):
    return next(host for host in site.control.hosts() if host.name == plan.name)
