"""vcbRestore on the simulator: every form of export, every place, and what is refused."""

import random
import shutil
from types import SimpleNamespace

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim

from atoll.cli.vcb import commands, full_vm
from atoll.cli.vcb.console import Console
from atoll.cli.vcb.options import RestoreOptions
from atoll.cli.vcb.restore import restore
from atoll.model.errors import (
    AtollError,
    NotFoundInPointError,
    RestoreTargetError,
    UnsupportedFormatError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.recovery.hosted_vmdk import VmdkForm, write_vmdk
from repository_parts import MemoryDisk
from vcb_scripts import VMX
from vsphere_site import DB1_UUID, ESX1, ISLAND, MIB

CATALOG = f"""\
version= esx-3.0
state= poweredOn
display_name= "db1"
uuid= "42000000-0000-0000-0000-0000000000d1"
disk.scsi0:0.filename= "scsi0-0-0-db1.vmdk"
disk.scsi0:0.diskname= "[vmfs1] db1/db1.vmdk"
disk.scsi0:1.filename= "scsi0-0-1-db1.vmdk"
disk.scsi0:1.diskname= "[vmfs2] db1/db1_1.vmdk"
config.vmx= "[vmfs1] db1/db1.vmx"
config0.filename= "db1.nvram"
config1.filename= "db1.vmx"
host= "{ESX1.name}"
atoll.instance_uuid= "{DB1_UUID}"
"""
CONTENT = [random.Random(1).randbytes(MIB) + bytes(MIB), b"second".ljust(MIB, b"-")]
SPLIT_SPARSE = VmdkForm(monolithic=False, flat=False)


def export(directory, form=SPLIT_SPARSE):
    directory.mkdir()
    for unit, content in enumerate(CONTENT):
        write_vmdk(MemoryDisk(content), directory, f"scsi0-0-{unit}-db1", form, lambda done: None)
    (directory / "db1.vmx").write_text(VMX)
    (directory / "catalog").write_text(CATALOG)
    return directory


@pytest.fixture
def run(vcenter, tmp_path):
    """Restore; alternate lines are a catalog beside the export."""

    def start(directory, alternate="", **options):
        if alternate:
            options["alternate"] = directory.with_name("alternate")
            options["alternate"].write_text(alternate)
        site = SimpleNamespace(
            vcenter=lambda: vcenter,
            identity=lambda: "s1",
            work_directory=tmp_path / "state" / "work",
        )
        restore(site, RestoreOptions(directory, **options), Console("vcbRestore"))

    return start


def machines(vcenter):
    return {vm.name: vm.moref for vm in vcenter.inventory().vms}


def holds(site, moref):
    for unit, content in enumerate(CONTENT):
        assert site.control.imported_disk(moref, 2000 + unit).read_bytes() == content


def test_every_form_is_restored(site, vcenter, stock, run, tmp_path, capsys):
    for monolithic in (False, True):
        for flat in (False, True):
            form = VmdkForm(monolithic, flat)
            source = export(tmp_path / form.create_type, form)
            run(source, f"display_name= {form.create_type}\n")
            moref = machines(vcenter)[form.create_type]
            said, errors = capsys.readouterr()
            assert said.endswith(f"Restored {form.create_type} as moref:{moref}\n")
            assert f"{'*' * 50}\n" in said
            for line in (
                "warning] Disk scsi0:2 is not in the export",
                "warning] Left out of the new VM: usb.present",
                "warning] The host has no network 'Elsewhere'; network card 1 is there and not",
                "info] Network card 1 gets a new MAC address",
                "info] The firmware's NVRAM begins anew",
            ):
                assert line in errors
            holds(site, moref)
    config = vim.VirtualMachine(moref, stock._stub).config
    assert (config.guestId, config.firmware, config.hardware.memoryMB, config.hardware.numCPU) == (
        "debian12_64Guest",
        "efi",
        4096,
        2,
    )
    device = vim.vm.device
    disks = [each for each in config.hardware.device if isinstance(each, device.VirtualDisk)]
    assert [(each.unitNumber, each.backing.diskMode) for each in disks] == [
        (0, "persistent"),
        (1, "independent_persistent"),
    ]
    assert [each.backing.fileName.partition("]")[0] for each in disks] == ["[vmfs1", "[vmfs2"]
    (controller,) = [
        each for each in config.hardware.device if isinstance(each, device.VirtualSCSIController)
    ]
    assert isinstance(controller, device.VirtualLsiLogicController)
    cards = [
        each for each in config.hardware.device if isinstance(each, device.VirtualEthernetCard)
    ]
    assert [(type(each), each.connectable.startConnected) for each in cards] == [
        (device.VirtualE1000, True),
        (device.VirtualVmxnet3, False),
    ]
    assert cards[0].macAddress == "00:50:56:01:02:03"
    assert cards[1].macAddress != "00:0c:29:01:02:03"


def test_an_existing_vm_is_replaced_only_when_told_and_off(site, vcenter, stock, run, tmp_path):
    source = export(tmp_path / "export")
    before = machines(vcenter)
    with pytest.raises(RestoreTargetError, match=r"There is a VM db1 \(vm-\d+\); restore over it"):
        run(source)
    with pytest.raises(RestoreTargetError, match="is not powered off"):
        run(source, overwrite=True)
    site.control.set_power("db1", False)
    site.control.inject_fault("NfcUploadBody", fault="drop")
    with pytest.raises(VCenterUnreachableError, match="while disk scsi0:0 was sent"):
        run(source, overwrite=True)
    assert machines(vcenter) == before
    old = vim.VirtualMachine(before["db1"], stock._stub)
    bios = old.config.uuid
    folder = old.parent.CreateFolder("web")
    WaitForTask(folder.MoveIntoFolder_Task([old]))

    run(source / "catalog", overwrite=True)
    after = machines(vcenter)
    assert after.keys() == before.keys()
    assert after["db1"] != before["db1"]
    new = vim.VirtualMachine(after["db1"], stock._stub)
    assert (new.config.instanceUuid, new.config.uuid) == (DB1_UUID, bios)
    assert new.parent.name == "web", "it takes the place of the VM, wherever that was"
    holds(site, after["db1"])


def test_another_place(site, vcenter, stock, run, tmp_path):
    source = export(tmp_path / "export", VmdkForm(monolithic=True, flat=True))
    (datacenter,) = stock.content.rootFolder.childEntity
    datacenter.vmFolder.CreateFolder("back")
    lines = {
        "host": ISLAND.name,
        "folderpath": "/Datacenters/lab/vm/back",
        "resource": "/Datacenters/lab/host/island/Resources",
        "config.vmx": "[island1-local] db1/db1.vmx",
        "disk.scsi0:0.diskname": "[island1-local] db1/db1.vmdk",
        "disk.scsi0:1.diskname": "[island1-local] db1/db1_1.vmdk",
    }
    alternate = "".join(f'{name}= "{value}"\n' for name, value in lines.items())
    # It is the VM itself that has this name: restored elsewhere, there would be two.
    with pytest.raises(RestoreTargetError, match="There is a VM db1"):
        run(source, alternate)
    site.control.remove_vm("db1")
    run(source, alternate)
    moref = machines(vcenter)["db1"]
    holds(site, moref)
    vm = vim.VirtualMachine(moref, stock._stub)
    assert (vm.parent.name, vm.runtime.host.name) == ("back", ISLAND.name)
    assert vm.config.files.vmPathName == "[island1-local] db1/db1.vmx"


REFUSED = [
    ("host= esx9", VCenterOperationError, "no host called esx9"),
    ('config.vmx= "db1.vmx"', UnsupportedFormatError, "config.vmx names no datastore"),
    ('config.vmx= "[gold] x"', VCenterOperationError, "has no datastore gold"),
    ("folderpath= /lab/vm/x", VCenterOperationError, "no folder for VMs /lab/vm/x"),
    ("disk.scsi0:0.filename= ../x", UnsupportedFormatError, "no file of the export"),
    ("config1.filename= ..", NotFoundInPointError, "has no configuration file"),
    ("disk.disk7:0.filename= scsi0-0-0-db1.vmdk", UnsupportedFormatError, "a disk disk7:0"),
    ("disk.scsi0:3.filename= missing.vmdk", UnsupportedFormatError, "missing.vmdk No such"),
]


def test_what_is_refused(vcenter, run, tmp_path):
    before = machines(vcenter)
    source = export(tmp_path / "export")
    for line, error, said in REFUSED:
        with pytest.raises(error, match=said):
            run(source, f"display_name=new\n{line}\n")
    assert machines(vcenter) == before


def test_paths_are_listed(vcenter, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_site", lambda: SimpleNamespace(vcenter=lambda: vcenter))
    for word in ("vmfolders", "resourcepools"):
        assert commands._util(["-c", word], lambda level: Console("vcbUtil")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "/Datacenters/lab/vm",
        "/Datacenters/lab/host/island/Resources",
        "/Datacenters/lab/host/production/Resources",
    ]


def test_an_export_says_where_its_vm_lies(site, vcenter, capsys):
    (db1,) = [vm for vm in vcenter.inventory().vms if vm.name == "db1"]
    console = Console("vcbMounter")
    farm = SimpleNamespace(vcenter=lambda: vcenter)
    assert full_vm._home(farm, db1, console) == {
        "folderpath": "/Datacenters/lab/vm",
        "resourcepool": "/Datacenters/lab/host/production/Resources",
    }
    site.control.forbid("network-9", "name")
    assert full_vm._home(farm, db1, console) == {}
    assert "The catalog has no folder and no resource pool" in capsys.readouterr().err


def test_what_is_no_export_or_damaged(vcenter, run, tmp_path):
    before = machines(vcenter)
    with pytest.raises(UnsupportedFormatError, match="holds no whole export of vcbMounter"):
        run(tmp_path)
    form = VmdkForm(monolithic=True, flat=False)
    source = export(tmp_path / "export", form)
    disk = source / "scsi0-0-0-db1.vmdk"
    with disk.open("r+b") as file:
        file.truncate(disk.stat().st_size - (128 << 10))
    with pytest.raises(UnsupportedFormatError, match="ends before what it is said to hold"):
        run(source, "display_name=new\n")
    assert machines(vcenter) == before, "an import that had begun leaves nothing"
    shutil.rmtree(source)
    with pytest.raises(AtollError):
        run(source)
