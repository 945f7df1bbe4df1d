"""An OVA written in one pass: tar, checksums, disks and descriptor, each by another reader."""

import hashlib
import re
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.errors import RestoreTargetError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.model.hardware import VmHardware
from atoll.model.points import DiskImage
from atoll.recovery import ova
from atoll.recovery.ova import write_ova
from atoll.recovery.recovered_hardware import Wished, hardware_of_point
from repository_parts import MemoryDisk, noise, point
from vcb_scripts import VMX

MIB = 1 << 20
CONTENT = {
    "scsi0:0": noise(1, 300_000).ljust(3 * MIB, b"\0"),
    "scsi0:1": bytes(MIB) + noise(2, 1000) + bytes(MIB + 24),
}
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VMW = "{http://www.vmware.com/schema/ovf}"


@pytest.fixture
def hardware() -> VmHardware:
    disks = [
        DiskImage(2000 + n, f"Hard disk {n + 1}", "", len(content), "", "", (), 0, 0, 0)
        for n, content in enumerate(CONTENT.values())
    ]
    made = replace(point("r1", *disks), vmx=VMX)
    return hardware_of_point(made, Wished("db1 <&> \x01ü", False, True, {}), "").hardware


@pytest.fixture
def readers() -> dict[str, MemoryDisk]:
    return {
        address: MemoryDisk(content, [Extent(2 * MIB, len(content) - 2 * MIB)])
        for address, content in CONTENT.items()
    }


def test_every_part_is_what_it_says(hardware, readers, tmp_path: Path) -> None:
    target, told = tmp_path / "db1.ova", []
    report = write_ova(hardware, readers, target, told.append)
    assert sum(told) == report.disk_bytes == sum(map(len, CONTENT.values()))
    assert report.file_bytes == target.stat().st_size
    listed = subprocess.run(
        ["tar", "-tf", target], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    stem = "db1_______"[: len(listed[0]) - 4]
    assert listed == [f"{stem}.ovf", f"{stem}.mf", f"{stem}-disk1.vmdk", f"{stem}-disk2.vmdk"]
    with tarfile.open(target) as archive:
        assert archive.getmembers()[0].mtime > 0
        archive.extractall(tmp_path / "out", filter="data")
    out = tmp_path / "out"
    sums = dict(re.findall(r"^SHA256\((.+)\)= (\w+)$", (out / listed[1]).read_text(), re.MULTILINE))
    assert sums.keys() == set(listed) - {listed[1]}
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    for name, content in zip(listed[2:], CONTENT.values(), strict=True):
        (tmp_path / "raw").write_bytes(content)
        subprocess.run(["qemu-img", "check", "-f", "vmdk", out / name], check=True)
        compared = ["-f", "raw", "-F", "vmdk", tmp_path / "raw", out / name]
        subprocess.run(["qemu-img", "compare", *compared], check=True)

    envelope = ET.parse(out / listed[0]).getroot()
    assert envelope.tag == f"{OVF}Envelope"
    order = [child.tag.removeprefix(OVF) for child in envelope]
    assert order == ["References", "DiskSection", "NetworkSection", "VirtualSystem"]
    files = {each.get(f"{OVF}id"): each for each in envelope.iter(f"{OVF}File")}
    for disk, name, content in zip(
        envelope.iter(f"{OVF}Disk"), listed[2:], CONTENT.values(), strict=True
    ):
        file = files[disk.get(f"{OVF}fileRef")]
        assert file.get(f"{OVF}href") == name
        assert int(file.get(f"{OVF}size")) == (out / name).stat().st_size
        assert int(disk.get(f"{OVF}capacity")) == len(content)
        assert disk.get(f"{OVF}format").endswith("#streamOptimized")
    networks = [each.get(f"{OVF}name") for each in envelope.iter(f"{OVF}Network")]
    assert networks == ["VM Network", "Elsewhere"]
    (system,) = envelope.iter(f"{OVF}VirtualSystem")
    assert system.findtext(f"{OVF}Name") == "db1 <&> ü"
    assert system.find(f"{OVF}OperatingSystemSection").get(f"{VMW}osType") == "debian12_64Guest"
    configs = {
        each.get(f"{VMW}key"): each.get(f"{VMW}value") for each in system.iter(f"{VMW}Config")
    }
    assert configs["firmware"] == "efi"
    for section in envelope.iter():
        if section.tag.endswith("Section"):
            assert section[0].tag == f"{OVF}Info", "the schema wants it first"
    items = [
        {child.tag.removeprefix(RASD): child.text for child in item}
        for item in system.iter(f"{OVF}Item")
    ]
    for item in items:
        assert list(item) == sorted(item), "the schema has them in the alphabet's order"
        assert {"ElementName", "InstanceID", "ResourceType"} <= item.keys()
    assert len({item["InstanceID"] for item in items}) == len(items)
    (controller,) = [item for item in items if item["ResourceType"] == "6"]
    assert controller["ResourceSubType"] == "lsilogic"
    disks = [item for item in items if item["ResourceType"] == "17"]
    assert [item["AddressOnParent"] for item in disks] == ["0", "1"]
    assert {item["Parent"] for item in disks} == {controller["InstanceID"]}
    assert [item["HostResource"] for item in disks] == [
        f"ovf:/disk/{disk.get(f'{OVF}diskId')}" for disk in envelope.iter(f"{OVF}Disk")
    ]


def test_more_than_ustar_can_say(monkeypatch, hardware, readers, tmp_path: Path) -> None:
    """A file of 8 GiB or more gets the size that GNU's tar writes."""
    monkeypatch.setattr(ova, "_USTAR_BYTES", 300_000)
    write_ova(hardware, readers, tmp_path / "x.ova", lambda _: None)
    magics = []
    with tarfile.open(tmp_path / "x.ova") as archive, (tmp_path / "x.ova").open("rb") as raw:
        for member in archive.getmembers():
            raw.seek(member.offset + 257)
            magics.append(raw.read(8))
    assert magics == [b"ustar\x0000", b"ustar\x0000", b"ustar  \0", b"ustar\x0000"]
    big = tarfile.TarInfo("disk")
    big.size = 9 << 30
    assert len(big.tobuf(tarfile.GNU_FORMAT)) == tarfile.BLOCKSIZE


def test_a_failure_leaves_nothing(hardware, readers, tmp_path: Path) -> None:
    class Failing(MemoryDisk):
        def read(self, offset: int, length: int) -> bytes:
            raise StorageUnreachableError("The repository went away.")

    readers["scsi0:1"] = Failing(CONTENT["scsi0:1"])
    with pytest.raises(StorageUnreachableError):
        write_ova(hardware, readers, tmp_path / "x.ova", lambda _: None)
    with pytest.raises(RestoreTargetError, match="no name for an OVA"):
        write_ova(hardware, readers, tmp_path / "x.tar", lambda _: None)
    assert list(tmp_path.iterdir()) == []
