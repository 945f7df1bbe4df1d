"""Damaged file systems give an answer or one clean error, never a hang and never anything else."""

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.blocks.readers import FileReader
from atoll.filesystems.detect import detect
from atoll.filesystems.ext4 import open_volume
from atoll.filesystems.interface import Data, Fault
from atoll.filesystems.session import Limits, open_filesystem
from atoll.filesystems.tree import export
from atoll.model.errors import UnsupportedFormatError


class Flipped:
    """An image with some bytes changed in memory."""

    def __init__(self, image: bytes, changes: dict[int, int]) -> None:
        self._image = image
        self._changes = changes

    @property
    def size_bytes(self) -> int:
        return len(self._image)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._image[offset : offset + length])
        for place, value in self._changes.items():
            if offset <= place < offset + len(data):
                data[place - offset] = value
        return bytes(data)


@pytest.fixture(scope="module", params=["inline", "extents", "mapped"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file system made without mounting it."""
    work = tmp_path_factory.mktemp("small")
    tree = work / "tree"
    rnd = random.Random(7)
    for number in range(60):
        place = tree / f"d{number % 5}" / "e"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(rnd.randbytes(rnd.randrange(20000)))
    (tree / "link").symlink_to("d0/e/f0")
    (tree / "long").symlink_to("x" * 200)
    with (tree / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    form = {
        "inline": ["-t", "ext4", "-O", "inline_data"],
        "extents": ["-t", "ext4", "-b", "1024"],
        "mapped": ["-t", "ext2", "-b", "1024", "-I", "128"],
    }[request.param]
    image = work / "small.img"
    subprocess.run(["mke2fs", "-q", "-F", *form, "-d", tree, image, "8M"], check=True)
    return image.read_bytes()


def interesting(image: bytes) -> list[list[int]]:
    """Offsets of the superblock's fields, and of what is set in blocks that look like structures."""
    structures = []
    for start in range(2048, len(image), 1024):
        block = image[start : start + 1024]
        if 200 < block.count(0) < 1024:  # mostly zeros, where the files' content is noise
            structures += [start + at for at, byte in enumerate(block) if byte]
    return [list(range(1024, 1024 + 264)), structures[:2000], structures]


def flips(places: list[list[int]], seed: int) -> dict[int, int]:
    """Up to three changed bytes in the superblock, or up to forty among the structures."""
    rnd = random.Random(seed)
    where = rnd.randrange(len(places))
    count = rnd.randrange(1, 4 if where == 0 else 40)
    return {rnd.choice(places[where]): rnd.randrange(256) for _ in range(count)}


def test_hundreds_of_flips_are_answered_or_refused(small: bytes) -> None:
    """Parser without the jail, so that an endless loop would show in the test's own time limit."""
    whole = partial = refused = 0
    places = interesting(small)
    for seed in range(200):
        image = Flipped(small, flips(places, seed))
        try:
            volume = open_volume(image)
        except Exception as error:  # noqa: BLE001 - judged below
            # dissect's errors share no base with ours; through the jail they become one of ours
            assert isinstance(error, UnsupportedFormatError | EOFError | ZeroDivisionError) or (
                type(error).__module__.startswith("dissect.")
            ), error
            refused += 1
            continue
        try:
            records = list(export(volume, volume.root, "/"))
        except UnsupportedFormatError:
            refused += 1
            continue
        assert sum(len(r.content) for r in records if isinstance(r, Data)) <= 8 * len(small)
        if any(isinstance(record, Fault) for record in records):
            partial += 1
        else:
            whole += 1
    assert whole
    assert partial
    assert refused


def test_flips_through_the_jail_never_harm_the_parent(small: bytes) -> None:
    outcomes = []
    places = interesting(small)
    for seed in range(1000, 1030):
        image = Flipped(small, flips(places, seed))
        if not detect(image).supported:
            continue
        try:
            with open_filesystem(image, Limits(patience_seconds=30)) as session:
                outcomes.append(sum(1 for _ in session.export("/")))
        except UnsupportedFormatError as error:
            assert str(error).isprintable()
            outcomes.append(-1)
    assert len(outcomes) > 15
    assert any(outcome > 0 for outcome in outcomes)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4096))
def test_detection_takes_anything(head: bytes) -> None:
    content = detect(Flipped(head, {}))
    assert str(content.refusal()).startswith("The partition holds")


def test_a_directory_that_contains_itself_is_listed_once(tmp_path: Path) -> None:
    """The loop is made with debugfs: a name of the root is pointed back at the root."""
    image = tmp_path / "loop.img"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", image, "8M"], check=True)
    subprocess.run(["debugfs", "-w", "-R", "link <2> again", image], check=True)
    with open_filesystem(FileReader(image)) as session:
        listing = session.list("/", recursive=True)
        seen = []
        with pytest.raises(UnsupportedFormatError, match="loop"):
            seen.extend(entry.path for entry in listing)
        assert seen.count("/again") == 0


def test_a_cut_off_image_is_refused(small: bytes) -> None:
    image = Flipped(small[: 64 << 10], {})
    with (
        pytest.raises(UnsupportedFormatError, match=r"damaged|larger than the partition"),
        open_filesystem(image) as session,
    ):
        list(session.list("/", recursive=True))
