"""Real trees on Linux file systems, the kernel's own view of them, and the comparison with ours."""

import hashlib
import os
import random
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import Data, Entry, EntryKind, Fault, Placed
from atoll.filesystems.rows import Row
from atoll.filesystems.scanning import open_scan
from atoll.filesystems.session import FileSystemSession, open_filesystem
from atoll.filesystems.tables import InodeTable, NameTable


@dataclass(frozen=True)
class Truth:
    """What the kernel says about one name."""

    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    nlink: int
    inode: int
    target: bytes | None
    device: tuple[int, int] | None
    xattrs: dict[str, bytes]
    digest: str | None


@dataclass(frozen=True)
class Guest:
    """An image and what a mount of it shows."""

    form: str
    image: Path
    truth: dict[bytes, Truth]


@contextmanager
def mounted(image: Path, at: Path, options: str = "loop") -> Iterator[Path]:
    """Mount an image for as long as the block lasts."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", options, image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def fill(top: Path, form: str) -> None:
    """Ordinary files and every corner the format has."""
    rnd = random.Random(42)
    blob = rnd.randbytes(1 << 16)
    for number in range(400):
        place = top / "bulk" / f"d{number // 40}"
        place.mkdir(parents=True, exist_ok=True)
        start, length = rnd.randrange(60000), rnd.randrange(9000)
        path = place / f"file_{number:04d}"
        path.write_bytes(blob[start : start + length])
        os.chown(path, 1000 + number % 7, 100 + number % 3)
        path.chmod(0o640 if number % 5 else 0o4755)
    corner = os.fsencode(top / "corner") + b"/"
    os.mkdir(corner)

    def write(name: bytes, content: bytes) -> bytes:
        with open(corner + name, "wb") as file:
            file.write(content)
        return corner + name

    write(b"big", rnd.randbytes(9 << 20))
    for name in (b"n" * 255, "é".encode() * 127, b"bad\xff\xfeutf", b"new\nline", b" lead", b"-d"):
        write(name, name)
    for name in ("日本語", "emoji_😘", "quote'\"", "back\\slash"):
        write(name.encode(), name.encode())
    with open(corner + b"sparse", "wb") as file:
        for offset in (0, 1 << 20, 90 << 20):
            file.seek(offset)
            file.write(b"DATA" * 4096)
        file.truncate(200 << 20)
    write(b"hole-only", b"")
    os.truncate(corner + b"hole-only", 5 << 20)
    os.mkdir(corner + b"sub")
    os.chmod(corner + b"sub", 0o1777)
    write(b"hard1", b"hard")
    os.link(corner + b"hard1", corner + b"hard2")
    os.link(corner + b"hard1", corner + b"sub/hard3")
    for name, target in (
        (b"short", b"hard1"),
        (b"s59", b"x" * 59),
        (b"s60", b"x" * 60),
        (b"s61", b"x" * 61),
        (b"s150", b"y" * 150),
        (b"s1000", b"/" + b"z" * 999),
        (b"escape", b"../../../../etc/passwd"),
        (b"odd", b"bad\xff"),
    ):
        os.symlink(target, corner + b"sym-" + name)
    os.makedirs(corner + b"deep/" + b"/".join(b"l%d" % n for n in range(60)))
    os.mkdir(corner + b"large")
    for number in range(3000):
        os.close(os.open(corner + b"large/a_rather_long_name_%06d" % number, os.O_CREAT, 0o600))
    for size in (0, 1, 59, 60, 61, 100, 150, 160, 400):
        write(b"inline%d" % size, b"i" * size)
    for size in (1, 3, 8, 20):
        os.mkdir(corner + b"dir%d" % size)
        for number in range(size):
            write(b"dir%d/f%d" % (size, number), b"x")
    for _ in range(60):  # two files growing in turns come out in pieces
        for name in (b"frag1", b"frag2"):
            with open(corner + name, "ab") as file:
                file.write(rnd.randbytes(5000))
                os.fsync(file.fileno())
    with open(corner + b"punched", "wb") as file:
        file.write(rnd.randbytes(1 << 20))
    if form.startswith(("ext4", "xfs")):
        punch = ["fallocate", "-p", "-o", "40960", "-l", "65536", corner + b"punched"]
        subprocess.run(punch, check=True)
        subprocess.run(["fallocate", "-l", "8M", corner + b"preallocated"], check=True)
        with open(corner + b"preallocated", "r+b") as file:
            file.seek(1 << 20)
            file.write(b"P" * 100000)
        write(b"beyond", b"short")
        subprocess.run(["fallocate", "-n", "-l", "4M", corner + b"beyond"], check=True)
    for name, seconds in ((b"old", -86400 * 365), (b"y2030", 1900000000), (b"y2100", 4102444800)):
        path = write(name, name)
        if not form.endswith("128"):
            os.utime(path, ns=(seconds * 10**9 + 123456789, seconds * 10**9 + 987654321))
    os.mkfifo(corner + b"fifo")
    os.mknod(corner + b"null", 0o20666, os.makedev(1, 3))
    os.mknod(corner + b"disk", 0o60660, os.makedev(259, 300))
    with socket.socket(socket.AF_UNIX) as channel:
        here = os.getcwd()
        os.chdir(corner)
        channel.bind("sock")
        os.chdir(here)
    path = write(b"xattr", b"x")
    os.setxattr(path, "user.small", b"v")
    os.setxattr(path, "user.big", b"V" * 600)
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "trusted.t", b"\x00\xff")
    os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    if form == "ext4-inline" or form.startswith("xfs"):
        os.setxattr(path, "user.huge", rnd.randbytes(20000))
    os.setxattr(corner + b"inline100", "user.beside", b"inline data")
    write(b"acl", b"a")
    subprocess.run(["setfacl", "-m", "u:1001:rwx,g:55:r--,m:rwx", corner + b"acl"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", corner + b"sub"], check=True)
    os.chown(write(b"bigid", b"b"), 3000000000, 70000)


def observe(top: Path) -> dict[bytes, Truth]:
    """Everything below a mount point, by path inside the file system."""
    root = os.fsencode(top)
    found = {}
    todo = [root]
    while todo:
        path = todo.pop()
        info = os.lstat(path)
        directory, regular = stat.S_ISDIR(info.st_mode), stat.S_ISREG(info.st_mode)
        special = stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)
        digest = None
        if regular:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path[len(root) :] or b"/"] = Truth(
            mode=info.st_mode,
            size=info.st_size,
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
            atime_ns=info.st_atime_ns,
            ctime_ns=info.st_ctime_ns,
            nlink=info.st_nlink,
            inode=info.st_ino,
            target=os.readlink(path) if stat.S_ISLNK(info.st_mode) else None,
            device=(os.major(info.st_rdev), os.minor(info.st_rdev)) if special else None,
            xattrs={
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
            digest=digest,
        )
        if directory:
            todo += [path + b"/" + name for name in os.listdir(path)]
    return found


def view(image: Path, work: Path) -> dict[bytes, Truth]:
    """What the kernel shows of a copy of the image, journal replayed; the image stays as it is."""
    copy = work / "copy.img"
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    with mounted(copy, work / "mnt", "loop,noatime"):
        pass  # the kernel replays the journal of a writable image only
    with mounted(copy, work / "mnt", "loop,ro,noatime") as top:
        truth = observe(top)
    copy.unlink()
    return truth


def digest_of(pieces: list[Data], size: int) -> str:
    """SHA-256 of a file given as data without its holes."""
    digest = hashlib.sha256()
    at = 0
    for offset, content in [*pieces, Data(size, b"")]:
        while at < offset:
            step = min(offset - at, 1 << 20)
            digest.update(bytes(step))
            at += step
        digest.update(content)
        at += len(content)
    assert at == size
    return digest.hexdigest()


def assert_as_the_kernel_sees(session: FileSystemSession, truth: dict[bytes, Truth]) -> None:
    """Every name, attribute and byte."""
    entries: dict[bytes, Entry] = {}
    content: dict[bytes, list[Data]] = {}
    by_inode: dict[int, bytes] = {}
    last = b""
    for record in session.export("/"):
        match record:
            case Entry():
                last = os.fsencode(record.path)
                assert last not in entries
                entries[last] = record
                content[last] = []
                by_inode.setdefault(record.inode, last)
            case Data():
                content[last].append(record)
            case Fault():
                pytest.fail(f"{record}")
    assert entries.keys() == truth.keys()
    for path, expected in truth.items():
        entry = entries[path]
        got = (entry.size, entry.mode, entry.uid, entry.gid, entry.nlink, entry.inode)
        mode = stat.S_IMODE(expected.mode)
        assert got == (
            *(expected.size, mode, expected.uid, expected.gid, expected.nlink, expected.inode),
        ), path
        assert (entry.mtime_ns, entry.atime_ns, entry.ctime_ns) == (
            *(expected.mtime_ns, expected.atime_ns, expected.ctime_ns),
        ), path
        target = None if entry.target is None else os.fsencode(entry.target)
        assert (target, entry.device) == (expected.target, expected.device), path
        assert dict(entry.xattrs or ()) == expected.xattrs, path
        if expected.digest is not None:
            assert entry.kind is EntryKind.FILE
            pieces = content[by_inode[entry.inode]]
            assert digest_of(pieces, entry.size) == expected.digest, path


def tree(session: FileSystemSession) -> dict[bytes, Row]:
    """Every entry by its path, asked for by inode alone."""
    found: dict[bytes, Row] = {}
    todo = [(b"", session.node(session.stat("/").inode))]
    while todo:
        path, entry = todo.pop()
        found[path or b"/"] = entry
        if entry.kind is EntryKind.DIRECTORY:
            for child in list(session.children(entry.inode)):
                assert child.kind is not None, child.name
                todo.append((path + b"/" + child.name, child))
    return found


def placed_digest(session: FileSystemSession, reader: FileReader, entry: Row) -> str:
    known = entry.places
    pieces = session.layout(entry.inode) if known is None else known
    hashed = hashlib.sha256()
    at = 0
    for piece in pieces:
        hashed.update(bytes(piece.offset - at))
        if isinstance(piece, Placed):
            hashed.update(reader.read(piece.at, piece.length))
            at = piece.offset + piece.length
        else:
            hashed.update(piece.content)
            at = piece.offset + len(piece.content)
    hashed.update(bytes(entry.size - at))
    return hashed.hexdigest()


def assert_content(guest: Guest) -> None:
    """Files read from where their layout says, and attributes, are as the kernel shows them."""
    reader = FileReader(guest.image)
    with open_filesystem(reader) as session:
        found = tree(session)
        assert found.keys() == guest.truth.keys()
        for path, truth in guest.truth.items():
            if truth.digest is not None and truth.size < 1 << 30:
                assert placed_digest(session, reader, found[path]) == truth.digest, path
            xattrs = found[path].xattrs
            known = dict(xattrs) if xattrs is not None else session.attributes(truth.inode)
            assert known == truth.xattrs, path


def assert_scanned(image: Path, truth: dict[bytes, Truth]) -> None:
    """What a scan of everything finds is what the kernel shows."""
    inodes: dict[int, tuple[object, ...]] = {}
    names: dict[tuple[int, bytes], int] = {}
    with open_scan(FileReader(image)) as session:
        for table in session.scan():
            match table:
                case Fault():
                    pytest.fail(f"{table}")
                case InodeTable():
                    at = 0
                    for row in table.rows:
                        target = table.targets[at : at + int(row["target"])]
                        at += len(target)
                        assert int(row["inode"]) not in inodes
                        inodes[int(row["inode"])] = (
                            *(int(row[name]) for name in ("size", "mode", "uid", "gid", "nlink")),
                            int(row["mtime"]) * 10**9 + int(row["mtime_nanos"]),
                            int(row["ctime"]) * 10**9 + int(row["ctime_nanos"]),
                            target or None,
                        )
                case NameTable():
                    at = 0
                    for parent, inode, length in zip(
                        table.parents, table.inodes, table.lengths, strict=True
                    ):
                        name = table.text[at : at + int(length)]
                        at += len(name)
                        assert (int(parent), name) not in names
                        names[int(parent), name] = int(inode)
    expected = {}
    for path, true in truth.items():
        if path != b"/":
            above, _, name = path.rpartition(b"/")
            expected[truth[above or b"/"].inode, name] = true.inode
        assert inodes[true.inode] == (
            *(true.size, stat.S_IMODE(true.mode), true.uid, true.gid, true.nlink),
            *(true.mtime_ns, true.ctime_ns, true.target),
        ), path
    assert names == expected
