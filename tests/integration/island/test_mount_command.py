"""`atoll mount`, `unmount` and `cleanup` as people run them, over a real repository."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.fuse import device
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from repository_parts import image, point

pytestmark = pytest.mark.needs_root

ATOLL = str(Path(sys.executable).with_name("atoll"))
SETTINGS = """
[[storage]]
name = "san1"
driver = "embedded"
root = "pool"

[repository]
location = "repo"
key_file = "key"

[director]
state_directory = "state"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings and a repository with db1@r1: one disk with an ext4 file system."""
    site = tmp_path_factory.mktemp("site")
    files = site / "files"
    (files / "etc").mkdir(parents=True)
    (files / "etc/fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
    (files / "data").write_bytes(os.urandom(1 << 20))
    disk = site / "disk.img"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, disk], check=True)
    (site / "atoll.toml").write_text(SETTINGS)
    key = create_key_file(site / "key")
    with Repository.create(site / "repo", key) as repository:
        copied = image(repository.copy_disk(FileReader(disk)))
        repository.commit([point("r1", replace(copied, path="[gold] db1/db1.vmdk"))])
    return site


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "tree"
    top.mkdir()
    yield top
    if top in device.mounts():
        subprocess.run(["umount", "-l", top], check=False)


def atoll(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [ATOLL, "--config", str(site / "atoll.toml"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def server_of(top: Path) -> int:
    """The process that serves a mount: the one whose command line names it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"mount" in words and os.fsencode(top) in words:
                return int(entry.name)
    raise AssertionError("nobody serves it")


def test_a_point_is_mounted_read_and_unmounted(site: Path, top: Path) -> None:
    mounted = atoll(site, "mount", "db1@r1", top, "--background", "--json")
    assert mounted.returncode == 0, mounted.stderr
    (vm,) = json.loads(mounted.stdout)
    assert (vm["vm"], vm["directory"]) == ("db1", f"{top}/db1")
    assert (top / "db1/files/data").read_bytes() == (site / "files/data").read_bytes()
    assert (top / "db1/image/raw/disk1.img").read_bytes() == (site / "disk.img").read_bytes()
    assert (top / "db1/image/db1.vmx").read_text() == 'displayName = "db1"\n'
    with (top / "db1/files/data").open("rb"):
        refused = atoll(site, "unmount", top)
        assert refused.returncode == 31
        assert "still in use" in refused.stderr
    again = atoll(site, "mount", "db1@r1", top)
    assert again.returncode == 31
    assert "mounted already" in again.stderr
    assert atoll(site, "unmount", top).returncode == 0
    assert os.listdir(top) == []
    assert atoll(site, "unmount", top).returncode == 31


def test_a_killed_mount_is_dead_for_readers_and_cleared(site: Path, top: Path) -> None:
    assert atoll(site, "mount", "db1@r1", top, "--background").returncode == 0
    reader = os.open(top / "db1/files/data", os.O_RDONLY)
    os.kill(server_of(top), signal.SIGKILL)
    for attempt in (lambda: os.pread(reader, 10, 0), lambda: os.listdir(top)):
        with pytest.raises(OSError) as caught:
            while True:  # until the kernel has ended the process
                attempt()
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert top in device.mounts()
    mounted = atoll(site, "mount", "db1@r1", top, "--background")
    assert mounted.returncode == 0, mounted.stderr
    assert (top / "db1/files/data").read_bytes() == (site / "files/data").read_bytes()
    os.kill(server_of(top), signal.SIGKILL)
    with pytest.raises(OSError):
        while True:
            os.listdir(top)
    assert top in device.clear_dead()
    assert top not in device.mounts()


def test_a_stopped_mount_keeps_nobody_waiting_who_clears_dead_ones(
    site: Path, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_ANSWER_SECONDS", 0.2)
    assert atoll(site, "mount", "db1@r1", top, "--background").returncode == 0
    top.stat()  # remembered by the kernel, and no sign of life
    server = server_of(top)
    os.kill(server, signal.SIGSTOP)
    try:
        assert not device.is_dead(top)
    finally:
        os.kill(server, signal.SIGCONT)
    assert (top / "db1/files/data").read_bytes() == (site / "files/data").read_bytes()
    os.kill(server, signal.SIGKILL)
    while not device.is_dead(top):
        pass
    assert top in device.clear_dead()


def test_in_the_foreground_it_ends_by_a_signal(site: Path, top: Path) -> None:
    command = [ATOLL, "--config", str(site / "atoll.toml"), "mount", "db1@r1", str(top)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as mount:
        assert mount.stdout is not None
        try:
            said = ""
            while "Mounted until" not in said:
                line = mount.stdout.readline()
                assert line, mount.communicate()
                said += line
            assert (top / "db1/files/etc/fstab").exists()
        finally:
            mount.send_signal(signal.SIGINT)
            _, told = mount.communicate(timeout=60)
    assert mount.returncode == 0, told
    assert told == ""
    assert top not in device.mounts()


def test_nonsense_is_refused_in_a_sentence(site: Path, top: Path) -> None:
    (top / "something").touch()
    refused = atoll(site, "mount", "db1@r1", top, "--background")
    assert refused.returncode == 31
    assert refused.stderr == f"atoll: {top} is not empty; name an empty directory.\n"
    unknown = atoll(site, "mount", "db9@r1", top)
    assert unknown.returncode == 18
    assert "Traceback" not in unknown.stderr
