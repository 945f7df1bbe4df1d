"""The island over real iSCSI: a run's snapshots shown by placeholders, and nothing left of them.

The volumes are resignatured on the LUNs themselves; what placeholders show is read back from there.
"""

import ssl
from dataclasses import replace

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

from atoll.island.placing import clear, refresh
from atoll.island.presentation import island_host
from atoll.island.runs import find_run
from atoll.model.errors import ConfigurationError, StorageConflictError
from atoll_lab.pool import image
from island_farm import ESX1, ISLAND, MIB, UUIDS, content_of

pytestmark = pytest.mark.needs_root


@pytest.fixture
def stock(simulator):
    """A backup product's own client."""
    settings = simulator.settings()
    context = ssl.create_default_context(cafile=str(settings.ca_file))
    instance = SmartConnect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        pwd=settings.password,
        sslContext=context,
    )
    yield instance
    Disconnect(instance)


ALL = {
    "db1": {2000: content_of("db1", "lun1"), 2001: content_of("db1", "lun2")},
    "app1": {2000: content_of("app1", "lun2")},
}
NOTHING: tuple[set[str], set[str], set[str]] = (set(), set(), set())


def test_placeholders_show_the_newest_run_and_old_ones_go(farm):
    before = farm.portals()
    done = farm.refresh(farm.run("r1"))
    assert (done.kept, done.removed, done.retired) == ([], [], [])
    assert farm.shown() == {vm: ("r1", disks) for vm, disks in ALL.items()}
    morefs = {placeholder.vm: placeholder.moref for placeholder in farm.placeholders.all()}
    first = farm.trace()
    assert [len(each) for each in first] == [1, 2, 2]

    done = farm.refresh(farm.run("r2"))

    assert (done.kept, done.retired) == ([], ["r1"])
    assert farm.shown() == {vm: ("r2", disks) for vm, disks in ALL.items()}
    assert {p.vm: p.moref for p in farm.placeholders.all()} == morefs, "jobs know them again"
    second = farm.trace()
    assert [len(each) for each in second] == [1, 2, 2]
    assert all(not old & new for old, new in zip(first, second, strict=True))

    done = clear(farm.island, farm.placeholders, None)
    assert (done.kept, done.retired) == ([], ["r2"])
    assert farm.trace() == NOTHING
    assert farm.portals() == before, "a rescan waits for none that is gone"
    assert {p.vm: p.moref for p in farm.placeholders.all()} == morefs
    farm.engine.delete_snapshot("prod", "atoll-1-r1")
    farm.engine.delete_snapshot("prod", "atoll-1-r2")


def test_a_run_that_a_job_reads_stays_until_it_is_done(farm, stock):
    farm.refresh(farm.run("r1"))
    db1 = next(p for p in farm.placeholders.all() if p.name == "db1")
    machine = vim.VirtualMachine(db1.moref, stock._stub)
    WaitForTask(machine.CreateSnapshotEx_Task("job", "", memory=False, quiesceSpec=None))

    done = farm.refresh(farm.run("r2"))

    assert [name for name in done.kept if "still reads it" in name], done.kept
    assert farm.placeholders.all()[1].run == "r1"
    assert farm.shown() == {"app1": ("r2", ALL["app1"])}
    assert len(farm.trace()[0]) == 2, "both runs are there"
    with pytest.raises(StorageConflictError):
        farm.engine.delete_snapshot("prod", "atoll-1-r1")
    done = clear(farm.island, farm.placeholders, "r1")
    assert "a backup job still reads run r1" in done.kept[0]

    WaitForTask(machine.snapshot.currentSnapshot.RemoveSnapshot_Task(removeChildren=False))
    done = farm.refresh(find_run(farm.engine, "r2"))
    assert (done.kept, done.retired) == ([], ["r1"])
    assert farm.shown() == {vm: ("r2", disks) for vm, disks in ALL.items()}


def test_placeholders_follow_renamed_and_removed_vms(farm, stock):
    farm.refresh(farm.run("r1"))
    find = stock.content.searchIndex.FindByUuid
    WaitForTask(find(None, UUIDS["db1"], True, True).Rename_Task("db1-new"))
    find(None, UUIDS["app1"], True, True).UnregisterVM()
    done = farm.refresh(farm.run("r2", "db1-new"))
    assert done.removed == ["app1"]
    assert farm.shown() == {"db1-new": ("r2", ALL["db1"])}
    done = farm.refresh(find_run(farm.engine, "r1"))
    assert done.kept == ["VM app1 is not in vCenter any more, so nothing shows it."]
    assert farm.shown() == {"db1": ("r1", ALL["db1"])}, "as it was called in that run"


def test_a_raw_lun_is_shown_as_a_mapping_and_never_taken_for_a_volume(farm, stock, simulator):
    lun = farm.engine.create_lun("prod", "raw1", 32 * MIB)
    for portal in farm.engine.present("prod", "raw1", [ESX1.iqn]).portals:
        simulator.control.add_portal(ESX1.name, f"{portal.address}:{portal.port}")
    farm.vcenter.rescan(ESX1.name)
    # The guest wrote there what looks like a VMFS volume.
    with image(farm.pool, "prod", "lun1").open("rb") as volume:
        content = volume.read(32 * MIB)
    image(farm.pool, "prod", "raw1").write_bytes(content)
    app1 = stock.content.searchIndex.FindByUuid(None, UUIDS["app1"], True, True)
    backing = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[lun2] app1/raw.vmdk",
        deviceName=f"/vmfs/devices/disks/{lun.naa}",
        compatibilityMode="physicalMode",
        diskMode="independent_persistent",
    )
    disk = vim.vm.device.VirtualDisk(
        controllerKey=1000, unitNumber=1, capacityInKB=32 << 10, backing=backing
    )
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    WaitForTask(app1.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))

    for run in ("r1", "r2"):
        done = farm.refresh(farm.run(run))
        assert done.kept == []
        app1 = next(one for one in farm.placeholders.all() if one.name == "app1")
        assert app1.run == run
        machine = vim.VirtualMachine(app1.moref, stock._stub)
        (mapping,) = [
            device.backing
            for device in machine.config.hardware.device
            if isinstance(
                getattr(device, "backing", None),
                vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo,
            )
        ]
        assert mapping.compatibilityMode == "virtualMode"
        (naa,) = [
            each.canonicalName
            for each in machine.runtime.host.config.storageDevice.scsiLun
            if each.uuid == mapping.lunUuid
        ]
        assert naa != lun.naa, "production's own is none of the island's business"
        with farm.read_lun(naa) as reader:
            assert reader.read(0, reader.size_bytes) == content
        assert [len(each) for each in farm.trace()] == [1, 3, 2], "two volumes on three LUNs"

    clear(farm.island, farm.placeholders, None)
    assert farm.trace() == NOTHING


def test_a_host_that_sees_what_it_must_not_ends_it(farm):
    run = farm.run("r1")
    present = farm.engine.present

    def leak(group, lun, initiators):
        shown = present(group, lun, [*initiators, ESX1.iqn])
        for portal in shown.portals:
            farm.simulator.control.add_portal(ESX1.name, f"{portal.address}:{portal.port}")
        farm.vcenter.rescan(ESX1.name)
        return shown

    farm.engine.present = leak
    with pytest.raises(StorageConflictError, match=r"esx1\.lab sees LUNs of run r1"):
        farm.refresh(run)
    farm.vcenter.rescan(ESX1.name)
    farm.vcenter.rescan(ISLAND.name)
    assert farm.trace()[0] == set()
    assert farm.shown() == {}


def test_the_island_has_an_initiator_of_its_own(farm):
    hosts = farm.vcenter.inventory().hosts
    with pytest.raises(ConfigurationError, match="no host esx9 to be the island"):
        island_host(hosts, "esx9")
    twins = [replace(host, iqn=ESX1.iqn) for host in hosts]
    with pytest.raises(ConfigurationError, match=r"same iSCSI name as esx1\.lab, esx2\.lab"):
        island_host(twins, ISLAND.name)


class Cut(BaseException):
    """The end of the process, as far as what runs in it can tell."""


STEPS = (
    *("present", "rescan", "seen_by", "copies", "take_in", "volumes", "put", "let_go", "withdraw"),
    *("forget", "delete_clone", "remove_empty_folders"),
)
QUICK = {("take_in", True), ("put", False), ("withdraw", True)}
CUTS = [
    pytest.param(step, after, marks=[] if (step, after) in QUICK else [pytest.mark.soak])
    for step in STEPS
    for after in (False, True)
]


@pytest.mark.parametrize(("step", "after"), CUTS)
def test_cut_short_anywhere_the_next_refresh_puts_it_right(farm, monkeypatch, step, after):
    """Once before and once after each call to the storage or vCenter, of a refresh that also retires."""
    farm.refresh(farm.run("r1"))
    run = farm.run("r2")
    island, placeholders = farm.island, farm.placeholders
    fired = []
    for owner in (farm.engine, island._volumes, placeholders):
        if not hasattr(owner, step):
            continue
        real = getattr(owner, step)

        def cut(*args, _real=real, **kwargs):
            fired.append(step)
            if after:
                _real(*args, **kwargs)
            raise Cut

        monkeypatch.setattr(owner, step, cut)
    alive = placeholders.hardware(list(UUIDS.values()))
    with pytest.raises(Cut):
        refresh(island, placeholders, run, alive)
    assert fired
    monkeypatch.undo()

    done = farm.refresh(run)

    assert done.kept == []
    assert run.name not in done.retired, "it is shown"
    assert farm.shown() == {vm: ("r2", disks) for vm, disks in ALL.items()}
    assert [len(each) for each in farm.trace()] == [1, 2, 2]
    clear(farm.island, farm.placeholders, None)
    assert farm.trace() == NOTHING
