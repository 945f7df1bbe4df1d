"""Importing whole VMs: Atoll against the simulator, and the simulator against the stock client."""

import contextlib
import http.client
import random
import ssl
import subprocess
import time
import uuid
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim

from atoll.model.errors import AuthenticationError, VCenterOperationError, VCenterUnreachableError
from atoll.model.hardware import Controller, HardDisk, NetworkCard, VmHardware
from atoll.recovery.stream_vmdk import stream_vmdk
from atoll.vsphere import nfc_lease
from atoll.vsphere.client import VCenter
from atoll.vsphere.import_vm import VmIdentity
from atoll.vsphere.places import WantedPlace
from atoll_lab.vcenter.simulator import Simulator
from repository_parts import MemoryDisk
from vsphere_farms import vcsim_farm
from vsphere_site import ESX1, MIB, PASSWORD, USER, SimulatedSite

PLACE = WantedPlace(host=ESX1.name, datastore="vmfs1")
CONTENT = {
    "scsi0:0": random.Random(1).randbytes(3 * MIB) + bytes(2 * MIB + 512),
    "scsi1:2": bytes(MIB),
    "sata0:1": random.Random(2).randbytes(MIB),
    "ide1:0": b"old".ljust(MIB, b"-"),
    "nvme0:3": random.Random(3).randbytes(200_192),
}
KEYS = {"scsi0:0": 2000, "scsi1:2": 2018, "sata0:1": 16001, "ide1:0": 3002, "nvme0:3": 31003}


def hardware(name: str = "new1", **changes) -> VmHardware:
    """One disk at every kind of controller."""
    values = {
        "name": name,
        "guest_os": "debian12-64",
        "cpus": 4,
        "cores_per_socket": 2,
        "memory_mb": 2048,
        "firmware": "efi",
        "secure_boot": True,
        "annotation": "two\nlines",
        "version": 19,
        "controllers": (
            Controller("lsilogic", 0),
            Controller("pvscsi", 1, "virtual"),
            Controller("ahci", 0),
            Controller("ide", 1),
            Controller("nvme", 0),
        ),
        "disks": tuple(
            HardDisk(address, len(content), "vmfs2" if address == "scsi1:2" else "vmfs1")
            for address, content in CONTENT.items()
        ),
        "cards": (
            NetworkCard("vmxnet3", "VM Network", "00:50:56:11:22:33"),
            NetworkCard("e1000", "VM Network", connected=False),
            NetworkCard("e1000e", "elsewhere"),
        ),
        "extra": {"disk.EnableUUID": "TRUE"},
    }
    return VmHardware(**{**values, **changes})


def small(name: str = "new1") -> VmHardware:
    """With one disk."""
    disk = HardDisk("scsi0:0", len(CONTENT["scsi0:0"]), "vmfs1")
    return hardware(name, disks=(disk,), controllers=(Controller("pvscsi", 0),), cards=())


def source(disk, told):
    return stream_vmdk(MemoryDisk(CONTENT[disk.address]), told)


def nobody(disk):
    return lambda done: None


def imported(vcenter: VCenter, wanted: VmHardware, place: WantedPlace = PLACE, source=source):
    imports = vcenter.imports()
    return imports.run(imports.plan(wanted, place), source, nobody)


def names(vcenter: VCenter) -> list[str]:
    return sorted(vm.name for vm in vcenter.inventory().vms)


def left(site: SimulatedSite) -> list[Path]:
    """What is left of disks among the simulator's files."""
    return [path for path in (site.directory / "disks").rglob("*") if path.is_file()]


@pytest.mark.parametrize("direct", [False, True], ids=["vcenter", "host"])
def test_a_vm_arrives_as_it_was(site, vcenter, stock, direct):
    site.control.set_lease(300, direct)
    moved: dict[str, list[int]] = {}

    def progress(disk):
        return moved.setdefault(disk.address, []).append

    imports = vcenter.imports()
    plan = imports.plan(hardware(), PLACE)
    assert [line for line in plan.told if "elsewhere" in line]
    moref = imports.run(plan, source, progress)
    for address, content in CONTENT.items():
        assert site.control.imported_disk(moref, KEYS[address]).read_bytes() == content
        assert moved[address][-1] == len(content)
    vm = vim.VirtualMachine(moref, stock._stub)
    config = vm.config
    assert (config.name, config.guestId, config.firmware) == ("new1", "debian12_64Guest", "efi")
    assert (config.hardware.numCPU, config.hardware.memoryMB) == (4, 2048)
    assert config.annotation == "two\nlines"
    assert ("disk.EnableUUID", "TRUE") in {(each.key, each.value) for each in config.extraConfig}
    assert config.files.vmPathName == "[vmfs1] new1/new1.vmx"
    devices = {device.key: device for device in config.hardware.device}
    kinds = {address: devices[devices[KEYS[address]].controllerKey] for address in CONTENT}
    assert {address: type(each).__name__.rpartition(".")[2] for address, each in kinds.items()} == {
        "scsi0:0": "VirtualLsiLogicController",
        "scsi1:2": "ParaVirtualSCSIController",
        "sata0:1": "VirtualAHCIController",
        "ide1:0": "VirtualIDEController",
        "nvme0:3": "VirtualNVMEController",
    }
    assert kinds["scsi1:2"].sharedBus == "virtualSharing"
    assert devices[2018].backing.fileName.startswith("[vmfs2] new1/")
    cards = [
        each for each in devices.values() if isinstance(each, vim.vm.device.VirtualEthernetCard)
    ]
    assert [type(card).__name__.rpartition(".")[2] for card in cards] == [
        "VirtualVmxnet3",
        "VirtualE1000",
        "VirtualE1000e",
    ]
    assert [card.connectable.startConnected for card in cards] == [True, False, False]
    assert cards[0].macAddress == "00:50:56:11:22:33"
    assert cards[1].macAddress != cards[0].macAddress
    assert vm.parent.name == "vm"
    assert vm.runtime.host.name == ESX1.name
    WaitForTask(vm.PowerOnVM_Task())
    WaitForTask(vm.PowerOffVM_Task())
    WaitForTask(vm.Destroy_Task())
    assert left(site) == []


def test_places_by_path(site, vcenter, stock):
    (top,) = stock.content.rootFolder.childEntity
    web = top.vmFolder.CreateFolder("web").CreateFolder("shop")
    paths = vcenter.imports().places()
    assert paths.folders()[web._moId] == "/Datacenters/lab/vm/web/shop"
    assert "/Datacenters/lab/host/island/Resources" in paths.pools().values()
    for folder in ("/Datacenters/lab/vm/web/shop", "/lab/vm/web/shop/"):
        place = WantedPlace(ESX1.name, "vmfs1", folder, "/lab/host/production/Resources")
        assert paths.find(place, ()).folder == web._moId
    moref = imported(vcenter, small(), place)
    home = vcenter.imports().home_of(moref)
    assert [paths.path(each) for each in home] == [
        "/Datacenters/lab/vm/web/shop",
        "/Datacenters/lab/host/production/Resources",
    ]
    for wanted, said in (
        (WantedPlace("esx9", "vmfs1"), "no host called esx9; it knows esx"),
        (WantedPlace(ESX1.name, "gold"), "has no datastore gold; it has esx1-local, vmfs1, vmfs2"),
        (WantedPlace(ESX1.name, "vmfs1", "/lab/vm/x"), "There is no folder for VMs /lab/vm/x"),
        (WantedPlace(ESX1.name, "vmfs1", "/lab/host"), "There is no folder for VMs /lab/host"),
        (
            WantedPlace(ESX1.name, "vmfs1", pool="/lab/host/island/Resources"),
            "is none of host esx1",
        ),
    ):
        with pytest.raises(VCenterOperationError, match=said):
            paths.find(wanted, ())


def test_nothing_is_left_of_a_disk_that_cannot_be_read(site, vcenter):
    def broken(disk, told):
        for number, part in enumerate(source(disk, told)):
            if number == 1:
                raise OSError(5, "Input/output error")
            yield part

    before = names(vcenter)
    with pytest.raises(OSError, match="Input/output error"):
        imported(vcenter, small(), source=broken)
    assert names(vcenter) == before
    with pytest.raises(KeyboardInterrupt):
        imported(vcenter, small(), source=lambda disk, told: interrupted())
    assert names(vcenter) == before
    assert left(site) == []


def interrupted():
    yield b"KDMV"
    raise KeyboardInterrupt


FAULTS = [
    ("NfcUploadBody", "drop", "before", VCenterUnreachableError, "while disk scsi0:0 was sent"),
    ("NfcUpload", "drop", "after", VCenterUnreachableError, "while disk scsi0:0 was sent"),
    ("ImportVApp", "vim.fault.DuplicateName", "before", VCenterOperationError, "Injected"),
    ("ImportVApp", "vim.fault.NoDiskSpace", "task", VCenterOperationError, "its lease is error"),
    (
        "HttpNfcLeaseComplete",
        "vmodl.fault.SystemError",
        "before",
        VCenterOperationError,
        "could not import VM new1: Injected",
    ),
]


def test_nothing_is_left_when_something_fails(site, vcenter):
    before = names(vcenter)
    for method, fault, when, error, said in FAULTS:
        site.control.clear_faults()
        site.control.inject_fault(method, fault=fault, when=when)
        with pytest.raises(error, match=said):
            imported(vcenter, small())
        assert [rule["fired"] for rule in site.control.faults()] == [1], method
        assert names(vcenter) == before
        assert left(site) == []
    assert imported(vcenter, small())


def test_a_lost_answer_to_the_last_call_is_looked_after(site, vcenter):
    site.control.inject_fault("HttpNfcLeaseComplete", fault="drop", when="after")
    moref = imported(vcenter, small())
    assert site.control.faults()[0]["fired"] == 1
    assert site.control.imported_disk(moref, 2000).read_bytes() == CONTENT["scsi0:0"]


def test_a_vm_that_cannot_be_aborted_goes_with_its_lease(site, vcenter, monkeypatch):
    monkeypatch.setattr(nfc_lease, "_LONGEST_SILENCE_SECONDS", 0.1)
    site.control.set_lease(0.5)
    before = names(vcenter)
    site.control.inject_fault("HttpNfcLeaseAbort", fault="drop")
    site.control.inject_fault("NfcUploadBody", fault="drop")
    with pytest.raises(VCenterUnreachableError) as caught:
        imported(vcenter, small())
    assert "vCenter takes the half VM away when its lease has ended" in caught.value.__notes__[-1]
    while names(vcenter) != before:
        time.sleep(0.05)
    assert left(site) == []


def test_a_lease_is_kept_while_a_disk_is_slow(site, vcenter, monkeypatch):
    monkeypatch.setattr(nfc_lease, "_LONGEST_SILENCE_SECONDS", 0.05)

    def slow(disk, told):
        (lease,) = site.simulator.site.leases.values()
        for number, part in enumerate(source(disk, told), 1):
            while lease.signs < 2 * number:
                time.sleep(0.01)
            yield part

    assert imported(vcenter, small(), source=slow)


def test_a_lease_that_ended_ends_the_upload(site, vcenter, monkeypatch):
    monkeypatch.setattr(nfc_lease, "_LONGEST_SILENCE_SECONDS", 0.1)
    site.control.inject_fault("HttpNfcLeaseProgress", fault="vim.fault.InvalidState")
    parts = 0

    def endless(disk, told):
        nonlocal parts
        while True:
            parts += 1
            yield bytes(512)
            time.sleep(0.01)

    with pytest.raises(VCenterOperationError, match="could not import VM new1: Injected"):
        imported(vcenter, small(), source=endless)
    assert parts


def test_a_disk_that_does_not_fit_is_refused(site, vcenter):
    before = names(vcenter)
    smaller = b"".join(stream_vmdk(MemoryDisk(bytes(MIB)), lambda done: None))
    for content, said in (
        (b"no VMDK at all" * 100, "No VMDK"),
        (smaller, "The capacity is 1048576"),
    ):
        parts = iter([content])
        with pytest.raises(VCenterOperationError, match="refused disk scsi0:0: 500") as caught:
            imported(vcenter, small(), source=lambda disk, told, parts=parts: parts)
        assert said in str(caught.value) + "".join(caught.value.__notes__)
        assert names(vcenter) == before


def test_privileges(site, vcenter, stock):
    manager = stock.content.authorizationManager
    (datacenter,) = stock.content.rootFolder.childEntity
    wanted = {
        "VApp.Import",
        "Resource.AssignVMToPool",
        "VirtualMachine.Inventory.Create",
        "VirtualMachine.Config.AddNewDisk",
        "VirtualMachine.Config.AdvancedConfig",
        "Datastore.AllocateSpace",
        "Network.Assign",
    }
    number = manager.AddAuthorizationRole("importer", [])
    manager.SetEntityPermissions(
        datacenter,
        [
            vim.AuthorizationManager.Permission(
                principal=USER, group=False, roleId=number, propagate=True
            )
        ],
    )
    granted: list[str] = []
    while True:
        manager.UpdateAuthorizationRole(number, "importer", granted)
        try:
            assert imported(vcenter, hardware())
        except VCenterOperationError as error:
            (missing,) = [each for each in wanted if f"lacks the privilege {each};" in str(error)]
            granted.append(missing)
            continue
        break
    assert set(granted) == wanted


def test_certificates_of_hosts(site, vcenter):
    site.control.set_lease(300, direct=True)
    with VCenter.connect(site.settings()) as other:
        session = other._session
        info = nfc_lease.DeviceUrl("x", f"https://localhost:{session.settings.port}/nfc/a/b", "")
        from atoll.vsphere.nfc_upload import upload

        wrong = ":".join(["00"] * 20)
        for thumbprint, error, said in (
            (wrong, AuthenticationError, "the certificate's SHA-1 is"),
            ("00:11", VCenterOperationError, "neither SHA-1 nor SHA-256"),
            (site.simulator.endpoint.thumbprint, VCenterOperationError, "refused x: 404"),
        ):
            target = nfc_lease.DeviceUrl("x", info.url, thumbprint)
            with pytest.raises(error, match=said):
                upload(session, target, iter([b"x"]), "x")
        with pytest.raises(VCenterOperationError, match="no https address"):
            upload(session, nfc_lease.DeviceUrl("x", "http://h/x", ""), iter([]), "x")


def test_the_stock_client_imports(site, stock, tmp_path):
    """The documented sequence, as govc and VMware's samples have it, with a disk QEMU wrote."""
    (datacenter,) = stock.content.rootFolder.childEntity
    (cluster,) = [each for each in datacenter.hostFolder.childEntity if each.name == "production"]
    plain, packed = tmp_path / "plain", tmp_path / "packed.vmdk"
    plain.write_bytes(CONTENT["scsi0:0"])
    words = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", *words, plain, packed], check=True)
    device = vim.vm.device
    disk = device.VirtualDisk(
        key=-2,
        controllerKey=-1,
        unitNumber=0,
        capacityInKB=0,
        capacityInBytes=len(CONTENT["scsi0:0"]),
        backing=device.VirtualDisk.FlatVer2BackingInfo(fileName="[vmfs1]", diskMode="persistent"),
    )
    controller = device.VirtualLsiLogicController(key=-1, busNumber=0, sharedBus="noSharing")
    config = vim.vm.ConfigSpec(
        name="ovf1",
        guestId="otherGuest",
        memoryMB=64,
        numCPUs=1,
        files=vim.vm.FileInfo(vmPathName="[vmfs1]"),
        deviceChange=[
            device.VirtualDeviceSpec(operation="add", device=controller),
            device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk),
        ],
    )
    lease = cluster.resourcePool.ImportVApp(
        vim.vm.VmImportSpec(configSpec=config), datacenter.vmFolder
    )
    while lease.state == "initializing":
        time.sleep(0.01)
    assert lease.state == "ready"
    info = lease.info
    assert (info.leaseTimeout, info.totalDiskCapacityInKB) == (300, len(CONTENT["scsi0:0"]) >> 10)
    with pytest.raises(vim.fault.TaskInProgress):
        WaitForTask(info.entity.PowerOnVM_Task())
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseComplete()
    (url,) = [each for each in info.deviceUrl if each.disk]
    assert url.importKey == "/ovf1/VirtualLsiLogicController0:0"
    path = urlsplit(url.url).path

    def send(method: str, path: str, content_type: str, body: bytes = b"x") -> int:
        endpoint = site.simulator.endpoint
        context = ssl.create_default_context(cafile=endpoint.ca_file)
        connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, context=context)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": content_type})
            return connection.getresponse().status

    right = "application/x-vnd.vmware-streamVmdk"
    assert send("POST", path.replace("/nfc/", "/nfc/x"), right) == 404
    assert send("POST", path, "application/octet-stream") == 415
    assert send("PUT", path, right, packed.read_bytes()) == 200
    lease.HttpNfcLeaseProgress(50)
    lease.HttpNfcLeaseProgress(100)
    assert lease.transferProgress == 100
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    assert site.control.imported_disk("ovf1", 2000).read_bytes() == CONTENT["scsi0:0"]
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseAbort()
    with pytest.raises(vim.fault.DuplicateName):
        cluster.resourcePool.ImportVApp(vim.vm.VmImportSpec(configSpec=config), datacenter.vmFolder)
    assert send("POST", path, right) == 404


def test_half_a_vm_is_gone_after_a_restart(site, vcenter):
    before = names(vcenter)
    imports = vcenter.imports()
    imports._begin(imports.plan(small(), PLACE), "import VM new1")
    while names(vcenter) == before:
        time.sleep(0.01)
    site.simulator.close()
    with (
        Simulator(site.directory, site.fabric, USER, PASSWORD),
        VCenter.connect(site.settings()) as again,
    ):
        assert names(again) == before


def test_on_vcsim(vcsim):
    """vcsim does not look at what it is sent; the calls and their order are what it judges."""
    with vcsim_farm(vcsim) as farm, VCenter.connect(farm.settings) as vcenter:
        imports = vcenter.imports()
        places = imports.places()
        assert "/Datacenters/DC0/vm" in places.folders().values()
        assert "/Datacenters/DC0/host/DC0_C0/Resources" in places.pools().values()
        assert "new1" not in farm.vms()
        place = WantedPlace("DC0_H0", "LocalDS_0", "/DC0/vm", "/DC0/host/DC0_H0/Resources")
        disk = HardDisk("scsi0:0", len(CONTENT["scsi0:0"]) & ~1023, "LocalDS_0")
        wanted = replace(small(), disks=(disk,), cards=(NetworkCard("vmxnet3", "VM Network"),))
        plan = imports.plan(wanted, place)
        assert plan.told == ()
        moref = imports.run(plan, source, nobody)
        assert "new1" in farm.vms()
        assert places.path(imports.home_of(moref)[0]) == "/Datacenters/DC0/vm"
        identity = VmIdentity(str(uuid.uuid4()), str(uuid.uuid4()))
        imports.power_off(moref, "new1")
        assert imports.is_off(moref)
        imports.settle(moref, "settled", identity)
        assert imports.identity(moref) == identity
        found = imports.find(identity.instance_uuid)
        assert (found.moref, found.name) == (moref, "settled")
        assert moref not in imports.marked().values()
        for _ in range(2):
            imports.delete(moref, "settled")
        assert imports.find(identity.instance_uuid) is None

        def broken(disk, told):
            yield b"KDMV"
            raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            imports.run(imports.plan(replace(wanted, name="new2"), place), broken, nobody)
