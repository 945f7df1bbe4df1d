"""Damaged XFS file systems and logs give an answer or one clean error, never a hang nor anything else."""

import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from linux_trees import mounted
from xfs_images import LogWriter, make

from atoll.blocks.readers import FileReader
from atoll.filesystems import xfs_log, xfs_scan
from atoll.filesystems.crc32c import checksums
from atoll.filesystems.detect import detect
from atoll.filesystems.interface import Data, Fault
from atoll.filesystems.session import Limits, open_filesystem
from atoll.filesystems.tables import inode_table, name_table
from atoll.filesystems.tree import export
from atoll.filesystems.wire import Kind
from atoll.filesystems.xfs import XfsVolume, open_volume
from atoll.model.errors import UnsupportedFormatError

_BLOCK = 4096
_FIELDS = {b"XDB3": 4, b"XDD3": 4, b"BMA3": 64, b"XSLM": 12, b"XARM": 12}
_TREE_MAGICS = (b"\x3b\xee", b"\x3e\xbe")


class Changed:
    """An image with some bytes changed in memory, and the checksums right again if they are to be."""

    def __init__(self, image: bytes, changes: dict[int, int], *, sealed: bool) -> None:
        self._image = image
        self._pieces: dict[int, bytes] = {}
        for number in {place // _BLOCK for place in changes}:
            block = bytearray(image[number * _BLOCK : (number + 1) * _BLOCK])
            for place, value in changes.items():
                if place // _BLOCK == number:
                    block[place % _BLOCK] = value
            self._pieces[number] = seal(bytes(block)) if sealed else bytes(block)

    @property
    def size_bytes(self) -> int:
        return len(self._image)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._image[offset : offset + length])
        for number, block in self._pieces.items():
            at = number * _BLOCK - offset
            begin, end = max(0, at), min(len(data), at + _BLOCK)
            if begin < end:
                data[begin:end] = block[begin - at : end - at]
        return bytes(data)


def seal(block: bytes) -> bytes:
    """A block with the checksum that belongs to what is in it."""
    sealed = bytearray(block)
    if block[:4] == b"XFSB":
        sealed[224:228] = int(checksums(block[:512], 512, 224)[0]).to_bytes(4, "little")
    elif block[:2] == b"IN":
        for at, crc in zip(range(0, _BLOCK, 512), checksums(block, 512, 100), strict=True):
            sealed[at + 100 : at + 104] = int(crc).to_bytes(4, "little")
    else:
        field = 12 if block[8:10] in _TREE_MAGICS else _FIELDS.get(block[:4])
        if field is not None:
            sealed[field : field + 4] = int(checksums(block, _BLOCK, field)[0]).to_bytes(
                4, "little"
            )
    return bytes(sealed)


def tree(work: Path) -> Path:
    """A list of a tree for mkfs.xfs."""
    (work / "content").write_bytes(random.Random(7).randbytes(30000))
    full = "\n".join(f"name-{n} ---600 1 1 {work}/content" for n in range(60))
    many = "\n".join(
        f"many-{n} l--777 1 1 {'t' * n}" for n in range(1, 300)
    )  # longer ones mkfs writes without a checksum
    prototype = work / "prototype"
    prototype.write_text(
        f"/dev/null\n0 0\nd--755 3 4\nfile ---640 7 8 {work}/content\nlink l--777 0 0 {'x' * 290}\n"
        f"null c--666 0 0 1 3\nfull d--755 0 0\n{full}\n$\nmany d--755 0 0\n{many}\n$\n$\n"
    )
    return prototype


@pytest.fixture(scope="module", params=["v5", "v4"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file system made without mounting it."""
    work = tmp_path_factory.mktemp("small")
    image = work / "small.img"
    form = ["-m", "crc=0", "-l", "size=4m"] if request.param == "v4" else ["-l", "size=6m"]
    make(image, [*form, "-d", "agcount=1", "-p", str(tree(work))], 20)
    with open_filesystem(FileReader(image)) as session:
        number = session.stat("/file").inode
    for length in (10, 3000, 30000):
        command = f"attr_set -u a{length} -v {length}"
        subprocess.run(["xfs_db", "-x", "-c", f"inode {number}", "-c", command, image], check=True)
    return image.read_bytes()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int, int]:
    """A file system with a log to replay, and where the records in it lie."""
    work = tmp_path_factory.mktemp("used")
    live, image = work / "live.img", work / "used.img"
    make(live, ["-l", "size=6m", "-d", "agcount=1"], 20)
    with mounted(live, work / "mnt") as top:
        for number in range(150):
            (top / f"d{number % 5}").mkdir(exist_ok=True)
            (top / f"d{number % 5}" / f"f{number}").write_bytes(b"x" * number)
        for number in range(0, 150, 4):
            (top / f"d{number % 5}" / f"f{number}").unlink()
        (top / "link").symlink_to("x" * 800)
        subprocess.run(["xfs_io", "-x", "-c", "shutdown -f", top], check=True)
        subprocess.run(["cp", "--sparse=always", live, image], check=True)
    log = LogWriter(image)
    return image.read_bytes(), log.start, log.start + log.next * 512


def structures(image: bytes) -> list[list[int]]:
    """Offsets of the superblock's fields, and of what is set in blocks of metadata outside the log."""
    found = []
    for start in range(_BLOCK, len(image), _BLOCK):
        head = image[start : start + 10]
        if (
            head[:2] == b"IN"
            or head[:4] in _FIELDS
            or head[:3] == b"XD2"
            or head[8:10] in _TREE_MAGICS
        ):
            found += [start + at for at in range(_BLOCK) if image[start + at]]
    return [list(range(264)), found]


def outcome(image: Changed) -> str:
    """Whether an image is read whole, in part, or refused; anything else is a failure."""
    try:
        volume = open_volume(image)
        records = list(export(volume, volume.root, "/"))
        scan(volume)
    except UnsupportedFormatError as error:
        assert str(error).isprintable()
        return "refused"
    assert sum(len(r.content) for r in records if isinstance(r, Data)) <= 64 * image.size_bytes
    return "partial" if any(isinstance(record, Fault) for record in records) else "whole"


def scan(volume: XfsVolume) -> None:
    """What a scan sends has to pass the checks of who receives it."""
    inodes = xfs_scan.pieces(volume)
    for kind, payload in xfs_scan.frames(volume, inodes or []):
        if kind is Kind.INODES:
            inode_table(payload)
        elif kind is Kind.NAMES:
            name_table(payload)


def flips(places: list[list[int]], seed: int) -> dict[int, int]:
    """A few changed bytes in the superblock, or some more among the structures."""
    rnd = random.Random(seed)
    where = int(rnd.random() > 0.25)
    count = rnd.randrange(1, 4 if where == 0 else 60)
    return {rnd.choice(places[where]): rnd.randrange(256) for _ in range(count)}


def fuzz(image: bytes, seeds: range) -> Counter[str]:
    places = structures(image)
    return Counter(
        outcome(Changed(image, flips(places, seed), sealed=seed % 3 > 0)) for seed in seeds
    )


def test_flips_are_answered_or_refused(small: bytes) -> None:
    """Parser without the jail, so that an endless loop would show in the test's own time limit."""
    assert outcome(Changed(small, {}, sealed=True)) == "whole"
    counts = fuzz(small, range(60))
    assert counts["partial"]
    assert counts["refused"]


@pytest.mark.soak
def test_many_flips_are_answered_or_refused(small: bytes) -> None:
    fuzz(small, range(1000, 21000))


def log_flips(used: tuple[bytes, int, int], seed: int) -> Changed:
    image, start, end = used
    rnd = random.Random(seed)
    count = rnd.choice((1, 3, 30, 300))
    changes = {rnd.randrange(start, end): rnd.randrange(256) for _ in range(count)}
    return Changed(image, changes, sealed=False)


@pytest.mark.needs_root
@pytest.mark.parametrize("checked", [True, False])
def test_flips_in_a_log_are_answered_or_refused(
    used: tuple[bytes, int, int], checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of logs whose checksums a hostile guest made right."""
    if not checked:
        monkeypatch.setattr(xfs_log, "_is_whole", lambda *_: True)
    counts = Counter(outcome(log_flips(used, seed)) for seed in range(60))
    assert counts["refused"]
    assert counts["whole"]


@pytest.mark.needs_root
@pytest.mark.soak
@pytest.mark.parametrize("checked", [True, False])
def test_many_flips_in_a_log_are_answered_or_refused(
    used: tuple[bytes, int, int], checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not checked:
        monkeypatch.setattr(xfs_log, "_is_whole", lambda *_: True)
    for seed in range(1000, 11000):
        outcome(log_flips(used, seed))


def test_flips_through_the_jail_never_harm_the_parent(small: bytes) -> None:
    outcomes = []
    places = structures(small)
    for seed in range(1000, 1006):
        image = Changed(small, flips(places, seed), sealed=True)
        if not detect(image).supported:
            continue
        try:
            with open_filesystem(image, Limits(patience_seconds=30)) as session:
                outcomes.append(sum(1 for _ in session.export("/")))
        except UnsupportedFormatError as error:
            assert str(error).isprintable()
            outcomes.append(-1)
    assert len(outcomes) > 2
    assert any(found > 0 for found in outcomes)


def test_a_cut_off_image_is_refused(small: bytes) -> None:
    with (
        pytest.raises(UnsupportedFormatError, match=r"damaged|larger than the partition"),
        open_filesystem(Changed(small[: 64 << 10], {}, sealed=False)) as session,
    ):
        list(session.list("/", recursive=True))
