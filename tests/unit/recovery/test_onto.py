"""Disks written onto what exists: only what differs, and nothing onto what is something else."""

import fcntl
import itertools
import os
import random
from pathlib import Path

import pytest

from atoll.model.errors import RestoreTargetError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.recovery import onto
from atoll.recovery.onto import BLOCK_BYTES, restore_onto
from repository_parts import MemoryDisk, noise

SIZE = (9 << 20) + 512


@pytest.fixture
def wanted() -> bytes:
    content = bytearray(noise(1, SIZE))
    content[1 << 20 : 3 << 20] = bytes(2 << 20)
    return bytes(content)


@pytest.fixture
def target(wanted: bytes, tmp_path: Path) -> Path:
    """Differs in three blocks, the last one too; a single byte each."""
    there = bytearray(wanted)
    for at in (5, (2 << 20) + 1, SIZE - 1):
        there[at] ^= 1
    path = tmp_path / "disk.img"
    path.write_bytes(there)
    return path


@pytest.fixture(autouse=True, params=[4 << 20, 64 << 10])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole in few pieces, and in more than are read at a time."""
    monkeypatch.setattr(onto, "_PIECE_BYTES", request.param)


CHANGED = [Extent(0, 512), Extent(2 << 20, 1024), Extent(SIZE - 512, 512)]


@pytest.mark.parametrize("changed", [None, CHANGED])
def test_only_blocks_that_differ_are_written(wanted, target: Path, changed) -> None:
    told: list[int] = []
    done = restore_onto(MemoryDisk(wanted), target, changed, told.append, verify=True)
    assert target.read_bytes() == wanted
    assert done.written_bytes == 2 * BLOCK_BYTES + 512
    assert done.compared_bytes == (SIZE if changed is None else done.written_bytes)
    assert sum(told) == 2 * done.compared_bytes
    assert restore_onto(MemoryDisk(wanted), target, changed).written_bytes == 0


def test_a_target_that_is_something_else_is_left_alone(wanted, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    for stranger in (noise(2, SIZE), bytes([wanted[0] ^ 1]) + wanted[1:]):
        path.write_bytes(stranger)
        with pytest.raises(RestoreTargetError, match="not in the state"):
            restore_onto(MemoryDisk(wanted), path, [Extent(4 << 20, 4096)])
        assert path.read_bytes() == stranger


def test_samples_are_spread_over_everything_that_did_not_change(monkeypatch) -> None:
    outside = [Extent(0, 1 << 20), Extent(1 << 30, 63 << 20)]
    found = list(onto._samples(outside))
    assert found[0].offset == 0
    assert found[-1].end == outside[-1].end
    assert len(found) >= onto.SAMPLES
    starts = sorted({piece.offset for piece in found if piece.offset >= 1 << 30})
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 1 << 20
    assert not list(onto._samples([]))


def test_of_the_wrong_size_in_use_or_no_disk(wanted, target: Path, tmp_path: Path) -> None:
    before = target.read_bytes()
    with pytest.raises(RestoreTargetError, match="and the disk"):
        restore_onto(MemoryDisk(wanted[:-512]), target)
    with target.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(RestoreTargetError, match="in use"):
            restore_onto(MemoryDisk(wanted), target)
    assert target.read_bytes() == before
    with pytest.raises(RestoreTargetError, match="neither"):
        restore_onto(MemoryDisk(wanted), tmp_path)
    with pytest.raises(RestoreTargetError, match="No such file"):
        restore_onto(MemoryDisk(wanted), tmp_path / "absent")
    assert not os.path.lexists(tmp_path / "absent")


def test_a_write_that_fails_says_what_state_it_is_in(wanted, target: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onto, "pwrite", full)
    with pytest.raises(RestoreTargetError, match="partly old"):
        restore_onto(MemoryDisk(wanted), target)


def test_what_does_not_read_back_is_told(wanted, target: Path, monkeypatch) -> None:
    monkeypatch.setattr(onto, "pwrite", lambda *_: None)
    with pytest.raises(RestoreTargetError, match="read back"):
        restore_onto(MemoryDisk(wanted), target, verify=True)


def test_cut_off_and_done_again(wanted, target: Path) -> None:
    """The same command goes on, also when part of the changed ranges is restored already."""

    class Failing(MemoryDisk):
        def read(self, offset: int, length: int) -> bytes:
            if offset >= SIZE - 512 and length <= 512:
                raise StorageUnreachableError("The repository went away.")
            return super().read(offset, length)

    # The last block lies outside the samples' reach only as part of the changed ranges.
    with pytest.raises(StorageUnreachableError):
        restore_onto(Failing(wanted), target, [*CHANGED[:2], Extent(SIZE - 512, 512)])
    restore_onto(MemoryDisk(wanted), target, CHANGED)
    assert target.read_bytes() == wanted


def test_many_differences_over_many_pieces(wanted, tmp_path: Path) -> None:
    rnd = random.Random(3)
    there = bytearray(wanted)
    blocks = set(rnd.sample(range(SIZE // BLOCK_BYTES), 300))
    for block in blocks:
        there[block * BLOCK_BYTES + rnd.randrange(BLOCK_BYTES)] ^= 255
    (tmp_path / "disk").write_bytes(there)
    done = restore_onto(MemoryDisk(wanted), tmp_path / "disk")
    assert done.written_bytes == 300 * BLOCK_BYTES
    assert (tmp_path / "disk").read_bytes() == wanted


def test_random_differences(tmp_path: Path) -> None:
    rnd = random.Random(7)
    for size in (1, 511, BLOCK_BYTES, 3 * BLOCK_BYTES + 7):
        content = bytearray(rnd.randbytes(size))
        path = tmp_path / f"{size}"
        path.write_bytes(content)
        content[rnd.randrange(size)] ^= 255
        assert 0 < restore_onto(MemoryDisk(bytes(content)), path).written_bytes <= BLOCK_BYTES
        assert path.read_bytes() == content
