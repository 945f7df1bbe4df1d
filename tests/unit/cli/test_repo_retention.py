"""`atoll repo prune` and `forget`, `atoll hold` and `release`, on a real repository."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.cli import context
from atoll.cli.main import app
from atoll.model.errors import (
    AtollError,
    PointHeldError,
    RunConflictError,
    UnknownPointError,
    VCenterUnreachableError,
)
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from atoll.wiring import open_site
from repository_parts import CHUNK, MemoryDisk, image, noise, point

NOW = time.time()
DAY = 86400.0
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

Atoll = Callable[..., str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Five days of db1 with a disk of their own each, two of old1, which vCenter has no more."""
    path = tmp_path / "atoll.toml"
    path.write_text(SETTINGS)
    key = create_key_file(tmp_path / "key")
    with Repository.create(tmp_path / "repo", key, chunk_bytes=CHUNK) as repository:
        for vm, days in (("db1", 5), ("old1", 2)):
            for back in range(days - 1, -1, -1):
                copied = repository.copy_disk(MemoryDisk(noise(100 + back, 50 * CHUNK)))
                made = point(f"{vm}-{back}", image(copied), vm=vm, at=NOW - back * DAY)
                repository.commit([replace(made, instance_uuid=f"uuid-{vm}")])
    return path


@pytest.fixture
def atoll(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command and gives what it printed; an AtollError goes through."""

    def vcenter() -> Any:
        if vcenter.away:
            raise VCenterUnreachableError("vCenter did not answer.")
        return SimpleNamespace(
            inventory=lambda: SimpleNamespace(
                vms=(SimpleNamespace(instance_uuid="uuid-db1"),), left_out=()
            )
        )

    vcenter.away = False

    def opened(*_: object, **__: object) -> Any:
        return replace(open_site(config), vcenter=vcenter)

    monkeypatch.setattr(context, "open_site", opened)

    def atoll(*arguments: str, away: bool = False) -> str:
        vcenter.away = away
        with pytest.raises(SystemExit) as ended:
            app(["--config", str(config), *arguments])
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out if "--json" in arguments else said.out + said.err

    return atoll


def rules(config: Path, text: str) -> None:
    config.write_text(SETTINGS + text)


def ids(config: Path) -> list[str]:
    site = open_site(config)
    try:
        return [found.id for found in site.repository().points()]
    finally:
        site.close()


def test_without_rules_nothing_goes_and_that_is_said(atoll: Atoll, config: Path) -> None:
    before = ids(config)
    for command in (("repo", "prune"), ("repo", "prune", "--dry-run")):
        assert "no rule in [retention], so no restore point goes" in atoll(*command)
    assert ids(config) == before


def test_a_dry_run_says_what_prune_then_does(atoll: Atoll, config: Path) -> None:
    rules(
        config, '[retention]\nkeep_last = 2\n[[retention.rules]]\nvms = ["old*"]\nkeep_all = true\n'
    )
    before = ids(config)
    said = atoll("repo", "prune", "--dry-run")
    assert ids(config) == before
    lines = {
        line.split()[0]: line for line in said.splitlines() if line.startswith(("db1@", "old1@"))
    }
    assert "newest" in lines["db1@db1-0"]
    assert "last (1 of 2)" in lines["db1@db1-0"]
    assert "GOES" in lines["db1@db1-4"]
    assert "no rule" in lines["old1@old1-1"]
    assert "3 restore points of 7 would go" in said
    foreseen = json.loads(atoll("repo", "prune", "--dry-run", "--json"))
    going = [each["id"] for each in foreseen["points"] if each["goes"]]
    assert going == ["db1-4", "db1-3", "db1-2"]
    done = json.loads(atoll("repo", "prune", "--json"))
    assert sorted(done["forgotten"]) == sorted(going)
    assert set(ids(config)) == set(before) - set(going)
    assert done["space"]["freed_bytes"] == foreseen["space"]["unused_bytes"] > 3 * 50 * CHUNK
    assert "0 restore points of 4 would go" in atoll("repo", "prune", "--dry-run")
    assert "are what was written" in atoll("verify")


def test_what_stays_wasted_is_told_with_the_reason(atoll: Atoll, config: Path) -> None:
    site = open_site(config)
    with site.repository() as repository:
        common = noise(1, 50 * CHUNK)
        both = image(repository.copy_disk(MemoryDisk(common + noise(2, 10 * CHUNK))))
        repository.commit([point("gone", both, at=NOW - 9 * DAY)])
        repository.commit([point("stays", image(repository.copy_disk(MemoryDisk(common))), at=NOW)])
        repository.forget({"gone"})
    site.close()
    told = (
        "KiB that nobody needs stay in packs that are needed for the most part: one is written anew"
    )
    for command in (("repo", "prune", "--dry-run"), ("repo", "prune")):
        said = " ".join(atoll(*command).split())
        assert f"{told} once more than 40% of it is wasted." in said
    assert "0 B of space came back." in said


def test_what_went_is_named(atoll: Atoll, config: Path) -> None:
    rules(config, "[retention]\nkeep_last = 4\n")
    said = atoll("repo", "prune")
    assert "Forgot db1@db1-4, taken " in said
    assert "of space came back." in said


def test_held_points_stay_and_show_it(atoll: Atoll, config: Path) -> None:
    rules(config, "[retention]\nkeep_last = 1\n")
    assert "on hold" not in atoll("points")
    said = atoll("hold", "db1@db1-4", "--reason", "case 12", "--until", "2100-01-31")
    assert "db1@db1-4 is on hold until 2100-02-01 00:00:00" in said
    [line] = [each for each in atoll("points", "db1").splitlines() if each.rstrip().endswith("yes")]
    assert line.startswith("db1@db1-4")
    assert "case 12" in atoll("point", "db1@db1-4")
    assert "hold (case 12)" in atoll("repo", "prune", "--dry-run")
    with pytest.raises(PointHeldError, match="case 12"):
        atoll("repo", "forget", "db1@db1-4", "--yes")
    atoll("repo", "prune")
    assert ids(config) == ["db1-4", "db1-0", "old1-0"]
    assert json.loads(atoll("point", "db1@db1-4", "--json"))["holds"][0]["reason"] == "case 12"
    assert "Released" in atoll("release", "db1@db1-4")
    atoll("repo", "prune")
    assert ids(config) == ["db1-0", "old1-0"]


def test_one_of_several_holds_is_released_by_name(
    atoll: Atoll, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason in ("first", "second"):
        atoll("hold", "db1@db1-4", "--reason", reason)
    with pytest.raises(SystemExit) as ended:
        app(["--config", str(config), "release", "db1@db1-4"])
    assert ended.value.code == 2
    capsys.readouterr()
    holds = json.loads(atoll("point", "db1@db1-4", "--json"))["holds"]
    atoll("release", "db1@db1-4", "--hold", holds[0]["name"][:8])
    left = json.loads(atoll("point", "db1@db1-4", "--json"))["holds"]
    assert [each["reason"] for each in left] == ["second"]
    with pytest.raises(UnknownPointError, match="no such hold"):
        atoll("release", "db1@db1-3")


@pytest.mark.parametrize("until", ["tomorrow", "2027-13-01", "2020-01-01", "9999-12-31"])
def test_a_hold_ends_on_a_day_to_come(
    atoll: Atoll, config: Path, until: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["--config", str(config), "hold", "db1", "--reason", "x", "--until", until])
    assert ended.value.code == 2
    assert until in capsys.readouterr().err


def test_a_hold_that_cannot_be_read_is_released_as_such(atoll: Atoll, config: Path) -> None:
    rules(config, "[retention]\nkeep_last = 1\n")
    atoll("hold", "db1@db1-4", "--reason", "x")
    [path] = (config.parent / "repo" / "holds").iterdir()
    path.write_bytes(b"broken")
    assert "every point counts as held" in atoll("points")
    assert f"holds/{path.name} cannot be read" in atoll("repo", "prune")
    assert len(ids(config)) == 7
    assert "Released 1 holds" in atoll("release", "--damaged", "--yes")
    atoll("repo", "prune")
    assert ids(config) == ["db1-0", "old1-0"]


def test_points_are_forgotten_by_name(atoll: Atoll, config: Path) -> None:
    said = atoll("repo", "forget", "db1@db1-4", "db1@db1-2", "--yes")
    assert "Forgot 2 restore points" in said
    assert {"db1-4", "db1-2"}.isdisjoint(ids(config))
    assert json.loads(atoll("repo", "forget", "db1@db1-3", "--yes", "--json")) == ["db1-3"]


def test_the_newest_point_of_a_vm_that_is_there_stays(atoll: Atoll, config: Path) -> None:
    before = ids(config)
    for arguments in (("db1@db1-4", "db1@latest"), ("--all-of", "db1")):
        with pytest.raises(PointHeldError, match="db1@db1-0 is the newest"):
            atoll("repo", "forget", *arguments, "--yes")
    assert ids(config) == before
    atoll("repo", "forget", "db1@latest", "--yes", "--even-newest")
    assert "db1-0" not in ids(config)


def test_a_vm_that_is_gone_is_forgotten_whole_but_only_if_that_is_known(
    atoll: Atoll, config: Path
) -> None:
    with pytest.raises(PointHeldError, match="could be learned from vCenter"):
        atoll("repo", "forget", "--all-of", "old1", "--yes", away=True)
    atoll("repo", "forget", "--all-of", "old1", "--yes")
    assert all(each.startswith("db1") for each in ids(config))


def test_forgetting_asks_first(
    atoll: Atoll, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ids(config)
    with pytest.raises(SystemExit) as ended:
        app(["--config", str(config), "repo", "forget", "db1@db1-4"])
    assert ended.value.code == 2
    assert "--yes" in capsys.readouterr().err
    assert ids(config) == before


@pytest.mark.parametrize("command", [("prune",), ("forget", "db1@db1-4", "--yes")])
def test_two_do_not_tidy_at_once(atoll: Atoll, config: Path, command: tuple[str, ...]) -> None:
    rules(config, "[retention]\nkeep_last = 1\n")
    site = open_site(config)
    lock = site.repository()._store.maintain()
    try:
        with pytest.raises(RunConflictError):
            atoll("repo", *command)
    finally:
        lock.release()
        site.close()
    assert len(ids(config)) == 7


def test_points_that_cannot_be_read_stop_a_prune(atoll: Atoll, config: Path) -> None:
    rules(config, "[retention]\nkeep_last = 1\n")
    path = sorted((config.parent / "repo" / "points").iterdir())[0]
    path.write_bytes(b"broken")
    with pytest.raises(AtollError, match=path.name):
        atoll("repo", "prune")
    assert len(ids(config)) == 6
