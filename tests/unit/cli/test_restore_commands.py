"""`atoll restore disk` and `file` from a real repository: onto what exists, and into archives."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.cli import restore
from atoll.cli.main import app
from atoll.filesystems.interface import Entry, EntryKind
from atoll.model.errors import ConfigurationError, RestoreTargetError
from atoll.recovery.files import RestoreReport
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

OLD = noise(1, 64 * CHUNK)
NEW = OLD[: 8 * CHUNK] + noise(2, CHUNK) + OLD[9 * CHUNK :]


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """db1 before and after one change, and app1."""
    key = create_key_file(tmp_path / "key")
    with Repository.create(tmp_path / "repo", key, chunk_bytes=CHUNK) as repository:
        repository.commit([point("1-old", image(repository.copy_disk(MemoryDisk(OLD))))])
        after = image(repository.copy_disk(MemoryDisk(NEW)))
        other = replace(point("3-app", after, vm="app1"), instance_uuid="another")
        repository.commit([point("2-new", after, at=2000.0), other])
        site: Any = SimpleNamespace(repository=lambda: repository)
        monkeypatch.setattr(restore.context, "site", lambda: site)
        yield repository


def run(*words: object) -> None:
    app(["restore", *map(str, words)], standalone_mode=False)


def test_onto_a_known_state(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "disk.img"
    run("disk", "db1@1-old", target)
    assert target.read_bytes() == OLD
    for known, compared in (("db1@1-old", 4 * CHUNK), (None, len(NEW))):
        target.write_bytes(OLD)
        capfd.readouterr()
        more = ["--known-to-be", known] if known else []
        run("disk", "db1@2-new", target, "--onto", "--verify", "--json", *more)
        told = json.loads(capfd.readouterr().out)
        assert target.read_bytes() == NEW
        assert told["written_bytes"] == CHUNK
        assert CHUNK <= told["compared_bytes"] <= compared
    target.write_bytes(bytes(len(OLD)))
    with pytest.raises(RestoreTargetError, match="not in the state"):
        run("disk", "db1@2-new", target, "--onto", "--known-to-be", "db1@1-old")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--verify"], "are for --onto"),
        (["--known-to-be", "db1@1-old"], "are for --onto"),
        (["--onto", "--format", "qcow2"], "leave out --format"),
        (["--onto", "--known-to-be", "app1@latest"], "says nothing of what differs"),
    ],
)
def test_words_that_do_not_fit(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run("disk", "db1@2-new", tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest of one file."""

    @contextmanager
    def browsing(*_: object) -> Iterator[None]:
        yield None

    def archived(_: object, path: str, writer: Any) -> RestoreReport:
        regular = Entry("/f", EntryKind.FILE, 3, 0o644, 0, 0, 0, 0, 0, 1, 12)
        writer.add("f", regular)
        writer.write(0, b"abc")
        writer.end()
        return RestoreReport(1, 3, 1, ["lost"])

    monkeypatch.setattr(restore, "browsing", browsing)
    monkeypatch.setattr(restore, "archive_files", archived)


def test_archives_to_files_and_standard_output(
    guest: None, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for form in ("tar", "zip"):
        target = tmp_path / f"x.{form}"
        for where in (target, "-"):
            capfdbinary.readouterr()
            with pytest.raises(SystemExit) as ended:
                app(["restore", "file", "db1@latest", "/f", str(where), "--to", form])
            assert ended.value.code == restore.INCOMPLETE
            said = capfdbinary.readouterr()
            assert b"missing: 1" in said.err
        content = target.read_bytes()
        if form == "tar":
            assert said.out == content
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                assert archive.getnames() == ["f"]
        else:
            for each in (said.out, content):
                with zipfile.ZipFile(io.BytesIO(each)) as archive:
                    assert archive.read("f") == b"abc"
        with pytest.raises(RestoreTargetError, match="exists already"):
            run("file", "db1@latest", "/f", target, "--to", form)


def test_conflicts_are_settled_one_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="either"):
        run("file", "db1@latest", "/f", tmp_path, "--overwrite", "--keep-both")
    with pytest.raises(ConfigurationError, match="into a directory"):
        run("file", "db1@latest", "/f", tmp_path / "x", "--to", "tar", "--overwrite")
