"""Repositories written once, with disks of each version, stay readable by Atoll and by others."""

import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from stranger import Stranger

from atoll.model.consistency import Consistency
from atoll.model.extents import Extent, intersect, merge
from atoll.repository.keys import KeyFile, Passphrase
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

DATA = Path(__file__).parents[2] / "data"


@dataclass(frozen=True)
class Golden:
    """A copy of a repository, its key, and what must be in it."""

    place: Path
    key: Path
    expected: dict[str, Any]


@pytest.fixture(params=["repository-v1", "repository-disks-v2"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    kept = DATA / request.param
    place = Path(shutil.copytree(kept / "repository", tmp_path / "golden"))
    return Golden(place, kept / "key", json.loads((kept / "expected.json").read_text()))


@pytest.mark.parametrize("by", ["key file", "passphrase"])
def test_atoll_reads_it(golden: Golden, by: str) -> None:
    expected = golden.expected
    source = KeyFile(golden.key) if by == "key file" else Passphrase(expected["passphrase"])
    with Repository.open(golden.place, source) as repository:
        points = {found.id: found for found in repository.points()}
        assert points.keys() == expected["disks"].keys()
        for identity, (size, digest) in expected["disks"].items():
            reader = repository.open_disk(points[identity].disks[0])
            content = reader.read(0, reader.size_bytes)
            assert (len(content), sha256(content).hexdigest()) == (size, digest)
        for identity, digest in expected["blobs"].items():
            blob = repository.get_blob(points[identity].disks[0].extent_map)
            assert sha256(blob).hexdigest() == digest
        for identity, summary in expected["evidence"].items():
            assert [item.summary for item in repository.evidence(identity)] == [summary]
        proof = repository.find("db1@20260101").proof
        assert proof.consistency is Consistency.APP
        assert proof.hold is not None
        assert proof.hold.applications[0].witness == "42"
        assert repository.verify().damaged == ()
        assert repository.prune_plan().unused_packs == 0


def test_atoll_goes_on_with_it(golden: Golden) -> None:
    with Repository.open(golden.place, KeyFile(golden.key)) as repository:
        before = len(repository.points())
        copied = repository.copy_disk(MemoryDisk(noise(1, CHUNK)))
        assert copied.known_chunks == 1  # names have not changed either
        repository.commit([point("p9", image(copied))])
        assert len(repository.points()) == before + 1


def test_increments_are_made_upon_its_disks(golden: Golden) -> None:
    with Repository.open(golden.place, KeyFile(golden.key)) as repository:
        older = repository.find("db1@20260101").disks[0]
        reader = repository.open_disk(older)
        before = reader.read(0, reader.size_bytes)
        reader.close()
        data = before[: 20 * CHUNK] + noise(8, CHUNK) + before[21 * CHUNK :] + noise(9, 700)
        changed = [Extent(20 * CHUNK, CHUNK), Extent(len(before), 700)]
        disk = MemoryDisk(data)
        copied = repository.copy_disk(disk, extents=changed, parent=older)
        assert copied.read_bytes < len(data) / 4
        assert copied.new_chunks <= 8
        newer = image(copied)
        repository.commit([point("p9", newer)])
        reader = repository.open_disk(newer)
        assert reader.read(0, len(data)) == data
        reader.close()
        told = merge(repository.changed_extents(older, newer))
        assert list(intersect(changed, told)) == changed
        assert sum(extent.length for extent in told) < len(data) / 4
        assert repository.verify().damaged == ()


def _compare(stranger: Stranger, expected: dict[str, Any]) -> None:
    points = stranger.points()
    assert points.keys() == expected["disks"].keys()
    for identity, (size, digest) in expected["disks"].items():
        content = stranger.disk(points[identity]["disks"][0]["root"])
        assert (len(content), sha256(content).hexdigest()) == (size, digest)
    for identity, digest in expected["blobs"].items():
        blob = stranger.blob(points[identity]["disks"][0]["extent_map"])
        assert sha256(blob).hexdigest() == digest
    for identity, summary in expected["evidence"].items():
        assert stranger.evidence()[identity]["summary"] == summary


def test_a_stranger_reads_it_by_the_document_alone(golden: Golden) -> None:
    _compare(Stranger(golden.place, key_file=golden.key), golden.expected)
    _compare(Stranger(golden.place, passphrase=golden.expected["passphrase"]), golden.expected)
    source = Path(__file__).with_name("stranger.py").read_text()
    assert "import atoll" not in source
    assert "from atoll" not in source


def test_the_index_says_what_the_footers_say(golden: Golden) -> None:
    stranger = Stranger(golden.place, key_file=golden.key)
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
