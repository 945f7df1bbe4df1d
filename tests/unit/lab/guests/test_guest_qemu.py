"""QEMU's command line for lab guests, and how a process is told from its number."""

import itertools
import json
import os
from pathlib import Path

import pytest

from atoll_lab.guests import qemu
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.qemu import FileDisk, GuestSpec, IscsiDisk

ISCSI = IscsiDisk(
    "127.0.0.1:3299",
    "iqn.2024-01.org.atoll:lun1",
    1,
    "iqn.1998-01.com.vmware:esx1",
    268435456,
    4096,
)
SPEC = GuestSpec(
    "db1",
    1 << 30,
    (ISCSI, FileDisk(Path("/d/data.raw"))),
    config_drive=Path("/d/config.tar"),
    scratch=Path("/d/scratch.raw"),
    agent_port=18443,
)


def blockdevs(command):
    return {
        node["node-name"]: node
        for flag, value in itertools.pairwise(command)
        if flag == "-blockdev"
        for node in [json.loads(value)]
    }


def test_a_vmdk_inside_a_lun_is_a_range_over_iscsi(tmp_path):
    disk = blockdevs(qemu.command_line(SPEC, tmp_path))["disk0"]
    assert (disk["driver"], disk["offset"], disk["size"]) == ("raw", 268435456, 4096)
    assert disk["file"] == {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": "127.0.0.1:3299",
        "target": "iqn.2024-01.org.atoll:lun1",
        "lun": 1,
        "initiator-name": "iqn.1998-01.com.vmware:esx1",
        "cache": {"direct": True, "no-flush": False},
        "read-only": False,
    }


def test_flushes_reach_every_disk_that_is_written(tmp_path):
    nodes = blockdevs(qemu.command_line(SPEC, tmp_path))
    for name in ("disk0", "disk1", "scratch"):
        assert nodes[name]["file"]["cache"] == {"direct": True, "no-flush": False}


def test_the_config_drive_is_read_only_and_known_by_its_serial(tmp_path):
    command = qemu.command_line(SPEC, tmp_path)
    assert blockdevs(command)["config"]["read-only"] is True
    assert any("drive=config,serial=atoll-config" in word for word in command)


def test_the_first_disk_is_booted_and_software_emulated(tmp_path):
    command = qemu.command_line(SPEC, tmp_path)
    assert [word for word in command if "bootindex=1" in word and "drive=disk0" in word]
    assert "tcg,thread=multi" in command
    assert not any("kvm" in word for word in command)


def test_without_an_agent_port_there_is_no_network(tmp_path):
    command = qemu.command_line(GuestSpec("db1", 1 << 30, (ISCSI,)), tmp_path)
    assert command[-2:] == ["-nic", "none"]
    assert any(
        "hostfwd=tcp:127.0.0.1:18443-10.0.2.15:8443" in word
        for word in qemu.command_line(SPEC, tmp_path)
    )


def test_a_process_number_of_somebody_else_is_not_the_guest(tmp_path):
    assert qemu.status(tmp_path) is None
    (tmp_path / "qemu.pid").write_text(f"{os.getpid()}\n")
    assert qemu.status(tmp_path) is None
    assert qemu.stop(tmp_path) is True
    qemu.kill(tmp_path)


def test_a_path_too_long_for_a_socket_is_named(tmp_path):
    place = tmp_path / ("x" * 100)
    with pytest.raises(LabGuestError, match="too long"):
        qemu.start(SPEC, place)


def test_qemus_own_words_are_passed_on(tmp_path):
    # Read from a directory of its own short path, since a socket's path is limited.
    spec = GuestSpec("db1", 64 << 20, (FileDisk(tmp_path / "absent.raw"),))
    place = Path("/tmp") / f"atoll-qemu-{os.getpid()}"
    try:
        with pytest.raises(LabGuestError, match=r"absent\.raw"):
            qemu.start(spec, place)
    finally:
        for left in place.iterdir():
            left.unlink()
        place.rmdir()
