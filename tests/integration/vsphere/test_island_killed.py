"""Every process that serves a run, killed while a job reads: an error or right bytes, never others,
and the next start clears what was left.

The disk is read into pipes that are not emptied, so that the job is in the middle of it when its
source dies, however fast the machine is.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.fuse import device
from atoll.model.extents import Extent
from atoll.model.storage import Portal
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll.service.pins import Pins
from atoll.storage.initiator import IscsiReader, TargetUnreachableError
from atoll.vsphere.client import VCenter
from atoll_lab.pool import image
from atoll_lab.vcenter.control import NewDisk
from atoll_lab.vmfs import Volume
from iscsi_site import SimulatorProcess, pool_of, vmfs_engine, write_settings
from island_farm import ESX1, HOME, ISLAND, MIB, Farm
from vcb_scripts import vcb_commands

pytestmark = pytest.mark.needs_root

RUN = "20260101-r1"
UUID = "50000000-0000-4000-8000-0000000000b1"
SIZE = 96 * MIB
FIRST = 8 * MIB
"""What a job has read when its source is killed; pipes and caches hold a little more."""
MORE = f"""
[repository]
location = "repo"
key_file = "key"

[agents]
directory = "agents"

[island]
host = "{ISLAND.name}"
home = "{HOME}"
"""


@dataclass(frozen=True)
class Site:
    """A farm with a VM `big1`: what its disk holds, and the commands for its settings."""

    farm: Farm
    directory: Path
    disk: bytes
    environment: dict[str, str]

    def command(self, *words: object) -> list[str]:
        return [str(Path(sys.executable).with_name("atoll")), *map(str, words)]

    def atoll(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def pinned(self) -> bool:
        """Whether somebody reads the run."""
        with Pins(self.directory / "state").deleting("prod", f"atoll-1-{RUN}") as free:
            return not free


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    work = tmp_path_factory.mktemp("killed")
    disk = make_disk(work)
    with vmfs_engine(work) as engine:
        simulator = SimulatorProcess(work)
        try:
            simulator.start()
            with (
                VCenter.connect(simulator.settings()) as vcenter,
                vcb_commands(pool_of(work), simulator.settings(), work) as vcb,
            ):
                farm = Farm(engine, pool_of(work), simulator, vcenter, work)
                with Volume(image(farm.pool, "prod", "lun1")) as volume:
                    volume.mkdir("/big1")
                    volume.create_disk("/big1/big1.vmdk", SIZE, disk)
                    volume.write_file("/big1/big1.vmx", b'displayName = "big1"\n')
                disks = [NewDisk(2000, "Hard disk 1", "big1/big1.vmdk", SIZE, "lun1")]
                simulator.control.add_vm(
                    "big1", "lun1", "big1/big1.vmx", disks, ESX1.name, "Debian", UUID
                )
                farm.run(RUN, "big1")
                write_settings(work, farm.pool, simulator.settings(), MORE)
                with Repository.create(work / "repo", create_key_file(work / "key")):
                    pass
                yield Site(farm, work, disk.read_bytes(), vcb.environment)
        finally:
            simulator.end()


def make_disk(work: Path) -> Path:
    """A disk that is one ext4 volume with files of noise, a few in each of many directories."""
    chance = random.Random(5)
    tree = work / "tree"
    for number in range(40):
        place = tree / f"d{number:02d}"
        place.mkdir(parents=True)
        (place / "large").write_bytes(chance.randbytes(2 * MIB - 5000))
        (place / "small").write_bytes(b"%d" % number)
    (tree / "etc").mkdir()
    (tree / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
    disk = work / "disk"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk], check=True)
    return disk


@pytest.fixture
def top(site: Site, tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "top"
    top.mkdir()
    yield top
    if top in device.mounts():
        subprocess.run(["umount", "-l", top], check=False)


def processes(*words: object) -> list[int]:
    """Those that have all of these on their command lines."""
    wanted = {os.fsencode(str(word)) for word in words}
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if wanted <= set(place.read_bytes().split(b"\0")):
                found.append(int(place.parent.name))
    return found


def parsers(server: int) -> list[int]:
    """The parsers that a process started."""
    found = []
    for process in processes("atoll.filesystems.parser"):
        with suppress(OSError):
            stat = Path(f"/proc/{process}/stat").read_text()
            if int(stat.rpartition(")")[2].split()[1]) == server:
                found.append(process)
    return found


def wait_until_gone(gone: list[int]) -> None:
    """Until they have let go of all that they had open; a zombie has."""
    until = time.monotonic() + 60
    while any(lives(process) for process in gone):
        assert time.monotonic() < until, f"{gone} go on"
        time.sleep(0.01)


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def wait_until_dead(top: Path) -> None:
    """A process that is killed lets go of what it has open a moment later."""
    until = time.monotonic() + 60
    while not device.is_dead(top):
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def job(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes to a pipe which is emptied only as far as the test reads."""
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def rest_of(process: subprocess.Popen[bytes]) -> tuple[bytes, int]:
    """What it still writes, and how it ends."""
    said, _ = process.communicate(timeout=120)
    return said, process.returncode


def first_of(process: subprocess.Popen[bytes], length: int = FIRST) -> bytes:
    assert process.stdout is not None
    got = bytearray()
    while len(got) < length:
        piece = process.stdout.read(length - len(got))
        assert piece
        got += piece
    assert process.poll() is None, "it is in the middle"
    return bytes(got)


def reading(file: Path) -> list[str]:
    return ["dd", f"if={file}", "bs=1M", "status=none"]


def archiving(directory: Path) -> list[str]:
    return ["tar", "--sort=name", "--numeric-owner", "-C", str(directory), "-cf", "-", "."]


def assert_right_or_zeros(got: bytes, truth: bytes, at_least: int = FIRST) -> None:
    """An archive is right to the point where reading failed; tar fills it up with zeros from there.

    After zeros there may be names of what could not be opened, without content.
    """
    low, high = 0, min(len(got), len(truth))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if got[:middle] == truth[:middle] else (low, middle - 1)
    assert low >= at_least
    assert not any(got[low:])


@contextmanager
def mounted(site: Site, top: Path) -> Iterator[subprocess.Popen[str]]:
    """`atoll mount` in the foreground, until it is ended or killed."""
    with subprocess.Popen(
        site.command("mount", RUN, top), env=site.environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if "Mounted until" in line:
                    break
            assert server.poll() is None
            yield server
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)


@pytest.fixture(scope="module")
def archive(site: Site) -> bytes:
    """All files of the VM, as tar writes them when nothing is killed."""
    top = site.directory / "top"
    top.mkdir()
    with mounted(site, top), job(*archiving(top / "big1/files")) as tar:
        said, status = rest_of(tar)
    assert status == 0
    return said


def test_mounts_killed_under_an_image_and_under_files(
    site: Site, top: Path, archive: bytes
) -> None:
    with mounted(site, top) as server:
        assert len(os.listdir(top / "big1/files")) == 42
        children = parsers(server.pid)
        assert children
        assert site.pinned()
        with job(*reading(top / "big1/image/raw/disk1.img")) as dd:
            got = first_of(dd)
            server.kill()
            more, status = rest_of(dd)
        got += more
    assert status != 0
    assert len(got) < SIZE
    assert got == site.disk[: len(got)]
    wait_until_dead(top)
    wait_until_gone(children)
    assert not site.pinned()

    again = site.atoll("mount", RUN, top, "--background")
    assert again.returncode == 0, again.stderr
    with job(*reading(top / "big1/image/raw/disk1.img")) as dd:
        assert rest_of(dd) == (site.disk, 0)
    top.stat()  # which the kernel remembers
    (background,) = processes("mount", top)
    with job(*archiving(top / "big1/files")) as tar:
        got = first_of(tar)
        os.kill(background, signal.SIGKILL)
        more, status = rest_of(tar)
    assert status != 0
    assert_right_or_zeros(got + more, archive)
    wait_until_gone([background])
    cleaned = site.atoll("cleanup")
    assert cleaned.returncode == 0, cleaned.stderr
    assert f"The dead mount on {top} was taken away" in cleaned.stdout.replace("\n", " ")
    assert top not in device.mounts()
    assert not site.pinned()


def test_parsers_killed_under_files_are_started_again(
    site: Site, top: Path, archive: bytes
) -> None:
    with mounted(site, top) as server, job(*archiving(top / "big1/files")) as tar:
        got = first_of(tar)
        killed = parsers(server.pid)
        assert killed
        for process in killed:
            os.kill(process, signal.SIGKILL)
        more, status = rest_of(tar)
        assert status == 0
        assert got + more == archive
        assert set(parsers(server.pid)).isdisjoint(killed)


def test_a_mount_killed_under_qemu_img(site: Site, top: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with mounted(site, top) as server:
        source = top / "big1/image/big1.vmdk"
        # With a limit to its rate, so that it takes a few seconds.
        with job("qemu-img", "convert", "-r", "24M", "-O", "raw", source, copy) as convert:
            while not (copy.exists() and copy.stat().st_blocks * 512 >= FIRST):
                assert convert.poll() is None, convert.communicate()
                time.sleep(0.01)
            server.kill()
            _, status = rest_of(convert)
    assert status != 0
    assert_right_or_not_written(copy, site.disk)
    wait_until_dead(top)
    assert top in device.clear_dead()


def assert_right_or_not_written(copy: Path, truth: bytes) -> None:
    written = copy.read_bytes()
    wrong = [
        at
        for at in range(0, len(written), 4096)
        if written[at : at + 4096] != truth[at : at + 4096] and any(written[at : at + 4096])
    ]
    assert wrong == []


@contextmanager
def exporting(
    site: Site, *words: object, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`atoll export` and the address of its only disk."""
    with subprocess.Popen(
        site.command("export", RUN, "--json", *words),
        env=site.environment | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            told = ""
            for line in server.stdout:
                told += line
                if line == "]\n":
                    break
            yield server, json.loads(told)[0]["uri"]
        finally:
            server.terminate()
            server.communicate(timeout=60)


@pytest.mark.parametrize("named", [True, False])
def test_an_export_killed_under_nbdcopy(site: Site, tmp_path: Path, named: bool) -> None:
    words = ("--socket", tmp_path / "socket") if named else ()
    passing = tmp_path / "tmp"
    passing.mkdir()
    environment = {"TMPDIR": str(passing)}
    with exporting(site, *words, environment=environment) as (server, uri):
        assert site.pinned()
        with job("nbdcopy", uri, "-") as copy:
            got = first_of(copy)
            server.kill()
            more, status = rest_of(copy)
        got += more
    assert status != 0
    assert len(got) < SIZE
    assert got == site.disk[: len(got)]
    wait_until_gone([server.pid])
    assert not site.pinned()
    left = [*tmp_path.glob("socket"), *passing.iterdir()]
    assert left
    with exporting(site, *words, environment=environment) as (server, uri):
        with job("nbdcopy", uri, "-") as copy:
            assert rest_of(copy) == (site.disk, 0)
        assert len(list(passing.iterdir())) <= 1
    assert [*tmp_path.glob("socket"), *passing.iterdir()] == []


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Path]:
    """Where volumes are mounted."""
    shown = tmp_path / "shown"
    yield shown
    for place in device.mounts():
        if shown in place.parents:
            subprocess.run(["umount", "-l", place], check=False)


def test_mounted_volumes_of_vcb_killed_under_files(site: Site, shown: Path, archive: bytes) -> None:
    mounter = [str(Path(sys.executable).with_name("vcbMounter"))]
    words = [*mounter, "-a", "name:big1", "-r", str(shown), "-t", "file"]
    away = [*mounter, "-U", str(shown)]
    run = subprocess.run(words, env=site.environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (server,) = processes("mount", "--background", shown / ".tree")
    with job(*archiving(shown / "digits/1")) as tar:
        got = first_of(tar)
        os.kill(server, signal.SIGKILL)
        more, status = rest_of(tar)
    assert status != 0
    assert_right_or_zeros(got + more, archive)
    wait_until_dead(shown / "digits/1")
    wait_until_gone([server])
    assert not site.pinned()
    assert subprocess.run(away, env=site.environment, check=False).returncode == 0
    assert not shown.exists()

    assert subprocess.run(words, env=site.environment, check=False).returncode == 0
    (server,) = processes("mount", "--background", shown / ".tree")
    with job(*archiving(shown / "digits/1")) as tar:
        assert rest_of(tar) == (archive, 0)
    # `atoll cleanup` takes the views away as well.
    os.kill(server, signal.SIGKILL)
    wait_until_dead(shown / "digits/1")
    device.clear_dead()
    assert not [place for place in device.mounts() if shown in place.parents]
    assert subprocess.run(away, env=site.environment, check=False).returncode == 0
    assert not shown.exists()


def clone_of(site: Site) -> tuple[tuple[Portal, ...], list[int]]:
    """Where the island's host reads the run's clone, and the processes that serve it."""
    (shown,) = [
        each for each in site.farm.engine.presentations() if each.initiators == (ISLAND.iqn,)
    ]
    found = [
        process
        for portal in shown.portals
        for process in processes("tgtd", f"portal={portal.address}:{portal.port}")
    ]
    return shown.portals, found


def test_the_target_of_a_clone_killed_under_the_host_that_reads_it(site: Site) -> None:
    done = site.atoll("island", "refresh", RUN)
    assert done.returncode == 0, done.stderr
    portals, served_by = clone_of(site)
    assert served_by
    truth = image(site.farm.pool, "prod", "lun1").read_bytes()
    reader = IscsiReader(portals, ISLAND.iqn, timeout_seconds=2, patience_seconds=0)
    try:
        pieces = reader.read_many([Extent(at, MIB) for at in range(0, reader.size_bytes, MIB)])
        got = [next(pieces)]
        for process in served_by:
            os.kill(process, signal.SIGKILL)
        with pytest.raises(TargetUnreachableError):
            got += pieces
    finally:
        reader.close()
    assert 0 < len(got) < reader.size_bytes // MIB
    # The clone has another signature in the first MiB of the volume.
    wrong = [at for at, data in got if at >= 4 * MIB and data != truth[at : at + MIB]]
    assert wrong == []

    done = site.atoll("island", "refresh", RUN)
    assert done.returncode == 0, done.stderr
    (placeholder,) = [each for each in site.farm.placeholders.all() if each.run == RUN]
    (path,) = placeholder.disks.values()
    _, served_by = clone_of(site)
    assert served_by
    assert site.farm._read(path) == site.disk
    done = site.atoll("island", "clear")
    assert done.returncode == 0, done.stderr
    assert site.farm.trace() == (set(), set(), set())
    wait_until_gone(served_by)
    assert not site.pinned()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
def test_killed_at_any_moment(
    site: Site, top: Path, tmp_path: Path, archive: bytes, seed: int
) -> None:
    chance = random.Random(seed)
    image_of_it, files = top / "big1/image/raw/disk1.img", top / "big1/files"
    whom = ("server", "parsers", "both")[seed % 3]
    with mounted(site, top) as server:
        os.listdir(files)
        with job(*archiving(files)) as tar, job(*reading(image_of_it)) as dd:
            got, read = bytearray(), bytearray()
            moment = chance.randrange(len(archive))
            while len(got) < moment:
                piece = chance.randrange(1, 4 * MIB)
                got += tar.stdout.read(piece)
                read += dd.stdout.read(piece)
            if whom in ("parsers", "both"):
                for process in parsers(server.pid):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            if whom in ("server", "both"):
                server.kill()
            more, tar_status = rest_of(tar)
            got += more
            more, dd_status = rest_of(dd)
            read += more
        assert read == site.disk[: len(read)]
        assert (dd_status == 0) == (len(read) == SIZE)
        if whom == "parsers":
            assert (tar_status, dd_status) == (0, 0)
        if tar_status == 0:
            assert got == archive
        else:
            assert_right_or_zeros(bytes(got), archive, moment - 20 * 4 * MIB)
    if whom != "parsers":
        wait_until_dead(top)
        assert top in device.clear_dead()
    assert not site.pinned()
    with exporting(site) as (server, uri):
        copy = tmp_path / "copy"
        with job("nbdcopy", uri, copy) as nbdcopy:
            moment = chance.randrange(SIZE // 2)
            while not (copy.exists() and copy.stat().st_blocks * 512 >= moment):
                if nbdcopy.poll() is not None:
                    break
            server.kill()
            _, status = rest_of(nbdcopy)
        if status == 0:
            assert copy.read_bytes() == site.disk
        else:
            assert_right_or_not_written(copy, site.disk)
        wait_until_gone([server.pid])
    assert not site.pinned()
