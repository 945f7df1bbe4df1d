"""The descriptor of an OVA, as govmomi's reader of OVF understands it."""

import tarfile
from dataclasses import replace
from pathlib import Path

from pyVmomi import vim

from atoll.model.points import DiskImage
from atoll.recovery.ova import write_ova
from atoll.recovery.recovered_hardware import Wished, hardware_of_point
from repository_parts import MemoryDisk, noise, point
from vcb_scripts import VMX
from vsphere_farms import vcsim_farm

MIB = 1 << 20


def test_vcsim_makes_the_vm_of_it(vcsim: Path, tmp_path: Path) -> None:
    contents = [noise(n, 70_000).ljust(n * MIB, b"\0") for n in (2, 3)]
    disks = [
        DiskImage(2000 + n, "", "", len(content), "", "", (), 0, 0, 0)
        for n, content in enumerate(contents)
    ]
    made = hardware_of_point(
        replace(point("r1", *disks), vmx=VMX), Wished("db1", False, True, {}), ""
    ).hardware
    readers = dict(zip(("scsi0:0", "scsi0:1"), map(MemoryDisk, contents), strict=True))
    write_ova(made, readers, tmp_path / "db1.ova", lambda _: None)
    with tarfile.open(tmp_path / "db1.ova") as archive:
        members = archive.getmembers()
        text = archive.extractfile(members[0]).read().decode()
    with vcsim_farm(vcsim) as farm:
        content = farm._client.content
        host = next(iter(farm._all(vim.HostSystem)))
        networks = [
            vim.OvfManager.NetworkMapping(name=name, network=host.network[0])
            for name in ("VM Network", "Elsewhere")
        ]
        told = content.ovfManager.CreateImportSpec(
            ovfDescriptor=text,
            resourcePool=host.parent.resourcePool,
            datastore=host.datastore[0],
            cisp=vim.OvfManager.CreateImportSpecParams(
                locale="",
                deploymentOption="",
                entityName="copy",
                networkMapping=networks,
            ),
        )
    assert list(told.error) == []
    assert [(each.path, each.size) for each in told.fileItem] == [
        (member.name, member.size) for member in members[2:]
    ]
    config = told.importSpec.configSpec
    assert (config.numCPUs, config.memoryMB) == (2, 4096)
    assert (config.guestId, config.version) == ("debian12_64Guest", "vmx-19")
    devices = [change.device for change in config.deviceChange]
    kind = vim.vm.device
    (controller,) = [each for each in devices if isinstance(each, kind.VirtualSCSIController)]
    assert isinstance(controller, kind.VirtualLsiLogicController)
    found = [each for each in devices if isinstance(each, kind.VirtualDisk)]
    assert [each.capacityInKB for each in found] == [2 << 10, 3 << 10]
    assert {each.controllerKey for each in found} == {controller.key}
    cards = [each for each in devices if isinstance(each, kind.VirtualEthernetCard)]
    assert [type(each).__name__.rpartition(".")[2] for each in cards] == [
        "VirtualE1000",
        "VirtualVmxnet3",
    ]
