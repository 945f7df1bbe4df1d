"""`atoll storage` as a storage admin uses it, on a pool of its own over real iSCSI."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.settings import load_settings
from atoll.storage.backend import Chap
from atoll.wiring import open_engine
from atoll_lab.iscsi import InitiatorRefusedError, IscsiError, IscsiLun
from warm_atoll import WarmAtoll, warm_atoll

pytestmark = pytest.mark.needs_root

ESX1, ESX2 = "iqn.1998-01.com.vmware:esx1", "iqn.1998-01.com.vmware:esx2"


class Admin:
    """Types commands at one site."""

    def __init__(self, settings: Path, atoll: WarmAtoll) -> None:
        self.settings = settings
        self._atoll = atoll

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ATOLL_CONFIG": str(self.settings)}
        return self._atoll.run("storage", *arguments, environment=environment)

    def check(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.check(*arguments, "--json"))

    def refused(self, status: int, says: str, *arguments: str) -> None:
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (status, ""), done
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def atoll() -> Iterator[WarmAtoll]:
    with warm_atoll() as running:
        yield running


@pytest.fixture
def admin(tmp_path: Path, btrfs_mount: Path, atoll: WarmAtoll) -> Iterator[Admin]:
    root = btrfs_mount / tmp_path.name
    root.mkdir()
    settings = tmp_path / "atoll.toml"
    settings.write_text(
        f"""
[[storage]]
name = "site1"
driver = "embedded"
root = "{root}"
reserve_bytes = 1048576
"""
    )
    yield Admin(settings, atoll)
    if (root / ".atoll-pool").exists():
        open_engine(load_settings(settings)).stop()


def test_from_an_empty_disk_to_a_grown_lun(admin: Admin) -> None:
    admin.refused(12, "storage init", "status")
    for _ in range(2):
        assert "site1 is ready" in admin.check("init")
        admin.check("group", "create", "prod")
        admin.check("lun", "create", "prod/data", "64M")
        admin.check("lun", "create", "prod/logs", "32MiB")
        admin.check("present", "prod/data", ESX1, ESX2)
    listed = admin.json("list")
    assert [lun["name"] for lun in listed["groups"][0]["luns"]] == ["data", "logs"]
    (shown,) = listed["presentations"]
    assert shown["initiators"] == [ESX1, ESX2]
    assert "nobody" in admin.check("list")
    portal = shown["portals"][0]
    address = f"{portal['address']}:{portal['port']}"
    with IscsiLun(address, portal["target"], portal["lun_number"], ESX2) as lun:
        lun.write(0, b"data" * 128)
        assert "prod@one holds 2 LUNs" in admin.check("snapshot", "take", "prod", "one")
        lun.write(1 << 20, b"more" * 128)
    admin.check("snapshot", "take", "prod", "two")
    assert [item["name"] for item in admin.json("snapshot", "list", "prod")] == ["one", "two"]
    (changed,) = admin.json("changes", "prod/data", "one", "two")
    assert changed["offset"] <= 1 << 20 < changed["offset"] + changed["length"]
    assert "96.0 MiB now" in admin.check("lun", "grow", "prod/data", "96M")
    with IscsiLun(address, portal["target"], portal["lun_number"], ESX1) as lun:
        assert lun.read_capacity() == 96 << 20
    assert admin.json("status")[0]["capacity"]["provisioned_bytes"] == 128 << 20
    assert "All is as recorded" in admin.check("reconcile")
    admin.refused(2, "give --yes", "stop")
    assert "serves nothing" in admin.check("stop", "--yes")
    with pytest.raises(IscsiError):
        IscsiLun(address, portal["target"], portal["lun_number"], ESX1)
    assert "Started" in admin.check("reconcile")
    IscsiLun(address, portal["target"], portal["lun_number"], ESX1).close()


def test_guards_say_what_to_do_first(admin: Admin) -> None:
    admin.check("init")
    admin.check("group", "create", "prod")
    admin.check("lun", "create", "prod/data", "64M")
    admin.check("present", "prod/data", ESX1)
    admin.check("snapshot", "take", "prod", "one")
    admin.refused(20, "withdraw it first", "lun", "delete", "prod/data")
    admin.refused(20, "cannot shrink", "lun", "grow", "prod/data", "32M")
    admin.refused(20, "not 33554432", "lun", "create", "prod/data", "32M")
    admin.refused(2, "is no size", "lun", "create", "prod/more", "much")
    admin.refused(2, "is not GROUP/LUN", "lun", "delete", "data")
    admin.check("withdraw", "prod/data")
    admin.refused(20, "snapshots", "group", "delete", "prod")
    for _ in range(2):
        admin.check("snapshot", "delete", "prod", "one")
        admin.check("lun", "delete", "prod/data")
        admin.check("group", "delete", "prod")
    assert admin.json("list") == {"groups": [], "presentations": []}


def test_a_day_in_a_storage_admins_life(admin: Admin) -> None:
    admin.check("init")
    for group in ("prod", "test"):
        admin.check("group", "create", group)
    admin.check("lun", "create", "prod/data", "64M")
    assert "prod/db now" in admin.check("lun", "rename", "prod/data", "db")
    admin.check("snapshot", "take", "prod", "one", "--keep", "7d")
    admin.check("snapshot", "take", "prod", "two")
    one, two = admin.json("snapshot", "list", "prod")
    assert two["expires_at"] is None
    assert 6.9 * 86400 < one["expires_at"] - one["started_at"] < 7.1 * 86400
    assert "for ever" in admin.check("snapshot", "list", "prod")
    assert "kept for ever" in admin.check("snapshot", "keep", "prod", "one", "forever")
    assert "No snapshot" in admin.check("snapshot", "expire")
    admin.check("snapshot", "keep", "prod", "two", "0h")
    assert admin.json("snapshot", "expire") == ["prod@two"]
    admin.refused(2, "is no time", "snapshot", "keep", "prod", "one", "soon")

    assert "1 LUNs" in admin.check("clone", "create", "prod", "one", "copy", "--read-only")
    assert "read-only clone of prod@one" in " ".join(admin.check("list").split())
    admin.refused(20, "delete the clone first", "snapshot", "delete", "prod", "one")
    admin.check("clone", "delete", "copy")

    admin.refused(2, "give --yes", "snapshot", "revert", "prod", "one")
    admin.refused(20, "no snapshot nine", "snapshot", "revert", "prod", "nine", "--yes")
    assert [item["name"] for item in admin.json("snapshot", "list", "prod")] == ["one"]
    assert "before-revert-" in admin.check("snapshot", "revert", "prod", "one", "--yes")
    assert len(admin.json("snapshot", "list", "prod")) == 2
    admin.check("snapshot", "revert", "prod", "one", "--yes", "--discard")
    assert len(admin.json("snapshot", "list", "prod")) == 2

    admin.check("lun", "move", "prod/db", "test")
    admin.check("present", "test/db", ESX1)
    admin.refused(20, "withdraw it first", "group", "delete", "test")
    admin.check("group", "delete", "test", "--force")
    admin.check("group", "delete", "prod", "--force")
    assert admin.json("list") == {"groups": [], "presentations": []}


def test_the_pool_is_watched(admin: Admin) -> None:
    admin.check("init")
    (device,) = admin.json("device", "list")
    assert device["path"].startswith("/dev/loop")
    assert "good" in admin.check("device", "list")
    admin.refused(20, "only disk", "device", "remove", device["path"])
    admin.refused(12, "/dev/none", "device", "add", "/dev/none")
    assert admin.json("status", "--check")[0]["alarms"] == []
    admin.settings.write_text(f"{admin.settings.read_text()}warning_used = 0.0001\n")
    strict = admin.run("status", "--check")
    assert strict.returncode == 4
    assert "WARNING: site1: " in strict.stdout
    admin.check("status")
    assert admin.json("status", "--system", "site1")[0]["storage"] == "site1"
    disk, cache = admin.json("durability")
    assert (disk["name"], disk["chosen"], cache["chosen"]) == ("disk", True, False)
    assert disk["writes_per_second"] > 0
    assert "disk (chosen)" in admin.check("durability")
    admin.refused(3, "no storage system site2, only site1", "status", "--system", "site2")


def test_chap_accounts_come_from_the_settings(admin: Admin) -> None:
    (admin.settings.parent / "esx1.secret").write_text("secret-of-esx1\n")
    admin.settings.write_text(
        f"{admin.settings.read_text()}"
        f'[[storage.chap]]\ninitiator = "{ESX1}"\nuser = "esx1"\nsecret_file = "esx1.secret"\n'
    )
    admin.check("init")
    admin.check("group", "create", "prod")
    admin.check("lun", "create", "prod/data", "64M")
    admin.refused(20, "without CHAP", "present", "prod/data", ESX1, ESX2)
    admin.check("present", "prod/data", ESX1)
    (shown,) = admin.json("list")["presentations"]
    portal = shown["portals"][0]
    where = (f"{portal['address']}:{portal['port']}", portal["target"], 1, ESX1)
    with pytest.raises(InitiatorRefusedError):
        IscsiLun(*where)
    with IscsiLun(*where, chap=Chap("esx1", "secret-of-esx1")) as lun:
        assert lun.read_capacity() == 64 << 20
    assert "secret-of-esx1" not in admin.check("list", "--json")
