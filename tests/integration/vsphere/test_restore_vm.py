"""`atoll restore vm` from a repository into the simulated vCenter: copies, over the old, killed."""

import json
import signal
import subprocess
import sys
import tarfile
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from atoll.cli import restore_vm as command
from atoll.cli.main import app
from atoll.model.errors import (
    AtollError,
    ConfigurationError,
    RestoreTargetError,
    UnknownVmError,
    VCenterOperationError,
)
from atoll.model.hardware import HardDisk
from atoll.model.progress import Silent
from atoll.recovery.recovered_hardware import Wished, hardware_of_point
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll.service import restoring
from atoll.service.importing import tidy_restores
from atoll.service.restoring import RestoreOptions, restore_ova, restore_vm
from atoll.vsphere.client import VCenter
from atoll.vsphere.import_vm import MARK
from atoll.vsphere.places import WantedPlace
from repository_parts import CHUNK, MemoryDisk, image, noise, point
from vcb_scripts import VMX
from vsphere_site import DB1_UUID, ESX1, ESX2, SimulatedSite, simulated_site

MIB = 1 << 20
CONTENT = {
    2000: noise(1, 300_000).ljust(3 * MIB, b"\0"),
    2001: bytes(MIB) + noise(2, MIB),
}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    key = create_key_file(tmp_path / "key")
    with Repository.create(tmp_path / "repo", key, chunk_bytes=CHUNK) as repository:
        disks = [
            replace(
                image(repository.copy_disk(MemoryDisk(content))),
                key=number,
                label=f"Hard disk {number - 1999}",
                path=f"[vmfs{number - 1999}] db1/db1.vmdk",
            )
            for number, content in CONTENT.items()
        ]
        made = replace(point("20260101-r1", *disks), instance_uuid=DB1_UUID, vmx=VMX)
        repository.commit([made])
        yield repository


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[SimulatedSite]:
    with simulated_site(tmp_path) as farm:
        yield farm


@pytest.fixture
def vcenter(farm: SimulatedSite) -> Iterator[VCenter]:
    with VCenter.connect(farm.settings()) as vcenter:
        yield vcenter


@pytest.fixture
def site(vcenter: VCenter, repository: Repository, tmp_path: Path) -> Any:
    return SimpleNamespace(
        vcenter=lambda: vcenter,
        repository=lambda: repository,
        identity=lambda: "s1",
        work_directory=tmp_path / "state" / "work",
    )


@pytest.fixture
def stock(farm: SimulatedSite) -> Iterator[Any]:
    settings = farm.settings()
    instance = SmartConnect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        pwd=settings.password,
        disableSslCertValidation=True,
    )
    yield instance
    Disconnect(instance)


def restored(site: Any, **options: Any) -> restoring.RestoredVm:
    return restore_vm(site, "db1@latest", RestoreOptions(**options), Silent())


def names(vcenter: VCenter) -> dict[str, str]:
    return {vm.name: vm.moref for vm in vcenter.inventory().vms}


def config(stock: Any, moref: str) -> Any:
    return vim.VirtualMachine(moref, stock._stub).config


def cards(told: Any) -> list[Any]:
    kind = vim.vm.device.VirtualEthernetCard
    return [device for device in told.hardware.device if isinstance(device, kind)]


def holds(farm: SimulatedSite, moref: str) -> None:
    for key, content in CONTENT.items():
        assert farm.control.imported_disk(moref, key).read_bytes() == content


def records(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "state" / "restores").glob("*"))


def test_a_copy_beside_the_living(farm, vcenter, site, stock, tmp_path) -> None:
    before = names(vcenter)
    done = restored(site, verify=True)
    assert done.name == "db1-restored-20260101-r1"
    assert names(vcenter) == {**before, done.name: done.moref}
    holds(farm, done.moref)
    told = config(stock, done.moref)
    assert told.instanceUuid != DB1_UUID
    assert told.uuid != "42000000-0000-0000-0000-0000000000d1"
    assert MARK not in {option.key for option in told.extraConfig}
    assert [card.connectable.startConnected for card in cards(told)] == [False, False]
    assert cards(told)[0].macAddress != "00:50:56:01:02:03"
    assert vim.VirtualMachine(done.moref, stock._stub).runtime.powerState == "poweredOff"
    assert done.verified
    assert records(tmp_path) == []
    with pytest.raises(RestoreTargetError, match="another --name"):
        restored(site)
    other = restored(
        site, name="db1 elsewhere", host=ESX2.name, datastore="vmfs2", keep=True, connected=True
    )
    told = config(stock, other.moref)
    assert told.files.vmPathName.startswith("[vmfs2] ")
    assert told.uuid == "42000000-0000-0000-0000-0000000000d1"
    assert told.instanceUuid != DB1_UUID, "vCenter has one of that UUID"
    first, second = cards(told)
    assert first.macAddress == "00:50:56:01:02:03"
    assert first.connectable.startConnected
    assert not second.connectable.startConnected, "the host has no network Elsewhere"
    assert any("Elsewhere" in sentence for sentence in other.told)
    mapped = restored(site, name="mapped", mapped={"Elsewhere": "VM Network"}, connected=True)
    states = [card.connectable.startConnected for card in cards(config(stock, mapped.moref))]
    assert states == [False, True]


def test_a_lost_vm_is_the_same_again(farm, vcenter, site, stock) -> None:
    farm.control.remove_vm("db1")
    with pytest.raises(ConfigurationError, match="--host"):
        restored(site)
    with pytest.raises(UnknownVmError, match="leave --over out"):
        restored(site, over=True)
    done = restored(site, host=ESX1.name)
    assert done.name == "db1"
    told = config(stock, done.moref)
    assert told.instanceUuid == DB1_UUID
    assert told.uuid == "42000000-0000-0000-0000-0000000000d1"
    assert cards(told)[0].macAddress == "00:50:56:01:02:03"
    assert cards(told)[0].connectable.startConnected
    holds(farm, done.moref)


def test_over_the_old(farm, vcenter, site, stock, tmp_path) -> None:
    before = names(vcenter)
    with pytest.raises(RestoreTargetError, match="--power-off"):
        restored(site, over=True)
    with pytest.raises(ConfigurationError, match="is for --over"):
        restored(site, power_off=True)
    for options in ({"name": "x"}, {"host": ESX1.name}, {"datastore": "vmfs1"}, {"keep": False}):
        with pytest.raises(ConfigurationError, match="stays where it is"):
            restored(site, over=True, power_off=True, **options)
    assert names(vcenter) == before
    done = restored(site, over=True, power_off=True, verify=True)
    assert names(vcenter).keys() == before.keys()
    assert done.moref == names(vcenter)["db1"] != before["db1"]
    assert config(stock, done.moref).instanceUuid == DB1_UUID
    holds(farm, done.moref)
    assert records(tmp_path) == []


def test_a_disk_that_would_be_lost_is_not(farm, vcenter, site, repository) -> None:
    (known,) = repository.points()
    other = replace(known, id="20260102-r2", run="20260102-r2", disks=known.disks[:1])
    repository.commit([replace(other, created_at=2000.0)])
    before = names(vcenter)
    with pytest.raises(RestoreTargetError, match="Hard disk 2, which the restore point has not"):
        restored(site, over=True, power_off=True)
    assert names(vcenter) == before


def test_a_vm_that_started_meanwhile_is_not_replaced(farm, vcenter, site, monkeypatch, tmp_path):
    farm.control.set_power("db1", False)
    before = names(vcenter)

    def send(*arguments: Any) -> Iterator[bytes]:
        farm.control.set_power("db1", True)
        return stream(*arguments)

    stream = restoring.stream_vmdk
    monkeypatch.setattr(restoring, "stream_vmdk", send)
    with pytest.raises(RestoreTargetError, match="not powered off"):
        restored(site, over=True)
    assert names(vcenter) == before
    assert records(tmp_path) == []


def test_what_does_not_read_back_is_not_kept(farm, vcenter, site, monkeypatch, tmp_path) -> None:
    before = names(vcenter)

    def corrupt(parts: Iterator[bytes], reader: Any, told: Any) -> int | None:
        return difference(parts, MemoryDisk(b"x" + reader.read(1, reader.size_bytes)), told)

    difference = restoring.difference
    monkeypatch.setattr(restoring, "difference", corrupt)
    with pytest.raises(VCenterOperationError, match="differs at byte 0"):
        restored(site, over=True, power_off=True, verify=True)
    assert names(vcenter) == before
    assert records(tmp_path) == []


@pytest.mark.parametrize("method", ["ImportVApp", "NfcUploadBody", "HttpNfcLeaseComplete"])
def test_an_import_that_fails_leaves_nothing(farm, vcenter, site, method, tmp_path) -> None:
    before = names(vcenter)
    farm.control.inject_fault(method, fault="vim.fault.FileLocked")
    with pytest.raises(AtollError):
        restored(site)
    assert names(vcenter) == before
    assert records(tmp_path) == []
    assert tidy_restores(site) == []


def test_the_command(site, monkeypatch, capfd) -> None:
    monkeypatch.setattr(command.context, "site", lambda: site)
    with pytest.raises(SystemExit) as ended:
        app(["restore", "vm", "db1@latest", "--name", "x", "--network", "none", "--json"])
    assert ended.value.code == 0
    told = json.loads(capfd.readouterr().out)
    assert told["name"] == "x"
    with pytest.raises(RestoreTargetError, match="another --name"):
        app(["restore", "vm", "db1@latest", "--name", "x"], standalone_mode=False)
    with pytest.raises(ConfigurationError, match="neither none nor keep"):
        app(["restore", "vm", "db1@latest", "--network", "x"], standalone_mode=False)


def test_what_an_ova_holds_is_imported(farm, vcenter, site, tmp_path) -> None:
    """The disks of the file as it stands, sent through the same import."""
    report, _ = restore_ova(site, "db1@latest", tmp_path / "db1.ova", Silent())
    assert report.disk_bytes == sum(map(len, CONTENT.values()))
    (known,) = site.repository().points()
    made = hardware_of_point(known, Wished("from-ova", False, False, {}), "vmfs1").hardware
    imports = vcenter.imports()
    plan = imports.plan(made, WantedPlace(ESX1.name, "vmfs1"))
    with tarfile.open(tmp_path / "db1.ova") as archive:
        envelope = ET.parse(archive.extractfile("db1.ovf")).getroot()
        named = "{http://schemas.dmtf.org/ovf/envelope/1}"
        files = [each.get(f"{named}href") for each in envelope.iter(f"{named}File")]

        def source(disk: HardDisk, told: Any) -> Iterator[bytes]:
            member = archive.extractfile(files[made.disks.index(disk)])
            while part := member.read(100_000):
                yield part

        moref = imports.run(plan, source, lambda disk: lambda count: None)
    holds(farm, moref)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from types import SimpleNamespace
    from atoll.model.progress import Silent
    from atoll.repository.keys import KeyFile
    from atoll.repository.repository import Repository
    from atoll.service import restoring
    from atoll.vsphere import import_vm
    from atoll.vsphere.client import VCenter, VCenterSettings

    root, port, ca, step = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    place = restoring if step == "stream_vmdk" else import_vm.VmImports
    whole = getattr(place, step)

    def die(*arguments):
        if sys.argv[5] == "after":
            whole(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, step, die)
    settings = VCenterSettings("127.0.0.1", "backup@vsphere.local", "s3cret-word", port, ca)
    with (
        VCenter.connect(settings) as vcenter,
        Repository.open(root / "repo", KeyFile(root / "key")) as repository,
    ):
        site = SimpleNamespace(
            vcenter=lambda: vcenter, repository=lambda: repository, identity=lambda: "s1",
            work_directory=root / "state" / "work",
        )
        options = restoring.RestoreOptions(over=True, power_off=True)
        restoring.restore_vm(site, "db1@latest", options, Silent())
"""


def kill_at(farm: SimulatedSite, tmp_path: Path, step: str, when: str) -> None:
    endpoint = farm.simulator.endpoint
    words = [str(tmp_path), str(endpoint.port), str(endpoint.ca_file), step, when]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *words]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_killed_while_disks_are_sent(farm, vcenter, site, tmp_path) -> None:
    """vCenter takes the half VM away; until then the next start can only say so."""
    before = names(vcenter)
    kill_at(farm, tmp_path, "stream_vmdk", "before")
    assert names(vcenter).keys() - before.keys() == {"db1.restoring"}
    (sentence,) = tidy_restores(site)
    assert "vCenter takes the half VM away by itself" in sentence
    (lease,) = farm.simulator.site.leases.values()
    lease.fail(vim.fault.Timedout(msg="The lease has timed out"))
    assert names(vcenter) == before
    (sentence,) = tidy_restores(site)
    assert "nothing was left" in sentence
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "when", "said", "replaced"),
    [
        ("identity", "before", "was deleted", False),
        ("delete", "after", "was put in its place", True),
        ("settle", "after", "was restored already", True),
    ],
)
def test_killed_between_steps(
    farm, vcenter, site, stock, tmp_path, step: str, when: str, said: str, replaced: bool
) -> None:
    """The next start ends what was begun: the old VM or the new one, never both, never none."""
    before = names(vcenter)
    kill_at(farm, tmp_path, step, when)
    (sentence,) = tidy_restores(site)
    assert said in sentence
    after = names(vcenter)
    assert after.keys() == before.keys()
    assert (after["db1"] != before["db1"]) == replaced
    told = config(stock, after["db1"])
    assert told.instanceUuid == DB1_UUID
    assert MARK not in {option.key for option in told.extraConfig}
    if replaced:
        holds(farm, after["db1"])
    assert records(tmp_path) == []
    assert tidy_restores(site) == []
