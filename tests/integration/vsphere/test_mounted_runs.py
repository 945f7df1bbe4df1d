"""Runs listed, and their VMs mounted straight from its storage snapshots."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from atoll.cli.runs import runs
from atoll.island.runs import run_vms
from island_farm import DISKS, content_of
from mounted_tree import mounted_tree

pytestmark = pytest.mark.needs_root


def test_disks_are_as_they_were_at_the_snapshot(farm, tmp_path: Path) -> None:
    run = farm.run("r1")
    farm.write("lun2", "/app1/app1.vmdk", 512 << 10, b"x" * 4096)
    with run_vms(farm.engine, run) as vms, mounted_tree(vms, tmp_path / "tree") as mounted:
        assert sorted(os.listdir(mounted.top)) == sorted(DISKS)
        wanted = {
            mounted.top / vm / "image/raw" / f"disk{number}.img": content_of(vm, lun)
            for vm, luns in DISKS.items()
            for number, lun in enumerate(luns, 1)
        }
        with ThreadPoolExecutor(8) as pool:
            for path, content in zip(wanted, pool.map(Path.read_bytes, wanted), strict=True):
                assert content == wanted[path], path
        assert mounted.failures == []
    assert os.listdir(tmp_path / "tree") == []


def test_runs_are_listed_as_they_are_named(
    farm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = SimpleNamespace(engine=lambda: farm.engine)
    monkeypatch.setattr("atoll.cli.context.site", lambda: site)
    runs()
    assert "no snapshots of a run" in capsys.readouterr().out
    for name in ("20260101-r1", "20260102-r2"):
        farm.run(name)
    runs(json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [each["run"] for each in listed] == ["20260101-r1", "20260102-r2"]
    assert {vm["name"] for vm in listed[0]["vms"]} == set(DISKS)
    assert listed[0]["groups"] == ["prod"]
    runs()
    assert "20260102-r2" in capsys.readouterr().out
