"""`atoll repo copy` and `atoll --copy`, from settings to the table."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll.cli.main import app
from atoll.model.errors import AtollError
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

DATA = noise(1, 9 * CHUNK)
SITE = """
[[storage]]
name = "san1"
driver = "embedded"
root = "pool"

[repository]
location = "repository"
key_file = "key"

[[copies]]
name = "cellar"
location = "cellar"

[[copies]]
name = "island"
location = "island"
key_file = "island.key"
"""
Atoll = Callable[..., Result]


@pytest.fixture
def atoll(tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Atoll:
    """Runs a command; a site with a restore point, an empty mirror and an independent copy."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.delenv("ATOLL_COPY", raising=False)
    disk = image(repository.copy_disk(MemoryDisk(DATA)), repository.put_blob(b"map"))
    repository.commit([point("p1", disk)])
    repository.close()
    key = create_key_file(tmp_path / "island.key")
    Repository.create(tmp_path / "island", key, chunk_bytes=2 * CHUNK).close()
    settings = tmp_path / "atoll.toml"
    settings.write_text(SITE)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--config", str(settings), *arguments])

    return run


def failed(result: Result, status: int, says: str) -> None:
    assert isinstance(result.exception, AtollError)
    assert result.exception.exit_status == status
    assert says in str(result.exception)


def test_all_copies_of_the_settings(atoll: Atoll, tmp_path: Path) -> None:
    result = atoll("repo", "copy", "--json")
    assert result.exit_code == 0, result.output
    cellar, island = json.loads(result.stdout)
    assert (cellar["copy"], cellar["way"], cellar["points"]) == ("cellar", "mirror", 0)
    assert cellar["objects"] == sum(
        path.is_file() for path in (tmp_path / "cellar").rglob("*") if path.name != "lock"
    )
    assert (island["copy"], island["way"], island["points"]) == ("island", "points", 1)
    assert cellar["damaged"] == island["damaged"] == []
    [cellar] = json.loads(atoll("repo", "copy", "cellar", "--json").stdout)
    assert (cellar["objects"], cellar["moved_bytes"]) == (0, 0)
    assert "cellar" in atoll("repo", "copy", "cellar").stdout


@pytest.mark.parametrize("name", ["cellar", "island"])
@pytest.mark.parametrize("way", ["option", "environment"])
def test_when_the_repository_is_lost_a_copy_takes_its_place(
    atoll: Atoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    atoll("repo", "copy")
    shutil.rmtree(tmp_path / "repository")
    failed(atoll("points", "--json"), 25, "Could not open")
    if way == "environment":
        monkeypatch.setenv("ATOLL_COPY", name)
    option = ["--copy", name] if way == "option" else []
    [shown] = json.loads(atoll(*option, "points", "--json").stdout)
    assert shown["point"]["id"] == "p1"
    key = KeyFile(tmp_path / ("key" if name == "cellar" else "island.key"))
    with Repository.open(tmp_path / name, key) as copy:
        [found] = copy.points()
        reader = copy.open_disk(found.disks[0])
        assert reader.read(0, len(DATA)) == DATA
        reader.close()
    # And back to where it was, when that is there again.
    to = str(tmp_path / "repository")
    assert atoll(*option, "repo", "copy", "--to", to).exit_code == 0
    assert Repository.open(to, key).points() == [found]


def test_a_copy_with_a_key_of_its_own_is_made_by_init(atoll: Atoll, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "island")
    (tmp_path / "island").mkdir()
    failed(atoll("repo", "copy", "island"), 3, "`atoll --copy NAME repo init`")
    assert atoll("--copy", "island", "repo", "init").exit_code == 0
    assert atoll("repo", "copy", "island").exit_code == 0
    with Repository.open(tmp_path / "island", KeyFile(tmp_path / "island.key")) as copy:
        assert [each.id for each in copy.points()] == ["p1"]


def test_a_place_that_is_not_in_the_settings(atoll: Atoll, tmp_path: Path) -> None:
    assert atoll("repo", "copy", "--to", str(tmp_path / "usb")).exit_code == 0
    with Repository.open(tmp_path / "usb", KeyFile(tmp_path / "key")) as copy:
        assert copy.verify().damaged == ()
    failed(atoll("repo", "copy", "--to", str(tmp_path / "island")), 3, "another repository")
    there = ("repo", "copy", "--to", str(tmp_path / "island"), "--key-file")
    failed(atoll(*there, str(tmp_path / "key")), 22, "does not open")
    assert atoll(*there, str(tmp_path / "island.key")).exit_code == 0
    failed(atoll("repo", "copy", "--to", str(tmp_path / "repository")), 20, "the repository itself")


def test_a_mirror_without_the_key(atoll: Atoll, tmp_path: Path) -> None:
    (tmp_path / "key").rename(tmp_path / "elsewhere")
    failed(atoll("repo", "copy", "cellar"), 22, "key")
    assert atoll("repo", "copy", "cellar", "--without-key").exit_code == 0
    failed(atoll("repo", "copy", "island", "--without-key"), 20, "another repository")
    with Repository.open(tmp_path / "cellar", KeyFile(tmp_path / "elsewhere")) as copy:
        assert copy.verify().damaged == ()


def test_damage_is_named_and_ends_with_its_status(atoll: Atoll, tmp_path: Path) -> None:
    [pack] = [path for path in (tmp_path / "repository" / "packs").rglob("*") if path.is_file()]
    data = bytearray(pack.read_bytes())
    data[100] ^= 1
    pack.write_bytes(data)
    result = atoll("repo", "copy")
    failed(result, 17, "named above, and cellar has what is whole")
    assert f"packs/{pack.parent.name}/{pack.name}" in result.stderr
    assert "db1@p1" in result.stderr
    assert not (tmp_path / "cellar" / "packs").exists()
    assert (tmp_path / "cellar" / "config").exists()


def test_a_copy_mends_the_repository_by_its_name(atoll: Atoll, tmp_path: Path) -> None:
    assert atoll("repo", "copy").exit_code == 0
    [pack] = [path for path in (tmp_path / "repository" / "packs").rglob("*") if path.is_file()]
    whole = pack.read_bytes()
    pack.write_bytes(whole[:100] + b"?" + whole[101:])
    result = atoll("repo", "repair", "--all", "--from", "cellar")
    assert result.exit_code == 0, result.output
    assert pack.read_bytes() == whole
    failed(atoll("repo", "repair", "--all", "--from", "island"), 3, "is no copy of")


def test_one_copy_that_fails_does_not_stop_the_others(atoll: Atoll, tmp_path: Path) -> None:
    (tmp_path / "cellar").write_text("a file")
    result = atoll("repo", "copy")
    failed(result, 25, "cellar")
    assert "island" in result.stdout
    with Repository.open(tmp_path / "island", KeyFile(tmp_path / "island.key")) as copy:
        assert [each.id for each in copy.points()] == ["p1"]


def test_slots_that_only_the_copy_has_are_told(atoll: Atoll, tmp_path: Path) -> None:
    assert atoll("repo", "copy", "cellar").exit_code == 0
    with Repository.open(tmp_path / "cellar", KeyFile(tmp_path / "key")) as copy:
        slot = copy.keyring.add(create_key_file(tmp_path / "third"))
    result = atoll("repo", "copy", "cellar")
    assert result.exit_code == 0
    assert slot.name[:8] in result.stderr
    assert "atoll --copy cellar repo key" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cellar", "--to", "x"], "--key-file goes with --to"),
        (["--key-file", "x"], "--key-file goes with --to"),
        (["attic"], "no copy 'attic'; in [[copies]] there is cellar, island"),
    ],
)
def test_what_does_not_go_together(atoll: Atoll, arguments: list[str], says: str) -> None:
    failed(atoll("repo", "copy", *arguments), 3, says)


def test_a_site_without_copies(atoll: Atoll, tmp_path: Path) -> None:
    settings = tmp_path / "atoll.toml"
    settings.write_text(SITE[: SITE.index("[[copies]]")])
    failed(atoll("repo", "copy"), 3, "The settings have no [[copies]]")
    failed(atoll("--copy", "cellar", "points"), 3, "there is none")
    settings.write_text(SITE.replace('name = "island"', 'name = "cellar"'))
    failed(atoll("repo", "copy"), 3, "two copies have the same name")
