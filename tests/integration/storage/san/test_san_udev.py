"""udev, which nearly every server runs, leaves the contents of LUNs alone."""

import pytest

from san_system import MIB, SanSystem

pytestmark = pytest.mark.needs_root

UUID = "6f1d3b0e-5d5c-4f57-9c1b-0a7011ab5aff"


def test_udev_makes_no_links_to_what_is_in_luns(system: SanSystem) -> None:
    engine, shell = system.engine, system.guest.shell
    assert shell.check("pgrep -c systemd-udevd") != "0\n"
    engine.create_group("looked-at")
    lun = engine.create_lun("looked-at", "a", 16 * MIB)
    system.connect("looked-at", "a").close()
    device = shell.check(f"echo /dev/mapper/atoll-*-{lun.volume}").strip()
    shell.check(f"mke2fs -q -U {UUID} {device} && blkid {device} | grep -q {UUID}")
    engine.snapshot_group("looked-at", "t")  # a device that goes on is a change udev hears of
    engine.grow_lun("looked-at", "a", 32 * MIB)
    shell.check("udevadm trigger --action=change && udevadm settle")
    assert UUID not in shell.check("ls /dev/disk/by-uuid")
    engine.delete_group("looked-at", force=True)
    assert device.rpartition("/")[2] not in shell.check("dmsetup ls")
