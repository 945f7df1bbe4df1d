"""A repository written once, in version 1 of the format, stays readable by Atoll and by others."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from stranger import Stranger

from atoll.model.consistency import Consistency
from atoll.repository.keys import KeyFile, KeySource, Passphrase
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

GOLDEN = Path(__file__).parents[2] / "data" / "repository-v1"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "repository", tmp_path / "golden"))


@pytest.mark.parametrize("source", [KeyFile(GOLDEN / "key"), Passphrase(EXPECTED["passphrase"])])
def test_atoll_reads_it(golden: Path, source: KeySource) -> None:
    with Repository.open(golden, source) as repository:
        points = {found.id: found for found in repository.points()}
        assert points.keys() == EXPECTED["disks"].keys()
        for identity, (size, digest) in EXPECTED["disks"].items():
            reader = repository.open_disk(points[identity].disks[0])
            content = reader.read(0, reader.size_bytes)
            assert (len(content), sha256(content).hexdigest()) == (size, digest)
        for identity, digest in EXPECTED["blobs"].items():
            blob = repository.get_blob(points[identity].disks[0].extent_map)
            assert sha256(blob).hexdigest() == digest
        for identity, summary in EXPECTED["evidence"].items():
            assert [item.summary for item in repository.evidence(identity)] == [summary]
        proof = repository.find("db1@20260101").proof
        assert proof.consistency is Consistency.APP
        assert proof.hold is not None
        assert proof.hold.applications[0].witness == "42"
        assert repository.verify().damaged == ()
        assert repository.prune_plan().unused_packs == 0


def test_atoll_goes_on_with_it(golden: Path) -> None:
    with Repository.open(golden, KeyFile(GOLDEN / "key")) as repository:
        copied = repository.copy_disk(MemoryDisk(noise(1, CHUNK)))
        assert copied.known_chunks == 1  # names have not changed either
        repository.commit([point("p9", image(copied))])
        assert len(repository.points()) == 4


def _compare(stranger: Stranger) -> None:
    points = stranger.points()
    assert points.keys() == EXPECTED["disks"].keys()
    for identity, (size, digest) in EXPECTED["disks"].items():
        content = stranger.disk(points[identity]["disks"][0]["root"])
        assert (len(content), sha256(content).hexdigest()) == (size, digest)
    for identity, digest in EXPECTED["blobs"].items():
        blob = stranger.blob(points[identity]["disks"][0]["extent_map"])
        assert sha256(blob).hexdigest() == digest
    for identity, summary in EXPECTED["evidence"].items():
        assert stranger.evidence()[identity]["summary"] == summary


def test_a_stranger_reads_it_by_the_document_alone(golden: Path) -> None:
    _compare(Stranger(golden, key_file=GOLDEN / "key"))
    _compare(Stranger(golden, passphrase=EXPECTED["passphrase"]))
    source = Path(__file__).with_name("stranger.py").read_text()
    assert "import atoll" not in source
    assert "from atoll" not in source


def test_the_index_says_what_the_footers_say(golden: Path) -> None:
    stranger = Stranger(golden, key_file=GOLDEN / "key")
    listed = {
        name: (pack, number, *rest)
        for pack in {place[0] for place in stranger.places.values()}
        for number, (name, *rest) in enumerate(stranger.footer(pack))
    }
    assert listed == stranger.places


def test_a_stranger_reads_what_is_written_today(repository: Repository, key: KeyFile) -> None:
    data = noise(3, 300 * CHUNK) + bytes(5 * CHUNK) + b"end"
    copied = repository.copy_disk(MemoryDisk(data))
    repository.commit([point("p1", image(copied, repository.put_blob(data)))])
    stranger = Stranger(Path(repository.stats().location), key_file=key.path)
    disk = stranger.points()["p1"]["disks"][0]
    assert stranger.disk(disk["root"]) == data
    assert stranger.blob(disk["extent_map"]) == data
