"""vcbMounter and its kin as backup scripts run them, on a run's snapshots over real iSCSI."""

import fcntl
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from atoll.fuse import device
from atoll_lab.pool import image
from atoll_lab.vmfs import Volume
from island_farm import DISKS, ESX1, MIB, UUIDS, content_of
from vcb_scripts import vcb_commands

pytestmark = pytest.mark.needs_root

GUIDE = Path(__file__).parents[3] / "docs/operations/vcb.md"


@pytest.fixture
def vcb(farm, simulator, tmp_path):
    with vcb_commands(farm.pool, simulator.settings(), tmp_path) as run:
        yield run


def processes_with(word: Path) -> list[str]:
    """Those that have it on their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(word) in place.read_bytes():
                found.append(place.parent.name)
    return found


def holds(vmdk: Path, expected: bytes, work: Path) -> bool:
    """Whether QEMU reads these bytes, neither fewer nor more."""
    plain = work / "plain"
    subprocess.run(["qemu-img", "convert", "-O", "raw", vmdk, plain], check=True)
    return plain.read_bytes() == expected


def test_a_vm_is_exported_in_every_form_and_taken_away(farm, vcb, tmp_path):
    with Volume(image(farm.pool, "prod", "lun1")) as volume:
        volume.write_file("/db1/db1.vmx", b'displayName = "db1"\n')
        volume.write_file("/db1/db1.nvram", b"nvram" * 100)
    farm.run("20260101-r1")
    farm.run("20260102-app", "app1")  # newer, and without db1
    (moref,) = [vm.moref for vm in farm.vcenter.inventory().vms if vm.name == "db1"]
    farm.write("lun2", "/db1/db1.vmdk", 0, b"written after the run")
    searches = ("name:db1", f"uuid:{UUIDS['db1'].upper()}", f"moref:{moref}", "name:db1")
    for number, search in enumerate(searches):
        monolithic, flat = divmod(number, 2)
        target = tmp_path / f"export{number}"
        status, said, errors = vcb(
            "vcbMounter", "-a", search, "-r", target, "-M", monolithic, f"-F{flat}", "-m", "san"
        )
        assert status == 0, errors
        assert "run 20260101-r1" in errors
        assert 'Copying "db1.nvram":\n\t0%=====================50%' in said
        assert (target / "db1.vmx").read_bytes() == b'displayName = "db1"\n'
        assert (target / "db1.nvram").read_bytes() == b"nvram" * 100
        for unit, lun in enumerate(DISKS["db1"]):
            disk = target / f"scsi0-0-{unit}-db1.vmdk"
            assert f'Converting "{disk}" ({"flat" if flat else "compact"} file):' in said
            assert holds(disk, content_of("db1", lun), tmp_path)
        extents = {(0, 0): "-s001", (0, 1): "-f001", (1, 0): "", (1, 1): "-flat"}
        assert (target / f"scsi0-0-1-db1{extents[monolithic, flat]}.vmdk").exists()
        catalog = (target / "catalog").read_text()
        assert 'display_name= "db1"\n' in catalog
        assert 'disk.scsi0:1.filename= "scsi0-0-1-db1.vmdk"\n' in catalog
        assert 'disk.scsi0:1.diskname= "[lun2] db1/db1.vmdk"\n' in catalog
        assert 'type= "fullvm"\n' in (target / "unmount.dat").read_text()
    for _ in range(2):
        assert vcb("vcbMounter", "-U", tmp_path / "export0")[0] == 0
        assert not (tmp_path / "export0").exists()


def test_a_killed_export_is_cleared_and_a_full_disk_leaves_nothing(farm, vcb, tmp_path):
    farm.run("20260101-r1")
    target = tmp_path / "export"
    words = ("vcbMounter", "-a", "name:db1", "-r", target, "-M", "1", "-L", "0")
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    disk = target / "scsi0-0-0-db1.vmdk"
    title = f'Converting "{disk}" (compact file):\n\t0%{"=" * 21}50%{"=" * 21}100%\n\t'
    os.write(writing, b"-" * (4096 - len(title) - 10))  # no room for the fifty stars
    process = vcb.start(*words, stdout=writing)
    try:
        os.close(writing)
        while not (disk.exists() and disk.stat().st_size > 128 << 10):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        status, _, errors = vcb("vcbMounter", "-U", target)
        assert status == 1
        assert "is being exported to at the moment" in errors
    finally:
        process.kill()
        process.communicate()
        os.close(reading)
    assert not {"catalog", "unmount.dat"} & set(os.listdir(target))
    status, _, errors = vcb(*words)
    assert status == 1
    assert f"holds an unfinished export; take it away with `vcbMounter -U {target}`" in errors
    for _ in range(2):
        assert vcb("vcbMounter", "-U", target)[0] == 0
        assert not target.exists()

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "small", small], check=True)
    try:
        status, _, errors = vcb("vcbMounter", "-a", "name:db1", "-r", small / "db1", "-F", "1")
        assert status == 1
        assert "No space left on device) and nothing was left there; make room" in errors
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_names_files_and_several_vms(farm, vcb, tmp_path):
    tree, files = tmp_path / "tree", tmp_path / "files.img"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
    files.write_bytes(bytes(MIB))
    subprocess.run(
        ["mke2fs", "-qF", "-t", "ext4", "-O", "^has_journal", "-d", tree, files], check=True
    )
    farm.write("lun2", "/app1/app1.vmdk", 0, files.read_bytes())
    farm.run("20260101-r1")
    farm.simulator.control.add_vm(
        "new1", "lun1", "new1/new1.vmx", [], ESX1.name, "Debian", UUIDS["db1"].replace("d1", "e1")
    )

    farm.simulator.control.change_vm("app1", {"tools.address": "10.1.1.1"})
    farm.simulator.control.set_power("app1", True)

    status, said, _ = vcb("vcbVmName", "-sany:")
    assert status == 0
    machines = {vm.name: vm for vm in farm.vcenter.inventory().vms}
    assert said.split("Found VM:\n")[1:] == [
        f"moref:{machines[name].moref}\nname:{name}\nuuid:{machines[name].bios_uuid}\n"
        f"ipaddr:{address}\n"
        for name, address in (("app1", "10.1.1.1"), ("db1", ""), ("new1", ""))
    ]
    status, said, _ = vcb("vcbVmName", "-s", "ipaddr:10.1.1.1")
    assert (status, "name:app1" in said, "name:db1" in said) == (0, True, False)

    both = tmp_path / "all"
    status, _, errors = vcb("vcbSnapAll", "-a", "any:", "-r", both, "-F", "1")
    assert status == 1
    assert "new1: The storage has no run with new1, and there is no repository" in errors
    assert "1 of 3 VMs were not exported" in errors
    assert sorted(os.listdir(both)) == ["app1", "db1"]
    assert holds(both / "app1/scsi0-0-0-app1.vmdk", files.read_bytes(), tmp_path)

    script, tape = tmp_path / "script", tmp_path / "tape"
    script.write_text(GUIDE.read_text().split("```sh\n")[1].split("```")[0])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    extra = {"PATH": path, "MNT": str(tmp_path), "TAPE": str(tape)}
    subprocess.run(["sh", script, "app1"], env={**vcb.environment, **extra}, check=True)
    assert not (tmp_path / "app1").exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    subprocess.run(["tar", "-C", kept, "-xf", tape], check=True)
    assert holds(kept / "scsi0-0-0-app1.vmdk", files.read_bytes(), tmp_path)
    assert (kept / "unmount.dat").exists()

    shown = tmp_path / "shown"
    status, said, errors = vcb("vcbMounter", "-a", "name:app1", "-r", shown, "-t", "file")
    assert status == 0, errors
    assert f"Volume 1 mounted at {shown}/digits/1\n" in said
    for place in ("digits/1", "files"):
        assert (shown / place / "etc/fstab").read_bytes() == (tree / "etc/fstab").read_bytes()
    assert sorted(os.listdir(shown)) == [".atoll-vcb", "digits", "files", "unmount.dat"]
    with (shown / "digits/1/etc/fstab").open("rb"):
        status, _, errors = vcb("vcbMounter", "-U", shown)
        assert status == 1
        assert "still in use" in errors
    for _ in range(2):
        assert vcb("vcbMounter", "-U", shown)[0] == 0
        assert not shown.exists()

    status, _, errors = vcb("vcbMounter", "-a", "name:db1", "-r", shown, "-t", "file")
    assert status == 1
    assert "has no volume that Atoll reads" in errors
    assert not shown.exists()
    assert not [place for place in device.mounts() if tmp_path in place.parents]
    while processes_with(shown):
        time.sleep(0.01)
