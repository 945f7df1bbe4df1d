"""`atoll storage` as a storage admin uses it, on a pool of its own over real iSCSI."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.settings import load_settings
from atoll.wiring import open_engine
from atoll_lab.iscsi import IscsiLun

pytestmark = pytest.mark.needs_root

ATOLL = str(Path(sys.executable).with_name("atoll"))
ESX1, ESX2 = "iqn.1998-01.com.vmware:esx1", "iqn.1998-01.com.vmware:esx2"


class Admin:
    """Types commands at one site."""

    def __init__(self, settings: Path) -> None:
        self.settings = settings

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ATOLL, "storage", *arguments],
            env={**os.environ, "ATOLL_CONFIG": str(self.settings)},
            capture_output=True,
            text=True,
            check=False,
        )

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


@pytest.fixture
def admin(tmp_path: Path, btrfs_mount: Path) -> Iterator[Admin]:
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
    yield Admin(settings)
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
