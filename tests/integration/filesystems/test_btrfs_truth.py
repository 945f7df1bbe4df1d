"""Every name, attribute and byte of real btrfs file systems, compared with the kernel's own view."""

import os
import random
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from foreign_trees import export_all, unmount
from linux_trees import Truth, fill, observe

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import STALENESS, EntryKind, Placed
from atoll.filesystems.session import FileSystemSession, open_filesystem
from atoll.guestfiles.browser import FileBrowser
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.recovery.files import restore_files

pytestmark = pytest.mark.needs_root

FORMS = {
    "plain": (["--mixed"], ""),
    "zstd": ([], "compress-force=zstd"),
    "zlib": (["-O", "^no-holes"], "compress-force=zlib"),
    "lzo": (["-n", "4096", "-m", "single"], "compress-force=lzo"),
}
_TOP_LEVEL = "/.btrfs-top-level"
_INODE = (1 << 48) - 1


@dataclass
class Guest:
    """`truth` is the default subvolume's view, `outside` that of what is not below it."""

    image: Path
    form: str
    truth: dict[bytes, Truth] = field(default_factory=dict)
    outside: dict[bytes, Truth] = field(default_factory=dict)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def mounted(image: Path, at: Path, options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    run("mount", "-o", f"loop,noatime,{options}".rstrip(","), image, at)
    try:
        yield at
    finally:
        unmount(at)


def extend(top: Path) -> None:
    """What btrfs has beside what every file system of Linux has."""
    rnd = random.Random(5)
    words = [rnd.randbytes(rnd.randrange(2, 30)) for _ in range(200)]
    text = b"".join(rnd.choice(words) for _ in range(30000))
    corner = top / "corner"
    (corner / "text").write_bytes(text)
    (corner / "zeros").write_bytes(bytes(1 << 20))
    os.sync()
    run("cp", "--reflink=always", corner / "text", corner / "reflink")
    with (corner / "reflink").open("r+b") as file:  # now in three pieces, two of shared extents
        file.seek(100_000)
        file.write(rnd.randbytes(20_000))
    run("fallocate", "-p", "-o", "40960", "-l", "65536", corner / "text")
    run("fallocate", "-l", "8M", corner / "preallocated")
    with (corner / "preallocated").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"P" * 100_000)
    run("btrfs", "property", "set", corner / "sub", "compression", "zstd")
    run("btrfs", "subvolume", "create", top / "subvolume")
    (top / "subvolume" / "inside").write_bytes(text[:5000])
    run("btrfs", "subvolume", "create", top / "subvolume" / "nested")
    (top / "subvolume" / "nested" / "file").write_bytes(b"nested")
    run("btrfs", "subvolume", "create", top / "subvolume" / "other")
    run("btrfs", "subvolume", "snapshot", "-r", top / "subvolume", top / "snapshot")
    (top / "subvolume" / "inside").write_bytes(b"changed since the snapshot")
    run("btrfs", "subvolume", "create", top / "deleted")
    run("btrfs", "subvolume", "delete", top / "deleted")


@pytest.fixture(
    scope="module",
    params=[
        "zstd",
        "lzo",
        *(pytest.param(form, marks=pytest.mark.soak) for form in ("plain", "zlib")),
    ],
)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    work = tmp_path_factory.mktemp(f"btrfs-{request.param}")
    image = work / "guest.img"
    options, compression = FORMS[request.param]
    with image.open("wb") as file:
        file.truncate(400 << 20)
    run("mkfs.btrfs", "-q", "-L", f"L-{request.param}", *options, image)
    found = Guest(image, request.param)
    with mounted(image, work / "mnt", compression) as top:
        where = top
        if request.param == "lzo":
            run("btrfs", "subvolume", "create", top / "@")
            run("btrfs", "subvolume", "create", top / "@home")
            (top / "@home" / "user").write_text("at home")
            where = top / "@"
            run("btrfs", "subvolume", "set-default", where)
        fill(where, request.param)
        extend(where)
        if where != top:
            (top / "@home").joinpath("last").write_text("last")
    with mounted(image, work / "mnt", "ro") as top:
        found.truth = observe(top)
    if request.param == "lzo":
        with mounted(image, work / "mnt", "ro,subvolid=5") as top:
            everything = observe(top)
            found.outside = {p: t for p, t in everything.items() if not p.startswith(b"/@/")}
    return found


def assert_as_the_kernel_sees(
    session: FileSystemSession, top: str, truth: dict[bytes, Truth]
) -> None:
    found = export_all(session, top or "/")
    assert not found.faults
    skipped = len(top)
    entries = {path[skipped:] or b"/": entry for path, entry in found.entries.items()}
    digests = {path[skipped:]: digest for path, digest in found.digests.items()}
    if not top:
        hidden = os.fsencode(_TOP_LEVEL)
        entries = {p: e for p, e in entries.items() if not (p + b"/").startswith(hidden + b"/")}
    assert entries.keys() == truth.keys()
    for path, expected in truth.items():
        entry = entries[path]
        # What stands for a subvolume of which this is a snapshot's copy, and for the default one.
        if expected.inode == 2 or (top and path == b"/@"):
            assert entry.kind is EntryKind.DIRECTORY
            continue
        assert (entry.size, entry.mode, entry.uid, entry.gid, entry.nlink) == (
            *(expected.size, stat.S_IMODE(expected.mode), expected.uid, expected.gid),
            expected.nlink,
        ), path
        assert entry.inode & _INODE == expected.inode, path
        assert (entry.mtime_ns, entry.ctime_ns) == (expected.mtime_ns, expected.ctime_ns), path
        assert entry.atime_ns == expected.atime_ns, path
        target = None if entry.target is None else os.fsencode(entry.target)
        assert (target, entry.device) == (expected.target, expected.device), path
        assert dict(entry.xattrs or ()) == expected.xattrs, path
        if expected.digest is not None:
            assert digests[path] == expected.digest, path


def test_everything_is_as_the_kernel_sees_it(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert (session.kind, session.journal) == ("btrfs", "clean")
        assert session.label == f"L-{guest.form}"
        assert b"/snapshot/nested" in guest.truth
        assert len(guest.truth) > 3500
        assert_as_the_kernel_sees(session, "", guest.truth)
        if guest.outside:
            assert_as_the_kernel_sees(session, _TOP_LEVEL, guest.outside)
            content = b"".join(data.content for data in session.read(f"{_TOP_LEVEL}/@home/user"))
            assert content == b"at home"
        else:
            with pytest.raises(NotFoundInPointError):
                session.stat(_TOP_LEVEL)


def test_layouts_and_rows_give_the_same(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session, guest.image.open("rb") as raw:
        rows = {row.name: row for row in session.children(session.stat("/corner").inode)}
        for name in (b"big", b"reflink", b"text", b"inline100", b"frag1", b"sparse"):
            content = bytearray(rows[name].size)
            for piece in session.layout(rows[name].inode):
                data = b""
                if isinstance(piece, Placed):
                    raw.seek(piece.at)
                    data = raw.read(piece.length)
                else:
                    data = piece.content
                content[piece.offset : piece.offset + len(data)] = data
            expected = bytearray(rows[name].size)
            for offset, data in session.read(os.fsdecode(b"/corner/" + name)):
                expected[offset : offset + len(data)] = data
            assert content == expected, name
        inside = session.stat("/subvolume/inside")
        assert {row.inode for row in session.children(session.stat("/subvolume").inode)} >= {
            inside.inode
        }
        assert session.node(inside.inode).size == inside.size


@pytest.mark.parametrize("default", ["the top level", "the root"])
def test_subvolumes_are_mounted_as_fstab_says(tmp_path: Path, default: str) -> None:
    """As Ubuntu and Fedora have it, and as openSUSE does."""
    image = tmp_path / "guest.img"
    with image.open("wb") as file:
        file.truncate(150 << 20)
    run("mkfs.btrfs", "-q", "-U", "5b9c1d1e-0000-4000-8000-00000000000a", image)
    with mounted(image, tmp_path / "mnt", "rw") as top:
        for name in ("@", "@/srv", "@home", "@unused"):
            run("btrfs", "subvolume", "create", top / name)
        for name in ("etc", "home", "var", "var/srv"):
            (top / "@" / name).mkdir()
        (top / "@home" / "user").write_text("at home")
        (top / "@" / "srv" / "served").write_text("served")
        (top / "@" / "home" / "hidden").write_text("by the mount")
        device = "UUID=5b9c1d1e-0000-4000-8000-00000000000a"
        options = "" if default == "the root" else "subvol=@"
        (top / "@" / "etc" / "fstab").write_text(
            f"{device} / btrfs defaults,{options} 0 0\n"
            f"{device} /home btrfs compress=zstd,subvol=/@home 0 0\n"
            f"{device} /var/srv btrfs subvol=@/srv,subvolid=999 0 0\n"
            f"{device} /gone btrfs subvol=@gone 0 0\n"
        )
        if default == "the root":
            run("btrfs", "subvolume", "set-default", top / "@")
    target = tmp_path / "restored"
    with FileBrowser([("disk", FileReader(image))]) as browser:
        assert browser.mounts.absent.keys() == {"/gone"}
        found = {e.path for e in browser.list("/", recursive=True) if _TOP_LEVEL not in e.path}
        assert found == {
            *("/etc", "/etc/fstab", "/home", "/home/user", "/srv", "/srv/served", "/var"),
            *("/var/srv", "/var/srv/served"),
        }
        assert b"".join(data.content for data in browser.read("/home/user")) == b"at home"
        assert browser.stat("/var/srv/../srv/served").path == "/var/srv/served"
        assert {entry.path for entry in browser.list("/home")} == {"/home/user"}
        restore_files(browser, "/home", target)
        assert (target / "home" / "user").read_text() == "at home"
        restore_files(browser, "/var", target)
    assert (target / "var" / "srv" / "served").read_text() == "served"


def test_a_log_that_is_not_replayed_is_told_of(tmp_path: Path) -> None:
    live, image = tmp_path / "live.img", tmp_path / "guest.img"
    with live.open("wb") as file:
        file.truncate(150 << 20)
    run("mkfs.btrfs", "-q", live)
    with mounted(live, tmp_path / "mnt", "commit=300") as top:
        (top / "committed").write_text("committed")
        run("btrfs", "filesystem", "sync", top)
        with (top / "logged").open("w") as file:
            file.write("logged\n")
            file.flush()
            os.fsync(file.fileno())
        run("cp", "--sparse=always", live, image)
    with FileBrowser([("disk", FileReader(image))]) as browser:
        assert {entry.name for entry in browser.list("/")} == {"committed"}
        assert "may be missing or old" in browser.staleness(browser.volumes[0])
        report = restore_files(browser, "/", tmp_path / "restored")
    assert [note for note in report.not_kept if "journal" in note] == [
        f"disk1:part0 (btrfs): {STALENESS}."
    ]


def test_a_file_system_on_two_devices_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.img", tmp_path / "two.img"
    for image in (one, two):
        with image.open("wb") as file:
            file.truncate(150 << 20)
    run("mkfs.btrfs", "-q", "-d", "single", "-m", "raid1", one, two)
    with pytest.raises(UnsupportedFormatError, match="2 devices"):
        open_filesystem(FileReader(one))
