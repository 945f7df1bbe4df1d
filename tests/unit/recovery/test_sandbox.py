"""How the sandbox is built, and how one is cleared whose owner was killed."""

import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll.recovery import sandbox as module
from atoll.recovery.accelerator import Accelerator
from atoll.recovery.sandbox import (
    Handles,
    SandboxDisk,
    SandboxError,
    SandboxLimits,
    clear_stale,
    command_line,
    open_sandbox,
)

HANDLES = Handles(overlays=(10, 11), bases=(20, 21), exports=(None, "disk-1"), witness=30)


def blockdevs(command):
    return [json.loads(value) for flag, value in itertools.pairwise(command) if flag == "-blockdev"]


def test_the_guest_gets_no_network_no_monitor_and_no_path():
    command = command_line("atoll-sandbox-x", HANDLES, SandboxLimits(), Accelerator.TCG)
    pairs = list(itertools.pairwise(command))
    assert ("-nic", "none") in pairs
    assert ("-monitor", "none") in pairs
    assert ("-sandbox", module.SECCOMP) in pairs
    assert not any(word in command for word in ("-netdev", "-qmp", "-fsdev", "-virtfs"))
    assert "io.atoll.lab" not in " ".join(command)
    for disk in blockdevs(command):
        assert disk["file"]["filename"].startswith("/dev/fdset/")


def test_bases_are_read_only_and_writes_go_to_overlays():
    first, second = blockdevs(
        command_line("atoll-sandbox-x", HANDLES, SandboxLimits(), Accelerator.TCG)
    )
    assert first["file"]["filename"] == "/dev/fdset/10"
    assert first["backing"]["file"] == {
        "driver": "file",
        "filename": "/dev/fdset/20",
        "read-only": True,
    }
    assert second["backing"]["read-only"] is True
    assert second["backing"]["file"] == {
        "driver": "nbd",
        "export": "disk-1",
        "server": {"type": "fd", "str": "21"},
        "read-only": True,
    }


def test_only_the_first_disk_is_booted():
    command = command_line("atoll-sandbox-x", HANDLES, SandboxLimits(), Accelerator.TCG)
    assert [word for word in command if "bootindex" in word] == [
        "virtio-blk-pci,drive=disk0,bootindex=1"
    ]


@pytest.mark.parametrize(
    ("accelerator", "argument"),
    [(Accelerator.TCG, "tcg,thread=multi,tb-size=256"), (Accelerator.KVM, "kvm")],
)
def test_the_accelerator_chosen_is_the_one_used(accelerator, argument):
    command = command_line(
        "atoll-sandbox-x", HANDLES, SandboxLimits(memory_bytes=512 << 20), accelerator
    )
    assert command[command.index("-accel") + 1] == argument
    assert command[command.index("-m") + 1] == "512M"


def test_a_point_without_disks_is_refused(tmp_path):
    with (
        pytest.raises(SandboxError, match="no disk to boot"),
        open_sandbox([], tmp_path, SandboxLimits()),
    ):
        pytest.fail("nothing to enter")


def test_a_base_that_is_not_there_is_named(tmp_path):
    missing = SandboxDisk("Hard disk 1", str(tmp_path / "gone.raw"))
    with (
        pytest.raises(SandboxError, match=r"gone\.raw"),
        open_sandbox([missing], tmp_path / "work", SandboxLimits()),
    ):
        pytest.fail("nothing to enter")
    assert not list((tmp_path / "work").glob("sandbox-*"))


@pytest.fixture
def sleeper():
    """A process under the name of an abandoned sandbox."""
    program = "import time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", program, "-name", "atoll-sandbox-left"])
    while b"-left" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)  # between exec and its first instruction a process has no command line
    yield process
    process.kill()
    process.wait()


def abandoned(workdir, name="sandbox-left"):
    place = workdir / name
    place.mkdir()
    (place / "owner").touch()
    (place / "disk0.qcow2").write_bytes(b"left behind")
    return place


def test_what_a_killed_owner_left_is_ended_and_removed(tmp_path, sleeper):
    place = abandoned(tmp_path)
    assert clear_stale(tmp_path) == [sleeper.pid]
    assert sleeper.wait(10) == -9
    assert not place.exists()
    assert clear_stale(tmp_path) == []


def test_a_process_of_another_name_is_nobody_to_kill(tmp_path, sleeper):
    place = abandoned(tmp_path, "sandbox-lef")
    assert clear_stale(tmp_path) == []
    assert sleeper.poll() is None
    assert not place.exists()


def test_a_sandbox_in_use_is_left_alone(tmp_path, sleeper):
    place = abandoned(tmp_path)
    with open(place / "owner", "w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert clear_stale(tmp_path) == []
    assert sleeper.poll() is None
    assert place.exists()


def test_a_directory_cut_off_before_it_had_an_owner_is_removed(tmp_path):
    place = tmp_path / "sandbox-empty"
    place.mkdir()
    assert clear_stale(tmp_path) == []
    assert not os.path.exists(place)
