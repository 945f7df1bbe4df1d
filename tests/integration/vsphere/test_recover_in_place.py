"""VMs recovered in place over real iSCSI: what they see, what is left, and what a kill leaves.

The guests are none: the disks are read and written as their host would.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll.fuse import device
from atoll.model.errors import (
    AtollError,
    ConfigurationError,
    RestoreTargetError,
    UnknownPointError,
    UnknownVmError,
    VCenterOperationError,
)
from atoll.model.progress import Silent
from atoll.recovery.disk_target import TargetDisk
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll.service.recoveries import RecoverOptions, Recovery, Source
from atoll.service.recovering import (
    Recovered,
    end_recovery,
    list_recoveries,
    recover_vm,
    resume_recovery,
    tidy_recoveries,
)
from atoll.service.recovery_serving import recoveries, target_disks
from atoll.service.site import Site
from atoll.storage.initiator import IscsiLun, discover
from atoll.vsphere.client import VCenter
from atoll.vsphere.recovered_vms import RecoveredVms
from atoll.wiring import open_site
from atoll_lab.pool import image
from atoll_lab.vcenter.control import NewDisk
from atoll_lab.vcenter.vmfs_header import read_volume
from atoll_lab.vmfs import Volume
from iscsi_site import SimulatorProcess, pool_of, vmfs_engine, write_settings
from island_farm import ESX1, MIB, Farm

pytestmark = pytest.mark.needs_root

UUID = "50000000-0000-4000-8000-0000000000e1"
BIOS = "564d0102-0304-0506-0708-090a0b0c0d0e"
MAC = "00:50:56:9a:00:17"
SIZE = 24 * MIB
MORE = """
[repository]
location = "repo"
cache_directory = "cache"
key_file = "key"

[agents]
directory = "agents"

[recovery]
durability = "cache"
"""
OPTIONS = RecoverOptions(host=ESX1.name, datastore="esx1-local")


@dataclass(frozen=True)
class Place:
    """A farm with VM `web1` of two disks, backed up: an ext4 volume, and one that has changed since."""

    farm: Farm
    settings: Path
    run: str
    first: bytes

    @property
    def site(self) -> Site:
        return open_site(self.settings)

    def host(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the host sees and has mounted."""
        (host,) = (each for each in self.farm.simulator.control.hosts() if each.name == ESX1.name)
        return host.luns, host.datastores

    def standing(self) -> dict[str, object]:
        """What must be the same again after a recovery, by what it is."""
        with VCenter.connect(self.farm.simulator.settings()) as vcenter:
            vms = sorted(vm.name for vm in vcenter.recovered().all())
        return {
            "groups": sorted(group.name for group in self.farm.engine.groups()),
            "presented": sorted(each.lun for each in self.farm.engine.presentations()),
            "host": self.host(),
            "portals": [h.portals for h in self.farm.simulator.control.hosts()],
            "vms": vms,
            "mounts": [m for m in device.mounts() if self.settings.parent in m.parents],
            "recoveries": sorted((self.settings.parent / "state/recoveries").glob("*/*")),
            "served": [line for line in _processes() if str(self.settings) in line],
            "holds": [hold.reason for hold in self.site.repository().holds().found],
        }

    def lun(self, naa: str) -> IscsiLun:
        """A LUN as the host finds it: at its portals, by its name."""
        (host,) = (each for each in self.farm.simulator.control.hosts() if each.name == ESX1.name)
        for portal in host.portals:
            try:
                targets = discover(portal, ESX1.iqn)
            except OSError:
                continue
            for target in targets:
                lun = IscsiLun(portal, target.name, 1, ESX1.iqn, timeout_seconds=20)
                if lun.inquiry().naa == naa:
                    return lun
                lun.close()
        raise AssertionError(f"the host finds no {naa}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    work = tmp_path_factory.mktemp("rec")
    with vmfs_engine(work) as engine:
        simulator = SimulatorProcess(work)
        try:
            simulator.start()
            with VCenter.connect(simulator.settings()) as vcenter:
                farm = Farm(engine, pool_of(work), simulator, vcenter, work)
                first = _make_vm(farm, work)
                settings = write_settings(work, farm.pool, simulator.settings(), MORE)
                with Repository.create(work / "repo", create_key_file(work / "key")):
                    pass
                (work / "agents").mkdir()
                run = _back_up(settings)
                farm.write("lun1", "/web1/web1.vmdk", 0, b"changed since " * 100)
                made = Place(farm, settings, run, first)
                yield made
                # What a test that failed has left.
                for left in list_recoveries(made.site):
                    end(made, left.recovery.id)
        finally:
            simulator.end()


def _make_vm(farm: Farm, work: Path) -> bytes:
    disk = work / "ext4"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", disk], check=True)
    with image(farm.pool, "prod", "lun2").open("rb") as lun2:

        def read(offset: int, length: int) -> bytes:
            lun2.seek(offset)
            return lun2.read(length)

        volume_of_lun2 = read_volume(read)
    assert volume_of_lun2 is not None
    digits = BIOS.replace("-", "")
    vmx = f"""
displayName = "web1"
vc.uuid = "{UUID}"
uuid.bios = "{digits[:16]}-{digits[16:]}"
guestOS = "debian12-64"
memSize = "512"
virtualHW.version = "19"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web1.vmdk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/vmfs/volumes/{volume_of_lun2.uuid}/web1/web1.vmdk"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "{MAC}"
"""
    for name, content in (("lun1", disk), ("lun2", None)):
        with Volume(image(farm.pool, "prod", name)) as volume:
            volume.mkdir("/web1")
            volume.create_disk("/web1/web1.vmdk", SIZE, content)
            if content is not None:
                volume.write_file("/web1/web1.vmx", vmx.encode())
    disks = [
        NewDisk(2000 + number, f"Hard disk {number + 1}", "web1/web1.vmdk", SIZE, store)
        for number, store in enumerate(("lun1", "lun2"))
    ]
    farm.simulator.control.add_vm(
        "web1", "lun1", "web1/web1.vmx", disks, ESX1.name, "debian12_64Guest", UUID
    )
    return disk.read_bytes()


def _back_up(settings: Path) -> str:
    atoll = Path(sys.executable).with_name("atoll")
    done = subprocess.run(
        [atoll, "--config", settings, "backup", "web1", "--accept-less", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["points"][0]["run"])


@pytest.fixture
def untouched(place: Place) -> Iterator[None]:
    """In the end everything is as it was."""
    before = place.standing()
    yield
    try:
        _same_again(place, before)
    finally:
        for left in list_recoveries(place.site):
            end(place, left.recovery.id)


def _same_again(place: Place, before: dict[str, object]) -> None:
    """Everything is, or comes to be in a moment: processes end after they let go of their locks."""
    deadline = time.monotonic() + 20
    while place.standing() != before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert place.standing() == before


def begin(place: Place, source: Source | None, **changes: Any) -> Recovered:
    """Recover web1."""
    words = {"host": ESX1.name, "datastore": "esx1-local", "config": place.settings} | changes
    site = place.site
    try:
        return recover_vm(site, f"web1@{place.run}", source, RecoverOptions(**words), Silent())
    finally:
        site.close()


def in_vcenter(place: Place, moref: str) -> Any:
    """A VM's record in the simulator."""
    state = json.loads((place.settings.parent / "vcenter/state.json").read_text())
    return next(vm for vm in state["vms"] if vm["moid"] == moref)


def end(place: Place, name: str, keep_on: str | None = None) -> list[str]:
    site = place.site
    try:
        return end_recovery(site, name, keep_on, Silent())
    finally:
        site.close()


def naas_of(place: Place, record: Recovery) -> list[TargetDisk]:
    return target_disks(place.site, record, [SIZE, SIZE])


def test_from_the_snapshot_a_vm_has_the_copies_of_its_disks_and_no_others(
    place: Place, untouched: None
) -> None:
    done = begin(place, None, name="web1-copy")
    assert done.recovery.source == "snapshot", "while the storage has it"
    vm = in_vcenter(place, done.moref)
    assert vm["powered_on"] and vm["name"] == "web1-copy"
    assert vm["bios_uuid"] != BIOS and vm["instance_uuid"] != UUID
    (card,) = vm["nics"]
    assert card["start_connected"] is False and card["mac"] != MAC
    with VCenter.connect(place.farm.simulator.settings()) as vcenter:
        found = vcenter.recovered().look(done.moref)
        assert len(found.disks) == 2
        # Its VMX names the second disk by the UUID of production's volume.
        assert all(disk.datastore.startswith("snap-") for disk in found.disks)
        (naa,) = vcenter.inventory().datastore(found.disks[0].datastore).extents
        stores = {disk.path.partition("]")[0][1:] for disk in found.disks}
        assert stores < {store.name for store in vcenter.inventory().datastores}
    clone = next(g for g in place.farm.engine.groups() if g.clone_of is not None)
    lun = next(lun.name for lun in clone.luns if lun.naa == naa)
    with Volume(image(place.farm.pool, clone.name, lun)) as volume:
        (extent,) = volume.extents("/web1/web1.vmdk")
    reader = place.lun(naa)
    assert reader.read(extent.lun_offset, 1 << 16) == place.first[: 1 << 16], "as it was captured"
    reader.close()
    (listed,) = list_recoveries(place.site)
    assert (listed.state, listed.vm_name, listed.powered_on) == ("running", "web1-copy", True)
    end(place, "web1-copy")


def test_identity_and_networks_are_kept_when_that_is_asked_for(
    place: Place, untouched: None
) -> None:
    for source in ("snapshot", "repository"):
        done = begin(place, source, keep=True, connected=True, mapped={"VM Network": "VM Network"})
        vm = in_vcenter(place, done.moref)
        (card,) = vm["nics"]
        assert (vm["bios_uuid"], card["mac"]) == (BIOS, MAC)
        assert card["start_connected"] and card["network"] == "VM Network"
        end(place, done.recovery.id)


def test_the_question_whether_it_was_moved_is_answered(
    place: Place, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a host that does not heed `uuid.action`."""
    adopt = RecoveredVms.adopt

    def adopted(self: RecoveredVms, moref: str, *words: Any, keep: bool) -> None:
        adopt(self, moref, *words, keep=keep)
        place.farm.simulator.control.change_vm("web1-asked", {"extra": {}})

    monkeypatch.setattr(RecoveredVms, "adopt", adopted)
    for keep in (True, False):
        done = begin(place, "snapshot", name="web1-asked", keep=keep)
        vm = in_vcenter(place, done.moref)
        assert vm["powered_on"] and (vm["bios_uuid"] == BIOS) is keep
        end(place, done.recovery.id)


def test_from_the_repository_writes_stay_above_the_point(place: Place, untouched: None) -> None:
    done = begin(place, "repository", name="web1-repo")
    vm = in_vcenter(place, done.moref)
    assert [disk["kind"] for disk in vm["disks"]] == ["rdm", "rdm"]
    assert {disk["compatibility"] for disk in vm["disks"]} == {"virtualMode"}
    disk = naas_of(place, done.recovery)[0]
    lun = place.lun(disk.naa)
    assert lun.read_capacity() == SIZE
    assert b"".join(lun.read(at, MIB) for at in range(0, SIZE, MIB)) == place.first
    lun.write(4 * MIB, b"new" * 512)
    lun.close()
    options = _options(done.recovery, _target(done.recovery, "disk1"))
    copied = place.settings.parent / "copied"
    subprocess.run(
        ["qemu-io", "-c", "write -P 7 8M 64k", "-c", "flush", "--image-opts", options],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", "--image-opts", options, copied], check=True
    )
    expected = bytearray(place.first)
    expected[4 * MIB : 4 * MIB + 1536] = b"new" * 512
    expected[8 * MIB : 8 * MIB + 65536] = b"\7" * 65536
    assert copied.read_bytes() == expected
    subprocess.run(["e2fsck", "-fn", copied], check=True, capture_output=True)
    (listed,) = list_recoveries(place.site)
    assert listed.written_bytes >= 65536
    site = place.site
    assert site.repository().holds().found, "nobody may forget the point"
    with pytest.raises(AtollError, match="hold"):
        site.repository().forget({done.recovery.point})
    reader = site.repository().open_disk(site.repository().find(f"web1@{place.run}").disks[0])
    assert reader.read(0, SIZE) == place.first, "the point is what it was"
    reader.close()
    site.close()
    end(place, "web1-repo")


def test_a_killed_server_is_replaced_and_nothing_acknowledged_is_lost(
    place: Place, untouched: None
) -> None:
    done = begin(place, "repository")
    disk = naas_of(place, done.recovery)[1]
    lun = place.lun(disk.naa)
    lun.write(MIB, b"kept" * 128)
    lun.close()
    keeper, server = sorted(_pids(done.recovery.id))
    os.kill(server, signal.SIGKILL)
    _until(lambda: len(set(_pids(done.recovery.id)) - {server}) == 2)
    _until(lambda: _read(place, disk.naa, MIB, 512) == b"kept" * 128)
    # With its keeper too, it is seen, and served again when that is asked for.
    for process in _pids(done.recovery.id):
        os.kill(process, signal.SIGKILL)
    _until(lambda: not recoveries(place.site).is_served(done.recovery.id))
    (listed,) = list_recoveries(place.site)
    assert listed.state == "not served"
    (sentence,) = tidy_recoveries(place.site)
    assert f"atoll recover resume {done.recovery.name}" in sentence
    resume_recovery(place.site, done.recovery.name, place.settings)
    assert _read(place, disk.naa, MIB, 512) == b"kept" * 128
    assert keeper not in _pids(done.recovery.id)
    end(place, done.recovery.id)


def test_one_that_is_kept_is_moved_and_nothing_else_of_it_stays(place: Place) -> None:
    before = place.standing()
    for source in ("snapshot", "repository"):
        done = begin(place, source, name="web1-kept")
        assert end(place, "web1-kept", "lun1")[0] == "VM web1-kept was moved to datastore lun1."
        vm = in_vcenter(place, done.moref)
        assert vm["powered_on"] and {disk["kind"] for disk in vm["disks"]} == {"flat"}
        assert "atoll.recovery" not in vm["extra"]
        place.farm.simulator.control.remove_vm("web1-kept")
        _same_again(place, before)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILLS = [
    ("snapshot", "register", False),
    ("snapshot", "adopt", True),
    ("repository", "create", True),
]


@pytest.mark.parametrize(("source", "method", "after"), KILLS)
def test_one_that_was_killed_is_seen_and_cleared(
    place: Place, untouched: None, source: Source, method: str, after: bool
) -> None:
    _killed(place, method, after, lambda: begin(place, source))
    (listed,) = list_recoveries(place.site)
    assert listed.state == "cut short"
    (sentence,) = tidy_recoveries(place.site)
    assert sentence == f"Cleared recovery {listed.recovery.name}, which was cut short."
    assert list_recoveries(place.site) == []


def test_one_killed_with_its_vm_on_goes_on(place: Place, untouched: None) -> None:
    _killed(place, "power_on", True, lambda: begin(place, "snapshot"))
    (sentence,) = tidy_recoveries(place.site)
    assert "goes on" in sentence
    (listed,) = list_recoveries(place.site)
    assert listed.state == "running" and listed.powered_on
    end(place, listed.recovery.id)


@pytest.mark.parametrize(("source", "keep_on"), [("snapshot", None), ("repository", "lun1")])
def test_an_end_that_was_killed_goes_on_where_it_was(
    place: Place, source: Source, keep_on: str | None
) -> None:
    before = place.standing()
    done = begin(place, source, name="web1-ended")
    method = "move" if keep_on else "power_off"
    _killed(place, method, True, lambda: end(place, "web1-ended", keep_on))
    (listed,) = list_recoveries(place.site)
    assert listed.state == "cut short"
    if keep_on:
        with pytest.raises(RestoreTargetError, match="end the recovery with --keep"):
            end(place, "web1-ended")
    assert len(tidy_recoveries(place.site)) == 1
    if keep_on:
        assert in_vcenter(place, done.moref)["powered_on"]
        place.farm.simulator.control.remove_vm("web1-ended")
    _same_again(place, before)


def test_what_fails_is_taken_back(place: Place, untouched: None) -> None:
    for source, method in (("snapshot", "RegisterVM_Task"), ("repository", "CreateVM_Task")):
        control = place.farm.simulator.control
        control.inject_fault(method, fault="vim.fault.FileLocked", when="task")
        with pytest.raises(VCenterOperationError, match="Injected"):
            begin(place, source)
        control.clear_faults()
        assert list_recoveries(place.site) == []


def test_clones_without_a_record_can_be_ended(place: Place, untouched: None) -> None:
    done = begin(place, "snapshot", power_on=False)
    record = place.settings.parent / "state/recoveries" / done.recovery.id / "record.json"
    record.unlink()
    (listed,) = list_recoveries(place.site)
    assert (listed.state, listed.recovery.id) == ("not recorded", done.recovery.id)
    end(place, done.recovery.id)


def test_what_cannot_be_is_said_before_anything_is_done(place: Place, untouched: None) -> None:
    for source, changes, error, said in (
        ("repository", {"datastore": ""}, ConfigurationError, "--datastore"),
        ("repository", {"datastore": "lun9"}, VCenterOperationError, "no datastore lun9"),
        ("snapshot", {"host": "esx9"}, ConfigurationError, "no host esx9"),
    ):
        with pytest.raises(error, match=said):
            begin(place, source, **changes)
    with pytest.raises(UnknownPointError, match="no snapshots"):
        recover_vm(place.site, "web9@latest", "snapshot", OPTIONS, Silent())
    with pytest.raises(UnknownPointError, match="no recovery web9"):
        end(place, "web9")


def test_a_vm_that_somebody_deleted_is_discarded_and_not_kept(
    place: Place, untouched: None
) -> None:
    done = begin(place, "repository", power_on=False, name="web1-gone")
    with VCenter.connect(place.farm.simulator.settings()) as vcenter:
        vcenter.recovered().destroy(done.moref)
    with pytest.raises(RestoreTargetError, match="There is a recovery web1-gone"):
        begin(place, "repository", name="web1-gone")
    with pytest.raises(UnknownVmError, match="--discard"):
        end(place, "web1-gone", "lun1")
    end(place, "web1-gone")


def _killed(place: Place, method: str, after: bool, work: Callable[[], object]) -> None:
    """Do it in a process that kills itself before or after a call to vCenter."""
    child = os.fork()
    if child == 0:
        call = getattr(RecoveredVms, method)

        def dying(*words: Any, **more: Any) -> None:
            if after:
                call(*words, **more)
            _die()

        setattr(RecoveredVms, method, dying)
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _read(place: Place, naa: str, offset: int, length: int) -> bytes:
    try:
        lun = place.lun(naa)
    except (AssertionError, AtollError):
        return b""
    try:
        return lun.read(offset, length)
    except AtollError:
        return b""
    finally:
        lun.close()


def _target(record: Recovery, name: str) -> str:
    (target,) = (
        each.name
        for each in discover(f"127.0.0.1:{record.port}", ESX1.iqn)
        if each.name.endswith(f":{name}")
    )
    return target


def _options(record: Recovery, target: str) -> str:
    """A LUN for programs of QEMU."""
    return (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:{record.port},"
        f"file.target={target},file.lun=1,file.initiator-name={ESX1.iqn}"
    )


def _processes() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def _pids(recovery: str) -> list[int]:
    """The processes that serve a recovery."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"atoll.cli.recovery_server" in words and recovery.encode() in words:
            found.append(int(entry.parent.name))
    return found


def _until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
