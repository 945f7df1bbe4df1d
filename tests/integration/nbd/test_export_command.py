"""`atoll export`: a point of a real repository, read by real clients while the command runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.extents import Extent
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository
from nbd_client import run
from repository_parts import CHUNK, MemoryDisk, image, noise, point

ATOLL = str(Path(sys.executable).with_name("atoll"))
SETTINGS = """
[[storage]]
name = "san1"
driver = "embedded"
root = "pool"

[repository]
location = "repo"
key_file = "key"
"""
SIZE = 600 * CHUNK + 512
CHANGED = [Extent(2 * CHUNK, CHUNK), Extent(599 * CHUNK, CHUNK + 512)]


@pytest.fixture(scope="module")
def old() -> bytes:
    return noise(1, 100 * CHUNK) + bytes(400 * CHUNK) + noise(2, 100 * CHUNK + 512)


@pytest.fixture(scope="module")
def new(old: bytes) -> bytes:
    data = bytearray(old)
    data[2 * CHUNK + 100] ^= 1
    data[599 * CHUNK + 5] ^= 1
    data[SIZE - 1] ^= 1
    return bytes(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes) -> Path:
    """A directory with settings and a repository: db1 at two points, and another VM."""
    place = tmp_path_factory.mktemp("export")
    key = create_key_file(place / "key")
    (place / "atoll.toml").write_text(SETTINGS)
    second = MemoryDisk(noise(3, 10 * CHUNK))
    with Repository.create(place / "repo", key, chunk_bytes=CHUNK) as repository:
        first = image(repository.copy_disk(MemoryDisk(old)))
        other = replace(image(repository.copy_disk(second)), key=2001, label="Hard disk 2")
        stranger = replace(point("r1", other, vm="app1"), id="r1-app1", instance_uuid="else")
        repository.commit([point("r1", first), stranger])
        increment = repository.copy_disk(
            MemoryDisk(new), extents=[Extent(0, 5 * CHUNK), CHANGED[1]], parent=first
        )
        repository.commit([point("r2", image(increment), other, at=2000.0)])
    return place


def atoll(place: Path, *arguments: object) -> list[str]:
    return [ATOLL, "--config", str(place / "atoll.toml"), "export", *map(str, arguments)]


@contextmanager
def exporting(
    place: Path, *arguments: object, status: int = 0
) -> Iterator[dict[str, dict[str, str]]]:
    """The exports by name while the command runs; it is ended as by Ctrl-C."""
    with subprocess.Popen(
        atoll(place, *arguments, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        try:
            told, line = "", ""
            while line != "]\n":
                line = command.stdout.readline()
                assert line, command.communicate()
                told += line
            yield {each["name"]: each for each in json.loads(told)}
        finally:
            command.send_signal(signal.SIGTERM)
            _, said = command.communicate(timeout=60)
        assert command.returncode == status, said
        assert "Traceback" not in said


def test_all_disks_are_served_and_an_increment_is_exact(
    place: Path, old: bytes, new: bytes, tmp_path: Path
) -> None:
    with exporting(place, "db1@r2", "--since", "db1@r1") as served:
        assert list(served) == ["db1/disk1", "db1/disk2"]
        first = served["db1/disk1"]
        assert [each["key"] for each in served.values()] == [2000, 2001]
        assert first["description"] == "Hard disk 1 of db1@r2"
        assert first["size_bytes"] == SIZE
        assert first["contexts"][2] == "qemu:dirty-bitmap:r1"
        assert run("nbdcopy", first["uri"], tmp_path / "copy").returncode == 0
        assert (tmp_path / "copy").read_bytes() == new
        shown = run("nbdinfo", "--map=qemu:dirty-bitmap:r1", "--json", first["uri"])
        rows = [row for row in json.loads(shown.stdout) if row["type"]]
        assert [Extent(row["offset"], row["length"]) for row in rows] == CHANGED
        backup = bytearray(old)
        copied = (tmp_path / "copy").read_bytes()
        for row in rows:
            start, end = row["offset"], row["offset"] + row["length"]
            backup[start:end] = copied[start:end]
        assert bytes(backup) == new
        # A disk that the older point does not have is all new.
        shown = run("nbdinfo", "--map=atoll:changed", "--json", served["db1/disk2"]["uri"])
        assert [row["length"] for row in json.loads(shown.stdout) if row["type"]] == [10 * CHUNK]
        holes = run("nbdinfo", "--map", "--json", first["uri"])
        assert [row["length"] for row in json.loads(holes.stdout) if row["type"] == 3] == [
            400 * CHUNK
        ]
        socket = Path(first["uri"].partition("socket=")[2])
        assert socket.is_socket()
    assert not socket.parent.exists()


def test_one_disk_at_a_named_place(place: Path, tmp_path: Path) -> None:
    with exporting(place, "db1@r2", "--disk", "2", "--socket", tmp_path / "s") as served:
        assert served["db1/disk2"]["uri"] == f"nbd+unix:///db1/disk2?socket={tmp_path}/s"
        assert run("qemu-img", "info", "-f", "raw", served["db1/disk2"]["uri"]).returncode == 0
    with exporting(place, "db1@r1", "--listen", "127.0.0.1:0") as served:
        assert run("nbdinfo", served["db1/disk1"]["uri"]).returncode == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("db1", "--listen", "0.0.0.0:0"), 3, "without TLS would show these disks"),
        (("db1", "--disk", "9"), 19, "There is no disk 9 in it"),
        (("db1", "--since", "app1"), 18, "of another VM"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    place: Path, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    done = run(*atoll(place, *arguments))
    assert done.returncode == status
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_damage_is_an_error_of_the_client_and_of_the_command(place: Path, tmp_path: Path) -> None:
    for each in place.iterdir():
        assert run("cp", "-r", each, tmp_path).returncode == 0
    for pack in (tmp_path / "repo" / "packs").rglob("*"):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[CHUNK // 2] ^= 1  # within the first chunk
            pack.write_bytes(data)
    with exporting(tmp_path, "db1@r1", status=17) as served:
        assert run("nbdcopy", served["db1/disk1"]["uri"], "null:").returncode != 0
