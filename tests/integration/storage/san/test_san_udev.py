"""On a server with udev, as nearly all are, the same works and udev leaves LUNs' contents alone."""

from pathlib import Path

import pytest

from atoll_lab.san.guest import san_guest
from san_system import MIB, SanSystem

pytestmark = pytest.mark.needs_root

UUID = "6f1d3b0e-5d5c-4f57-9c1b-0a7011ab5aff"


def test_a_server_with_udev(tmp_path: Path) -> None:
    with san_guest(tmp_path / "guest", udev=True) as guest:
        system = SanSystem(guest, tmp_path / "state")
        engine = system.engine
        engine.create_group("g")
        engine.create_lun("g", "a", 16 * MIB)
        with system.connect("g", "a") as session:
            session.write(0, b"kept" * 1024)
            engine.snapshot_group("g", "s")
            engine.grow_lun("g", "a", 32 * MIB)
            assert session.read_capacity() == 32 * MIB
            session.write(16 * MIB, b"more" * 1024)
        device = guest.shell.check("echo /dev/mapper/atoll-*").strip()
        guest.shell.check(f"mke2fs -q -U {UUID} {device} && blkid {device} | grep -q {UUID}")
        engine.snapshot_group("g", "t")  # a device that goes on is a change udev hears of
        guest.shell.check("udevadm trigger --action=change && udevadm settle")
        assert UUID not in guest.shell.check("ls /dev/disk/by-uuid")
        engine.clone("g", "s", "copy")
        with system.connect("copy", "a") as session:
            assert session.read(0, 4096) == b"kept" * 1024
        engine.delete_clone("copy")
        engine.withdraw("g", "a")
        engine.revert_group("g", "s")
        engine.delete_group("g", force=True)
        assert engine.reconcile() == []
        assert "atoll-" not in guest.shell.check("dmsetup ls")
