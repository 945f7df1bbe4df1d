"""Placeholder VMs, from the first refresh to the last, over the API."""

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.client import VCenter
from atoll.vsphere.placeholder_specs import ShownDisk
from atoll.vsphere.placeholder_vms import Placeholders
from vsphere_site import APP1_UUID, DB1_UUID, ESX1, ISLAND, MIB, SimulatedSite

HOME = "island1-local"
RUN1, RUN2 = "20260101-010000-aaaa", "20260101-020000-bbbb"


@pytest.fixture
def island(site: SimulatedSite, vcenter: VCenter) -> Placeholders:
    placeholders = vcenter.placeholders(ISLAND.name, HOME, "Atoll")
    placeholders.prepare()
    return placeholders


def disks(run: str, count: int = 2) -> dict[int, ShownDisk]:
    """What a run's copies hold; the island's own datastore stands for them."""
    return {
        2000 + n: ShownDisk(512 * MIB, path=f"[{HOME}] {run}/db1_{n}.vmdk") for n in range(count)
    }


def put(island, run, known=None, count=2, name="db1", uuid=DB1_UUID):
    hardware = island.hardware([uuid])[uuid]
    return island.put(uuid, name, run, hardware, disks(run, count), known)


def machine(stock, moref):
    return vim.VirtualMachine(moref, stock._stub)


def test_a_placeholder_keeps_its_id_and_follows(site, vcenter, island, stock):
    first = put(island, RUN1)
    assert (first.name, first.vm, first.run, first.in_use) == ("db1", DB1_UUID, RUN1, False)
    assert first.disks == {key: disk.path for key, disk in disks(RUN1).items()}

    again = put(island, RUN2, first, count=1, name="db1-renamed")

    assert again.moref == first.moref
    assert (again.name, again.run) == ("db1-renamed", RUN2)
    assert again.disks == {2000: f"[{HOME}] {RUN2}/db1_0.vmdk"}
    assert island.all() == [again]


def test_it_is_made_like_its_vm(site, island, stock):
    made = machine(stock, put(island, RUN1).moref)
    config = made.config
    assert config.instanceUuid != DB1_UUID, "two VMs of one vCenter never share it"
    assert config.managedBy.extensionKey == "org.atoll.backup"
    (source,) = [vm for vm in site_vms(stock) if vm.config.instanceUuid == DB1_UUID]
    assert config.hardware.numCPU == source.config.hardware.numCPU
    assert config.hardware.memoryMB == source.config.hardware.memoryMB
    places = [
        (disk.key, disk.controllerKey, disk.unitNumber)
        for disk in config.hardware.device
        if isinstance(disk, vim.vm.device.VirtualDisk)
    ]
    assert places == [(2000, 1000, 0), (2001, 1000, 1)]
    assert made.parent.name == "Atoll"
    assert made.runtime.host.name == ISLAND.name


def site_vms(stock):
    content = stock.RetrieveContent()
    view = content.viewManager.CreateContainerView(
        content.rootFolder, [vim.VirtualMachine], recursive=True
    )
    return list(view.view)


def test_nobody_may_power_it_on(site, island, stock):
    made = machine(stock, put(island, RUN1).moref)
    with pytest.raises(vim.fault.NoPermission) as refused:
        WaitForTask(made.PowerOnVM_Task())
    assert refused.value.privilegeId == "VirtualMachine.Interact.PowerOn"
    assert made.runtime.powerState == "poweredOff"
    island.prepare()
    with pytest.raises(vim.fault.NoPermission):
        WaitForTask(made.PowerOnVM_Task())


def test_one_that_is_read_stays_as_it_is(site, island, stock):
    first = put(island, RUN1)
    made = machine(stock, first.moref)
    WaitForTask(made.CreateSnapshotEx_Task("backup job", "", memory=False, quiesceSpec=None))
    (read,) = island.all()
    assert read.in_use
    with pytest.raises(VCenterOperationError, match="a backup job still reads it"):
        put(island, RUN2, read)
    assert island.all()[0].run == RUN1
    WaitForTask(made.snapshot.currentSnapshot.RemoveSnapshot_Task(removeChildren=False))
    assert put(island, RUN2, island.all()[0]).run == RUN2


@pytest.mark.parametrize("how", ["followed", "emptied", "removed"])
def test_one_that_a_job_has_begun_to_read_meanwhile_stays_as_it_is(site, island, stock, how):
    first = put(island, RUN1)
    made = machine(stock, first.moref)
    WaitForTask(made.CreateSnapshotEx_Task("backup job", "", memory=False, quiesceSpec=None))
    ways = {
        "followed": lambda: put(island, RUN2, first),
        "emptied": lambda: island.empty(first),
        "removed": lambda: island.remove(first),
    }
    assert not first.in_use
    with pytest.raises(VCenterOperationError, match="a backup job still reads it"):
        ways[how]()
    (read,) = island.all()
    assert (read.run, read.disks.keys(), read.in_use) == (RUN1, first.disks.keys(), True)


def test_network_cards_are_there_and_go_nowhere(site, island, stock):
    (source,) = [vm for vm in site_vms(stock) if vm.config.instanceUuid == APP1_UUID]
    card = vim.vm.device.VirtualVmxnet3(
        key=-1,
        macAddress="00:50:56:12:34:56",
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=True
        ),
    )
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=card)
    WaitForTask(source.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    made = machine(stock, put(island, RUN1, name="app1", uuid=APP1_UUID, count=1).moref)
    (copied,) = [
        device
        for device in made.config.hardware.device
        if isinstance(device, vim.vm.device.VirtualEthernetCard)
    ]
    assert copied.macAddress == "00:50:56:12:34:56"
    assert not copied.connectable.startConnected


def test_placeholders_are_no_vms_to_back_up(site, vcenter, island):
    put(island, RUN1)
    inventory = vcenter.inventory()
    assert [vm.host for vm in inventory.vms if vm.name == "db1"] == [ESX1.name]
    assert ("db1", "a placeholder of Atoll's island") in {
        (left.name, left.reason) for left in inventory.left_out
    }


def test_removing_takes_the_disks_away_first(site, vcenter, island, stock):
    made = put(island, RUN1)
    island.empty(made)
    (emptied,) = island.all()
    assert (emptied.moref, emptied.disks, emptied.run) == (made.moref, {}, "")
    refilled = put(island, RUN2, emptied)
    assert refilled.moref == made.moref
    island.remove(refilled)
    assert island.all() == []


def test_a_vm_that_is_gone_has_no_hardware(island):
    assert list(island.hardware([DB1_UUID, "no-such-vm"])) == [DB1_UUID]


def folders_of(stock, moref):
    """The folders that a VM lies in below the datacenter's own, outermost first."""
    at, names = machine(stock, moref).parent, []
    while at.parent.__class__ is vim.Folder:
        names.insert(0, at.name)
        at = at.parent
    return names


def production(stock, uuid):
    (found,) = [vm for vm in site_vms(stock) if vm.config.instanceUuid == uuid]
    return found


def move(stock, uuid, *path):
    """Put a production VM into folders, which are made."""
    folder = stock.RetrieveContent().rootFolder.childEntity[0].vmFolder
    for name in path:
        known = [each for each in folder.childEntity if each.name == name]
        folder = known[0] if known else folder.CreateFolder(name)
    WaitForTask(folder.MoveIntoFolder_Task([production(stock, uuid)]))


def test_it_lies_in_the_folders_of_its_vm_and_moves_with_it(site, island, stock):
    move(stock, DB1_UUID, "Sales", "EMEA")
    made = put(island, RUN1)
    assert folders_of(stock, made.moref) == ["Atoll", "Sales", "EMEA"]
    other = put(island, RUN1, name="app1", uuid=APP1_UUID, count=1)
    assert folders_of(stock, other.moref) == ["Atoll"]

    move(stock, DB1_UUID, "Finance")
    moved = put(island, RUN2, made)
    island.remove_empty_folders()

    assert (moved.moref, moved.name) == (made.moref, "db1")
    assert folders_of(stock, moved.moref) == ["Atoll", "Finance"]
    ours = machine(stock, other.moref).parent
    assert sorted(each.name for each in ours.childEntity) == ["Finance", "app1"]


def test_two_of_one_name_in_two_folders_keep_it(site, island, stock):
    move(stock, APP1_UUID, "Test")
    first = put(island, RUN1)
    second = put(island, RUN1, name="db1", uuid=APP1_UUID, count=1)
    assert (first.name, second.name) == ("db1", "db1")
    assert folders_of(stock, second.moref) == ["Atoll", "Test"]


def test_swapped_names_are_right_at_the_second_refresh(site, island, stock):
    db1 = put(island, RUN1)
    app1 = put(island, RUN1, name="app1", uuid=APP1_UUID, count=1)

    def follow():
        known = {one.vm: one for one in island.all()}
        return (
            put(island, RUN2, known[DB1_UUID], name="app1"),
            put(island, RUN2, known[APP1_UUID], name="db1", uuid=APP1_UUID, count=1),
        )

    first = follow()
    assert [one.name for one in first] == [f"app1 ({DB1_UUID[:8]})", "db1"]
    second = follow()
    assert [(one.moref, one.name) for one in second] == [(db1.moref, "app1"), (app1.moref, "db1")]
