"""FAT12, FAT16 and FAT32 as mtools fills them, and exFAT as its FUSE driver does and shows it."""

import os
import random
import stat
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from foreign_trees import Exported, export_all, file_digest, fuse_mounted, looped, walk

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import EntryKind, Placed
from atoll.filesystems.session import open_filesystem
from atoll.model.errors import UnsupportedFormatError

FORMS = {"12": (3, []), "16": (40, ["-s", "4"]), "32": (80, ["-s", "1"])}
_MTOOLS = os.environ | {"TZ": "UTC", "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}


@dataclass
class Guest:
    image: Path
    form: str = "exfat"
    stats: dict[bytes, os.stat_result] = field(default_factory=dict)
    digests: dict[bytes, str] = field(default_factory=dict)


def observe(top: Path, guest: Guest) -> None:
    for path, info in walk(top):
        guest.stats[path] = info
        if stat.S_ISREG(info.st_mode):
            guest.digests[path] = file_digest(os.fsencode(top) + path)


def fill(top: Path, megabytes: int) -> None:
    rnd = random.Random(11)
    for number in range(120):
        place = top / "bulk" / f"Dir {number // 30}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file_{number:04d}.dat").write_bytes(rnd.randbytes(rnd.randrange(5000)))
    corner = top / "corner"
    corner.mkdir()
    long = "n" * 255 if megabytes > 3 else "n" * 200
    for name in ("SHORT.TXT", "lower.txt", "Mixed.Txt", "UPPER.low", "noext", "日本語.txt", long):
        (corner / name).write_bytes(name.encode())
    for name in ("Ünï cödé", "exactly13char", "exactly26characters-in-all", " lead", "a.b.c.d"):
        (corner / name).write_bytes(name.encode())
    (corner / "empty").touch()
    (corner / "big").write_bytes(rnd.randbytes(megabytes * 150_000))
    deep = corner.joinpath(*[f"l{n}" for n in range(20)])
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"b")
    (corner / "many").mkdir()
    for number in range(300):
        (corner / "many" / f"a rather long name {number:04d}").touch()
    times = ((corner / "lower.txt", 1_000_000_000), (corner / "empty", 4_000_000_000))
    for path, seconds in times:
        os.utime(path, (seconds, seconds))


@pytest.fixture(scope="module", params=["12", "32", pytest.param("16", marks=pytest.mark.soak)])
def fat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    work = tmp_path_factory.mktemp(f"fat-{request.param}")
    image, tree = work / "guest.img", work / "tree"
    megabytes, options = FORMS[request.param]
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    command = ["mkfs.fat", "-F", request.param, "-n", "LABEL", "-i", "1234ABCD", *options, image]
    subprocess.run(command, check=True, capture_output=True)
    tree.mkdir()
    fill(tree, megabytes)

    def mtools(*arguments: str | Path) -> None:
        tool, *rest = arguments
        subprocess.run([tool, "-i", image, *rest], check=True, env=_MTOOLS)

    mtools("mcopy", "-s", "-m", "-Q", *tree.iterdir(), "::")
    # What is deleted leaves gaps, in directories and between clusters.
    mtools("mdel", *(f"::/bulk/Dir 1/file_{number:04d}.dat" for number in range(30, 60, 2)))
    mtools("mcopy", "-m", tree / "corner" / "big", "::/bulk/scattered")
    mtools("mattrib", "+h", "+s", "+r", "::/corner/noext")
    guest = Guest(image, request.param)
    out = work / "out"
    out.mkdir()
    mtools("mcopy", "-s", "-m", "-n", "-Q", "::/bulk", "::/corner", out)
    observe(out, guest)
    return guest


def exfat(device: Path, at: Path, options: str = "rw") -> AbstractContextManager[Path]:
    return fuse_mounted(["mount.exfat-fuse", "-o", options, device], at)


def assert_same(found: Exported, guest: Guest, step_ns: int) -> None:
    assert not found.faults
    assert found.entries.keys() == guest.stats.keys()
    for path, info in guest.stats.items():
        entry = found.entries[path]
        directory = stat.S_ISDIR(info.st_mode)
        assert entry.kind is (EntryKind.DIRECTORY if directory else EntryKind.FILE), path
        if not directory:
            assert entry.size == info.st_size, path
            assert entry.mtime_ns // step_ns == info.st_mtime_ns // step_ns, path
            assert found.digests[path] == guest.digests[path], path


def test_fat_is_as_mtools_sees_it(fat: Guest) -> None:
    with open_filesystem(FileReader(fat.image)) as session:
        assert (session.kind, session.label, session.uuid) == ("fat", "LABEL", "1234-ABCD")
        found = export_all(session)
        assert len(fat.stats) > 400
        assert_same(found, fat, 2_000_000_000)
        hidden = session.stat("/corner/noext")
        assert hidden.mode == 0o400
        assert session.xattrs("/corner/noext") == {"user.DOSATTRIB": b"0x27"}
        assert session.xattrs("/corner/big") == {}
        raw = fat.image.read_bytes()
        scattered = session.stat("/bulk/scattered")
        pieces = list(session.layout(scattered.inode))
        assert len(pieces) > 1 or fat.form == "32"  # which fills its gaps last
        assert all(isinstance(piece, Placed) for piece in pieces)
        content = b"".join(raw[at : at + length] for _, length, at in pieces)
        assert content == b"".join(data.content for data in session.read("/corner/big"))


@pytest.mark.needs_root
@pytest.mark.parametrize("cluster", ["512", pytest.param("32K", marks=pytest.mark.soak)])
def test_exfat_is_as_its_driver_sees_it(tmp_path: Path, cluster: str) -> None:
    image = tmp_path / "guest.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    command = ["mkfs.exfat", "-L", "Läbel", "-c", cluster, image]
    subprocess.run(command, check=True, capture_output=True, env=_MTOOLS)
    with looped(image) as device, exfat(device, tmp_path / "mnt") as top:
        fill(top, 20)
        (top / "corner" / ("あ" * 255)).write_bytes(b"the longest name")
        for number in range(0, 30, 2):
            (top / "bulk" / "Dir 0" / f"file_{number:04d}.dat").unlink()
        for _ in range(30):  # two files growing in turns come out in pieces
            for name in ("frag1", "frag2"):
                with (top / name).open("ab") as file:
                    file.write(os.urandom(40_000))
                    os.fsync(file.fileno())
        os.truncate(top / "frag2", 3 << 20)
    guest = Guest(image)
    with looped(image) as device, exfat(device, tmp_path / "mnt", "ro") as top:
        observe(top, guest)
    with open_filesystem(FileReader(image)) as session:
        assert (session.kind, session.label) == ("exfat", "Läbel")
        found = export_all(session)
        assert_same(found, guest, 1_000_000_000)
        rows = list(session.children(session.stat("/corner/many").inode))
        assert len(rows) == 300
        assert len(list(session.layout(session.stat("/frag1").inode))) > 1


def test_a_chain_that_turns_back_is_damage(tmp_path: Path) -> None:
    image = tmp_path / "loop.img"
    with image.open("wb") as file:
        file.truncate(40 << 20)
    subprocess.run(["mkfs.fat", "-F", "16", image], check=True, capture_output=True)
    (tmp_path / "big").write_bytes(bytes(1 << 20))
    subprocess.run(["mcopy", "-i", image, tmp_path / "big", "::"], check=True, env=_MTOOLS)
    raw = bytearray(image.read_bytes())
    reserved = int.from_bytes(raw[14:16], "little") * 512
    raw[reserved + 2 * 10 : reserved + 2 * 10 + 2] = (5).to_bytes(2, "little")
    image.write_bytes(raw)
    with (
        open_filesystem(FileReader(image)) as session,
        pytest.raises(UnsupportedFormatError, match="turns back"),
    ):
        list(session.read("/big"))
