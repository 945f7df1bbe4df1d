"""Every name, attribute, stream and byte of real NTFS volumes, compared with ntfs-3g's own view."""

import hashlib
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from foreign_trees import export_all, file_digest, fuse_mounted, walk

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import EntryKind, Fault
from atoll.filesystems.scanning import open_scan
from atoll.filesystems.session import open_filesystem
from atoll.filesystems.tables import KINDS, InodeTable
from atoll.guestfiles.browser import FileBrowser
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.recovery.files import restore_files

pytestmark = pytest.mark.needs_root

FORMS = {"4k": [], "clusters512": ["-c", "512"], "clusters64k": ["-c", "65536"]}
_WINDOWS_ONLY = ("acl", "attrib_be", "crtime_be", "dos_name", "reparse_data", "ea")
_COMPRESSED = 0x800
_RELATIVE_TARGET = "..\\corner\\hard1"
_DRIVE_TARGET = "C:\\Users\\Public"


def ntfs(image: Path, at: Path, options: str) -> AbstractContextManager[Path]:
    return fuse_mounted(["ntfs-3g", "-o", f"special_files=wsl,{options}", image], at)


@dataclass
class Guest:
    image: Path
    form: str
    stats: dict[bytes, os.stat_result] = field(default_factory=dict)
    digests: dict[bytes, str] = field(default_factory=dict)
    targets: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, dict[str, bytes]] = field(default_factory=dict)
    streams: dict[bytes, str] = field(default_factory=dict)


def reparse(tag: int, body: bytes) -> bytes:
    return struct.pack("<IHH", tag, len(body), 0) + body


def link_body(target: str, shown: str, flags: int | None) -> bytes:
    one, two = target.encode("utf-16-le"), shown.encode("utf-16-le")
    head = struct.pack("<4H", 0, len(one), len(one), len(two))
    return head + (b"" if flags is None else struct.pack("<I", flags)) + one + two


def fill(top: Path) -> None:
    rnd = random.Random(42)
    blob = rnd.randbytes(1 << 16)
    for number in range(200):
        place = top / "bulk" / f"d{number // 40}"
        place.mkdir(parents=True, exist_ok=True)
        start, length = rnd.randrange(60000), rnd.randrange(9000)
        (place / f"file_{number:04d}").write_bytes(blob[start : start + length])
    corner = top / "corner"
    corner.mkdir()

    def write(name: str | bytes, content: bytes) -> Path:
        path = os.fsencode(corner) + b"/" + os.fsencode(name)
        with open(path, "wb") as file:
            file.write(content)
        return Path(os.fsdecode(path))

    write("big", rnd.randbytes(5 << 20))
    for name in (
        "n" * 255,
        "あ" * 255,
        "😘" * 127,
        "日本語",
        "Ünï",
        "new\nline",
        " lead",
        "quote'",
    ):
        write(name, name.encode())
    write(b"lone-\xed\xa0\xbd-high", b"half of a pair")
    write(b"lone-\xed\xb0\x80-low", b"the other half")
    with (corner / "sparse").open("wb") as file:
        for offset in (0, 1 << 20, 90 << 20, 7 << 30):
            file.seek(offset)
            file.write(b"DATA" * 4096)
        file.truncate(8 << 30)
    (corner / "hole-only").write_bytes(b"")
    os.truncate(corner / "hole-only", 5 << 20)
    (corner / "sub").mkdir()
    write("hard1", b"hard")
    os.link(corner / "hard1", corner / "hard2")
    os.link(corner / "hard1", corner / "sub" / "hard3")
    write("many-names", b"an attribute list")
    for number in range(90):
        os.link(corner / "many-names", corner / "sub" / f"another name of the same file {number}")
    (corner / "deep").joinpath(*[f"l{n}" for n in range(60)]).mkdir(parents=True)
    (corner / "large").mkdir()
    for number in range(1500):
        (corner / "large" / f"a_rather_long_name_{number:06d}").touch()
    for size in (0, 1, 400, 690, 700, 800, 1024):
        write(f"resident{size}", b"r" * size)
    for _ in range(40):  # two files growing in turns come out in pieces
        for name in ("frag1", "frag2"):
            with (corner / name).open("ab") as file:
                file.write(rnd.randbytes(5000))
                os.fsync(file.fileno())
    os.truncate(write("cut", rnd.randbytes(1 << 18)), 100_001)
    late = 4102444800 * 10**9
    os.utime(write("y2100", b"t"), ns=(late + 123456700, late + 987654300))
    # ntfs-3g gives whole seconds alone before 1970.
    os.utime(write("old", b"t"), ns=(-9460800000 * 10**9, -9460800001 * 10**9))
    os.symlink("../corner/hard1", corner / "wsl-link")
    os.mkfifo(corner / "fifo")
    packed = corner / "packed"
    packed.mkdir()
    flags = int.from_bytes(os.getxattr(packed, "system.ntfs_attrib_be"), "big") | _COMPRESSED
    os.setxattr(packed, "system.ntfs_attrib_be", flags.to_bytes(4, "big"))
    words = [rnd.randbytes(rnd.randrange(2, 30)) for _ in range(200)]
    text = b"".join(rnd.choice(words) for _ in range(20000))
    (packed / "text").write_bytes(text)
    (packed / "zeros").write_bytes(bytes(300_000))
    (packed / "noise").write_bytes(rnd.randbytes(200_000))
    (packed / "mixed").write_bytes(text[:70000] + rnd.randbytes(90_000) + bytes(70_000) + text)
    (packed / "run").write_bytes(b"abc" * 100_000)
    (packed / "small").write_bytes(b"s" * 5000)
    with (packed / "sparse").open("wb") as file:
        file.write(text)
        file.seek(3 << 20)
        file.write(text)
    streams = write("streams", b"the file itself")
    os.setxattr(streams, "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n")
    os.setxattr(streams, "user.日本", rnd.randbytes(3000))
    os.setxattr(streams, "user.limit", rnd.randbytes(65536))
    os.setxattr(corner / "sub", "user.of-a-directory", b"x" * 2000)
    os.setxattr(write("short-name", b"8.3"), "system.ntfs_dos_name", b"SHORT~1")
    os.setxattr(write("hidden", b"h"), "system.ntfs_attrib_be", (0x27).to_bytes(4, "big"))
    access = bytearray(os.getxattr(streams, "system.ntfs_acl"))
    access[-16:-12] = struct.pack("<I", 0x001200A9)
    for number in range(3):
        path = write(f"access{number}", b"a")
        access[-16] = 0xA9 + number
        os.setxattr(path, "system.ntfs_acl", bytes(access))
    for name, tag, body in (
        ("link", 0xA000000C, link_body(_RELATIVE_TARGET, _RELATIVE_TARGET, 1)),
        ("drive-link", 0xA000000C, link_body("\\??\\" + _DRIVE_TARGET, _DRIVE_TARGET, 0)),
        ("dedup", 0x80000013, bytes(100)),
    ):
        os.setxattr(write(name, b""), "system.ntfs_reparse_data", reparse(tag, body))
    (corner / "junction").mkdir()
    body = link_body("\\??\\" + _DRIVE_TARGET, _DRIVE_TARGET, None)
    os.setxattr(corner / "junction", "system.ntfs_reparse_data", reparse(0xA0000003, body))


def fill_streams(top: Path) -> None:
    """Through the mount that takes `file:stream` for a path, as Windows does."""
    rnd = random.Random(43)
    (top / "corner" / "streams:large").write_bytes(rnd.randbytes(3_000_001))
    (top / "corner" / "streams:just over").write_bytes(rnd.randbytes(65537))
    (top / "corner" / "sub:of a directory").write_bytes(rnd.randbytes(70000))
    wof = top / "corner" / "wof"
    wof.touch()
    wof.with_name("wof:WofCompressedData").write_bytes(rnd.randbytes(90000))
    os.setxattr(
        wof, "system.ntfs_reparse_data", reparse(0x80000017, struct.pack("<4I", 1, 2, 1, 0))
    )


def observe(guest: Guest, top: Path) -> None:
    for path, info in walk(top):
        whole = os.fsencode(top) + path
        guest.stats[path] = info
        if stat.S_ISLNK(info.st_mode):
            guest.targets[path] = os.readlink(whole)
        xattrs = {}
        for name in os.listxattr(whole, follow_symlinks=False):
            if not name.startswith("user."):
                continue
            try:
                xattrs[name] = os.getxattr(whole, name, follow_symlinks=False)
            except OSError:
                continue  # too large for the kernel: it is read as a stream
        for name in _WINDOWS_ONLY:
            try:
                key = f"system.ntfs_{name}"
                xattrs[key] = os.getxattr(whole, key, follow_symlinks=False)
            except OSError:
                continue
        guest.xattrs[path] = xattrs
        if stat.S_ISREG(info.st_mode) and path != b"/corner/sparse":
            guest.digests[path] = file_digest(whole)


@pytest.fixture(
    scope="module",
    params=["4k", "clusters512", pytest.param("clusters64k", marks=pytest.mark.soak)],
)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    work = tmp_path_factory.mktemp(f"ntfs-{request.param}")
    image = work / "guest.img"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    command = ["mkntfs", "-F", "-Q", "-q", "-L", "Läbel", *FORMS[request.param], image]
    subprocess.run(command, check=True, capture_output=True)
    compression = "compression," if request.param != "clusters64k" else ""
    with ntfs(image, work / "mnt", f"{compression}streams_interface=xattr") as top:
        fill(top)
    with ntfs(image, work / "mnt", "streams_interface=windows") as top:
        fill_streams(top)
    found = Guest(image, request.param)
    with ntfs(image, work / "mnt", "ro,streams_interface=xattr,noatime") as top:
        observe(found, top)
    with ntfs(image, work / "mnt", "ro,streams_interface=windows,noatime") as top:
        for name in (b"streams:large", b"streams:just over", b"sub:of a directory"):
            path = b"/corner/" + name
            found.streams[path] = file_digest(os.fsencode(top) + path)
    return found


def scanned(image: Path) -> dict[str, tuple[object, ...]]:
    """What a scan's tables say, by path."""
    rows: dict[int, tuple[object, ...]] = {}
    below: dict[int, list[tuple[bytes, int]]] = {}
    with open_scan(FileReader(image)) as session:
        for table in session.scan():
            assert not isinstance(table, Fault)
            if isinstance(table, InodeTable):
                at = 0
                for row in table.rows:
                    target = table.targets[at : at + int(row["target"])].decode()
                    at += int(row["target"])
                    assert int(row["inode"]) not in rows
                    times = (
                        int(row[f"{which}time"]) * 10**9 + int(row[f"{which}time_nanos"])
                        for which in "mc"
                    )
                    numbers = (int(row["size"]), *times, int(row["nlink"]), int(row["mode"]))
                    rows[int(row["inode"])] = (KINDS[int(row["kind"]) - 1], *numbers, target)
            else:
                at = 0
                for parent, inode, length in zip(
                    table.parents, table.inodes, table.lengths, strict=True
                ):
                    name = table.text[at : at + int(length)]
                    at += int(length)
                    below.setdefault(int(parent), []).append((name, int(inode)))
    found = {}
    todo = [("", 5)]
    while todo:
        path, number = todo.pop()
        for name, inode in below.get(number, ()):
            where = f"{path}/{os.fsdecode(name)}"
            assert where not in found
            found[where] = (inode, *rows[inode])
            if rows[inode][0] is EntryKind.DIRECTORY:
                todo.append((where, inode))
    return found


def test_a_scan_of_the_mft_finds_what_a_walk_finds(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        walked = {
            e.path: (
                *(e.inode, e.kind, e.size, e.mtime_ns, e.ctime_ns),
                *(e.nlink, e.mode, e.target or ""),
            )
            for e in session.list("/", recursive=True)
        }
    assert scanned(guest.image) == walked


def test_a_restore_names_once_what_only_windows_has(guest: Guest, tmp_path: Path) -> None:
    with FileBrowser([("disk", FileReader(guest.image))]) as browser:
        assert browser.volumes[0].content.uuid == browser.session(browser.volumes[0]).uuid
        report = restore_files(browser, "/corner/streams:large", tmp_path / "one")
        assert report.missing == 0
        report = restore_files(browser, "/corner/packed", tmp_path)
    assert report.missing == 0
    assert [note for note in report.not_kept if "Windows" in note] == report.not_kept
    assert len(report.not_kept) <= 1  # none where the target is an NTFS itself
    packed = tmp_path / "packed"
    for name in os.listdir(packed):
        path = os.fsencode(packed / name)
        assert file_digest(path) == guest.digests[b"/corner/packed/" + os.fsencode(name)]
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    stream = os.fsencode(tmp_path / "one" / "streams:large")
    assert file_digest(stream) == guest.streams[b"/corner/streams:large"]


def unread() -> Iterator[bytes]:
    yield b"/corner/wof"
    yield b"/corner/dedup"


def test_everything_is_as_ntfs_3g_sees_it(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert (session.kind, session.label, session.journal) == ("ntfs", "Läbel", "clean")
        # The file of 8 GiB has a test of its own.
        sparse = [entry for entry in session.list("/corner") if entry.name == "sparse"]
        assert sparse[0].size == 8 << 30
        assert sparse[0].allocated_bytes < 1 << 24
        found = export_all(session, "/bulk")
        corner = export_all(session, "/corner")
        root = session.stat("/")
    found.entries |= corner.entries
    found.digests |= corner.digests
    assert set(corner.faults) == set(unread())
    assert "restore the whole disk" in corner.faults[b"/corner/wof"]
    assert root.kind is EntryKind.DIRECTORY
    assert found.entries.keys() | {b"/"} == guest.stats.keys() | guest.streams.keys()
    assert len(guest.stats) > 1900
    for path, info in guest.stats.items():
        if path == b"/":
            continue
        entry = found.entries[path]
        times = (entry.mtime_ns, entry.atime_ns, entry.ctime_ns)
        assert times == (info.st_mtime_ns, info.st_atime_ns, info.st_ctime_ns), path
        assert entry.inode == info.st_ino, path
        xattrs = dict(entry.xattrs or ())
        if path == b"/corner/streams":
            assert len(xattrs["user.limit"]) == 65536
        assert xattrs == guest.xattrs[path], path
        if entry.kind is EntryKind.FILE:
            short = "system.ntfs_dos_name" in xattrs  # ntfs-3g counts it as a link
            assert entry.nlink == info.st_nlink - short, path
            if path not in unread():
                assert entry.size == info.st_size, path
        if path in guest.digests and path not in unread():
            assert entry.kind is EntryKind.FILE
            assert found.digests[path] == guest.digests[path], path
    for path, digest in guest.streams.items():
        assert found.digests[path] == digest, path
        assert found.entries[path].kind is EntryKind.FILE


def test_links_keep_what_windows_wrote(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert session.stat("/corner/link").target == "../corner/hard1"
        assert session.stat("/corner/wsl-link").target == "../corner/hard1"
        assert session.stat("/corner/drive-link").target == _DRIVE_TARGET
        assert session.stat("/corner/junction").target == _DRIVE_TARGET
        assert session.stat("/corner/fifo").kind is EntryKind.FIFO


def test_a_huge_sparse_file_is_read_by_its_pieces(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        written = set()
        for offset, content in session.read("/corner/sparse"):
            for at in range(0, len(content), 16384):
                piece = content[at : at + 16384]
                if piece.count(0) != len(piece):
                    written.add(offset + at)
                    assert piece == b"DATA" * 4096
        assert written == {0, 1 << 20, 90 << 20, 7 << 30}


def test_layouts_give_the_same_bytes(guest: Guest) -> None:
    raw = guest.image.read_bytes()
    with open_filesystem(FileReader(guest.image)) as session:
        rows = {row.name: row for row in session.children(session.stat("/corner").inode)}
        assert b"lone-\xed\xa0\xbd-high" in rows
        packed = session.stat("/corner/packed").inode
        rows |= {b"packed/" + row.name: row for row in session.children(packed)}
        for name in (b"big", b"cut", b"hole-only", b"frag1", b"resident400", b"packed/mixed"):
            content = bytearray(rows[name].size)
            for piece in session.layout(rows[name].inode):
                if len(piece) == 3:
                    content[piece.offset : piece.offset + piece.length] = raw[
                        piece.at : piece.at + piece.length
                    ]
                else:
                    content[piece.offset : piece.offset + len(piece.content)] = piece.content
            assert hashlib.sha256(content).hexdigest() == guest.digests[b"/corner/" + name], name
        stream = rows[b"streams:large"]
        assert stream.size == 3_000_001
        assert session.node(stream.inode).size == stream.size


def test_what_is_asked_for_by_path(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert session.stat("/corner/streams:large").size == 3_000_001
        assert session.xattrs("/corner/streams")["user.Zone.Identifier"].startswith(b"[Zone")
        with pytest.raises(NotFoundInPointError):
            session.stat("/$MFT")
        with pytest.raises(NotFoundInPointError):
            session.stat("/corner/SHORT~1")
        with pytest.raises(UnsupportedFormatError, match="deduplication"):
            list(session.read("/corner/dedup"))


@pytest.mark.parametrize("what", ["flag", "log"])
def test_an_unfinished_volume_says_so(tmp_path: Path, what: str) -> None:
    image = tmp_path / "dirty.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkntfs", "-F", "-Q", "-q", image], check=True, capture_output=True)
    raw = bytearray(image.read_bytes())
    if what == "flag":
        start = raw.index("$Volume".encode("utf-16-le")) & ~1023
        at = start + struct.unpack_from("<H", raw, start + 20)[0]
        while struct.unpack_from("<I", raw, at)[0] != 0x70:
            at += struct.unpack_from("<I", raw, at + 4)[0]
        raw[at + struct.unpack_from("<H", raw, at + 20)[0] + 10] |= 1
    else:
        start = raw.index("$LogFile".encode("utf-16-le")) & ~1023
        at = start + struct.unpack_from("<H", raw, start + 20)[0]
        while struct.unpack_from("<I", raw, at)[0] != 0x80:
            at += struct.unpack_from("<I", raw, at + 4)[0]
        runs = at + struct.unpack_from("<H", raw, at + 32)[0]
        count, width = raw[runs] & 15, raw[runs] >> 4
        first = int.from_bytes(raw[runs + 1 + count : runs + 1 + count + width], "little") * 4096
        page = bytearray(b"\xff" * 4096)
        page[:4] = b"RSTR"
        struct.pack_into("<H", page, 24, 48)
        struct.pack_into("<QHHHH", page, 48, 1000, 1, 0xFFFF, 0, 0)  # a client at work
        raw[first : first + 4096] = page
    image.write_bytes(raw)
    with open_filesystem(FileReader(image)) as session:
        assert session.journal == "unreplayed"
        assert list(session.list("/")) == []
