"""`atoll find`, `versions`, `diff` and `files` from settings to what is printed, hostile names among it."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll.catalogue.sorting import sort_tables
from atoll.cli.main import app
from atoll.filesystems.interface import EntryKind
from atoll.model.errors import AtollError
from atoll.repository.keys import KeyFile
from atoll.repository.repository import Repository
from catalogue_parts import ROOT, Node, Tree, pieces, tables
from repository_parts import MemoryDisk, image, noise, point

SITE = """
[[storage]]
name = "san1"
driver = "embedded"
root = "pool"

[repository]
location = "repository"
key_file = "key"
cache_directory = "caches"
"""
HOSTILE = b"evil\x1b[31m\n\xff.conf"
FIRST: Tree = {
    b"/etc": Node(EntryKind.DIRECTORY),
    b"/etc/app.conf": Node(size=10),
    b"/etc/gone.conf": Node(size=5 << 20),
    b"/etc/" + HOSTILE: Node(size=3),
    b"/link": Node(EntryKind.SYMLINK, target=b"etc/app.conf"),
}
SECOND: Tree = {
    **{path: node for path, node in FIRST.items() if path != b"/etc/gone.conf"},
    b"/etc/app.conf": Node(size=11, mtime=1_700_000_100),
    b"/etc/new.CONF": Node(size=1),
}
Atoll = Callable[..., Result]


@pytest.fixture
def atoll(tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Atoll:
    """Runs a command; a site with three points of db1, the last without a catalogue."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.delenv("ATOLL_COPY", raising=False)
    for name, tree, at in (("r1", FIRST, 1000.0), ("r2", SECOND, 2000.0), ("r3", None, 3000.0)):
        made = point(name, image(repository.copy_disk(MemoryDisk(noise(1, 5000)))), at=at)
        if tree is not None:
            entries = sort_tables(tables(tree), ROOT)
            made = replace(made, catalogue=repository.put_pieces(pieces((entries, ("/",)))))
        repository.commit([made])
    repository.close()
    settings = tmp_path / "atoll.toml"
    settings.write_text(SITE)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--config", str(settings), *arguments])

    return run


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_find_shows_each_file_from_the_newest_point_that_has_it(atoll: Atoll) -> None:
    for _ in range(2):  # without filters, and with those that the first search made
        found = lines(atoll("find", ".conf", "--json"))
        said = {(each["run"], each["entry"]["path"], each["entry"]["size"]) for each in found}  # type: ignore[index]
        assert said == {
            ("r2", "/etc/app.conf", 11),
            ("r2", "/etc/new.CONF", 1),
            ("r2", "/etc/evil\x1b[31m\n\udcff.conf", 3),
            ("r1", "/etc/gone.conf", 5 << 20),
        }


def test_a_point_without_a_catalogue_is_searched_on_its_disks(
    atoll: Atoll, tmp_path: Path, key: KeyFile
) -> None:
    tree = tmp_path / "tree" / "home"
    tree.mkdir(parents=True)
    (tree / "letter.txt").write_text("dear")
    disk = tmp_path / "disk"
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tmp_path / "tree", disk, "4M"], check=True
    )
    with Repository.open(tmp_path / "repository", key) as repository:
        made = point("r4", image(repository.copy_disk(MemoryDisk(disk.read_bytes()))), at=4000.0)
        repository.commit([made])
    (found,) = lines(atoll("find", "letter", "--in", "db1@r4", "--json"))
    assert (found["run"], found["entry"]["path"]) == ("r4", "/home/letter.txt")  # type: ignore[index]
    assert "letter.txt" in atoll("files", "db1@r4", "/home").stdout


def test_hostile_names_are_one_harmless_line(atoll: Atoll) -> None:
    result = atoll("find", "evil")
    assert "\x1b" not in result.output
    assert "evil\\x1b[31m\\n\\udcff.conf" in result.stdout
    assert len(result.stdout.splitlines()) == 2
    listed = atoll("files", "db1@r2", "/etc")
    assert "\x1b" not in listed.output
    assert "evil\\x1b[31m\\n\\udcff.conf" in listed.output


def test_scopes_and_bounds(atoll: Atoll) -> None:
    def paths(*arguments: str) -> list[str]:
        return [each["entry"]["path"] for each in lines(atoll("find", *arguments, "--json"))]  # type: ignore[index]

    assert paths("gone", "--since", "1970-01-01 00:20", "--until", "2100-01-01") == []
    assert paths("*.conf", "--larger", "1M") == ["/etc/gone.conf"]
    assert paths("*.conf", "--larger", "1M", "--vm", "db1") == ["/etc/gone.conf"]
    assert paths("app", "--type", "file", "--path", "/etc") == ["/etc/app.conf"]
    assert paths("CONF", "--case") == ["/etc/new.CONF"]
    assert len(paths("conf", "--limit", "2")) == 2
    assert paths("conf", "--newest") == []  # the newest has no catalogue
    result = atoll("find", "conf", "--limit", "1")
    assert "There are more" in result.stderr
    assert "1 restore points have no catalogue and were not searched (db1@r3)" in result.stderr
    for arguments in (
        ("find", "x", "--vm", "nobody"),
        ("find", "x", "--since", "yesterday"),
        ("find", "x", "--larger", "many"),
        ("find", "x", "--in", "db1", "--newest"),
        ("find", "x", "--since", "2100-01-01"),
        ("versions", "db1"),
        ("versions", "db1:/nothing"),
        ("diff", "db1@r1", "db1@r3"),
        ("files", "db1@r1", "/nothing"),
    ):
        assert isinstance(atoll(*arguments).exception, AtollError), arguments


def test_versions_and_changes(atoll: Atoll) -> None:
    result = atoll("versions", "db1:/etc/gone.conf")
    assert result.exit_code == 0, result.output
    assert "db1@r1" in result.stdout
    assert "not there" in result.stdout
    result = atoll("diff", "db1@r1", "db1@r2")
    assert result.exit_code == 0, result.output
    said = sorted((line[0], line.split()[-1]) for line in result.stdout.splitlines())
    assert [sign for sign, _ in said] == ["+", "-", "M"]
    assert "10 B -> 11 B  /etc/app.conf  (size, time" in result.stdout
    assert "1 came, 1 are gone, 1 changed." in result.stderr
    kinds = {each["kind"] for each in lines(atoll("diff", "db1@r2", "db1@r1", "/etc", "--json"))}
    assert kinds == {"added", "removed", "changed"}


def test_files_come_from_the_catalogue_and_symlinks_are_followed(atoll: Atoll) -> None:
    result = atoll("files", "db1@r1", "/link/..", "--json")
    assert result.exit_code == 0, result.output
    assert {each["path"] for each in json.loads(result.stdout)} >= {"/etc/app.conf"}


def test_damaged_catalogues_are_told_and_the_others_searched(atoll: Atoll, tmp_path: Path) -> None:
    packs = sorted(
        (path for path in (tmp_path / "repository" / "packs").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_mtime_ns,
    )
    data = packs[1].read_bytes()
    packs[1].chmod(0o600)
    packs[1].write_bytes(bytes(len(data)))  # what only the second point needs
    result = atoll("find", "app.conf")
    assert result.exit_code == 17, result.output
    assert "The catalogue of db1@r2 could not be read" in result.stderr
    assert "db1@r1:/etc/app.conf" in result.stdout
    assert atoll("point", "db1@r2").exit_code == 0


def test_a_point_says_what_its_catalogue_has(atoll: Atoll) -> None:
    result = atoll("point", "db1@r1")
    assert result.exit_code == 0, result.output
    assert "disk1:part1 (ext4, /): 6 files listed" in result.stdout
    assert json.loads(atoll("point", "db1@r1", "--json").stdout)["volumes"][0]["entries"] == 6
    assert json.loads(atoll("point", "db1@r3", "--json").stdout)["volumes"] == []
