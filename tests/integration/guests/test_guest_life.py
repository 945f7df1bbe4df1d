"""A guest boots from its own disk, serves its databases under load, and shuts down cleanly."""

import subprocess

import pytest

from atoll_lab.guests import qemu
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.image import guest_disks
from atoll_lab.guests.load import mariadb_load, postgres_load

pytestmark = [pytest.mark.lab, pytest.mark.needs_root]
ANSWERS = 300.0


def filesystem_is_clean(disk, offset):
    path = f"{disk}?offset={offset}" if offset else str(disk)
    return subprocess.run(["e2fsck", "-fn", path], capture_output=True, check=False).returncode == 0


def test_db1_lives_on_three_disks(boot, config_drive):
    guest = boot("db1", config_drive=config_drive)
    shell = guest.shell
    ready = "until pg_isready -q; do sleep 0.2; done; cat /proc/mounts"
    mounts = shell.check(ready, ANSWERS)
    assert "/dev/vda1 / ext4" in mounts
    assert "/dev/vdb /var/lib/postgresql ext4" in mounts
    assert "/dev/vdc /var/lib/postgresql-wal ext4" in mounts
    assert shell.check("readlink /var/lib/postgresql/15/main/pg_wal").startswith(
        "/var/lib/postgresql-wal/"
    )
    assert shell.check("cat /etc/atoll/agent.json") == "{}"
    assert "io.atoll.lab.0" in shell.check("ls /dev/virtio-ports")

    load = postgres_load(shell)
    before = load.committed()
    load.start(600)
    shell.check("until [ $(grep -c ^progress /run/lab/pgbench.log) -ge 3 ]; do sleep 0.2; done")
    load.stop()
    after = load.committed()
    assert after.rows > before.rows
    assert load.rates()
    load.stop()

    assert qemu.start(qemu.GuestSpec("db1", 1 << 20, ()), guest.run_dir) == guest
    assert qemu.stop(guest.run_dir, ANSWERS)
    assert qemu.status(guest.run_dir) is None
    assert qemu.stop(guest.run_dir)
    assert filesystem_is_clean(guest.run_dir / "system.raw", 1 << 20)
    assert filesystem_is_clean(guest.run_dir / "data.raw", 0)
    assert filesystem_is_clean(guest.run_dir / "wal.raw", 0)

    # Without the config drive it still has what the drive once brought.
    again = boot("db1").shell
    assert again.check("cat /etc/atoll/agent.json", ANSWERS) == "{}"
    assert again.run("until pg_isready -q; do sleep 0.2; done", ANSWERS).status == 0
    assert postgres_load(again).committed() == after


def test_app1_has_a_shop_and_odd_files(boot):
    shell = boot("app1").shell
    ready = "until mariadb-admin --silent ping; do sleep 0.2; done"
    assert shell.run(ready, ANSWERS).status == 0
    load = mariadb_load(shell)
    load.start(600, rate=20)
    shell.check("until [ $(grep -c ^progress /run/lab/shop.log) -ge 2 ]; do sleep 0.2; done")
    load.stop()
    assert load.committed().rows > 0
    assert shell.check("mariadb -BN shop -e 'SELECT count(*) FROM stock'") == "5000\n"
    assert shell.check("stat -c %h /srv/files/links/first") == "3\n"
    assert "user:1001:rwx" in shell.check("getfacl -p /srv/files/attributes/guarded")
    assert "user.small" in shell.check("getfattr -d --absolute-names /srv/files/attributes/tagged")
    blocks, size = shell.check("stat -c '%b %s' /srv/files/sparse.bin").split()
    assert int(size) == 1 << 30
    assert int(blocks) * 512 < 1 << 20


def test_a_power_cut_is_noticed(boot):
    guest = boot("app1")
    assert guest.shell.check("echo up", ANSWERS) == "up\n"
    qemu.kill(guest.run_dir)
    assert qemu.status(guest.run_dir) is None
    with pytest.raises(LabGuestError, match="cannot be reached"):
        guest.shell.run("true")


def test_a_role_nobody_has():
    with pytest.raises(LabGuestError, match="db1, app1"):
        guest_disks("web1")
