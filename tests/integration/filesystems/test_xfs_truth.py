"""Every name, attribute and byte of real XFS file systems, compared with the kernel's own view.

The kernel at hand may not mount the older format (V4), which mkfs.xfs fills from a list and xfs_db changes.
"""

import os
import subprocess
from pathlib import Path

import pytest
from linux_trees import (
    Guest,
    assert_as_the_kernel_sees,
    assert_content,
    assert_scanned,
    fill,
    mounted,
    view,
)
from xfs_images import FORMS, fill_corners, make

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.scanning import open_scan
from atoll.filesystems.session import open_filesystem
from atoll.filesystems.tables import NameTable
from atoll.guestfiles.browser import FileBrowser
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError

pytestmark = pytest.mark.needs_root


_USUAL = ("xfs", "xfs-1k-blocks")
_FORMS = [form if form in _USUAL else pytest.param(form, marks=pytest.mark.soak) for form in FORMS]


@pytest.fixture(scope="module", params=_FORMS)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """A cleanly unmounted file system of each form."""
    work = tmp_path_factory.mktemp(request.param)
    image = work / "guest.img"
    make(image, FORMS[request.param], 280)
    with mounted(image, work / "mnt") as top:
        if request.param == "xfs":
            fill(top, request.param)
        fill_corners(top, request.param)
    return Guest(request.param, image, view(image, work))


def test_everything_is_as_the_kernel_sees_it(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert (session.kind, session.label, session.journal) == ("xfs", "atoll", "clean")
        known = ["blkid", "-p", "-o", "value", "-s", "UUID", guest.image]
        assert session.uuid == subprocess.check_output(known, text=True).strip()
        assert len(guest.truth) > 3000
        assert_as_the_kernel_sees(session, guest.truth)


# That of the form "xfs" is by far the largest, and differs in nothing that this is about.
@pytest.mark.parametrize("guest", [form for form in _FORMS if form != "xfs"], indirect=True)
def test_files_are_where_their_layout_says(guest: Guest) -> None:
    assert_content(guest)


def test_a_scan_finds_all_of_it(guest: Guest) -> None:
    assert_scanned(guest.image, guest.truth)


def test_questions_about_single_paths(guest: Guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert session.stat("/").kind is EntryKind.DIRECTORY
        assert session.stat("/xfs/linked-999").nlink == 1001
        assert session.stat("/xfs/link-1023").target == "t" * 1023
        names = {os.fsencode(entry.path) for entry in session.list("/xfs/names3000")}
        assert names == {p for p in guest.truth if p.startswith(b"/xfs/names3000/")}
        for name in ("attributes-800-40", "attributes-2-65536", "attributes-0"):
            path = f"/xfs/{name}"
            if os.fsencode(path) in guest.truth:
                assert session.xattrs(path) == guest.truth[os.fsencode(path)].xattrs
        for number in range(4):
            assert (
                sum(len(data.content) for data in session.read(f"/xfs/unwritten-{number}")) < 70_000
            )
        with pytest.raises(NotFoundInPointError, match="no /xfs/nothing"):
            session.stat("/xfs/nothing")
        with pytest.raises(NotFoundInPointError, match="directory"):
            list(session.read("/xfs"))


def test_a_file_larger_than_its_volume_is_read_where_it_has_data(tmp_path: Path) -> None:
    image = tmp_path / "guest.img"
    make(image, [], 40)
    with mounted(image, tmp_path / "mnt") as top, (top / "huge").open("wb") as file:
        for offset in (0, 1 << 40, (1 << 62) + 12345):
            file.seek(offset)
            file.write(b"here")
        file.truncate((1 << 63) - 1 - 4096)
    with open_filesystem(FileReader(image)) as session:
        assert session.stat("/huge").size == (1 << 63) - 1 - 4096
        found = {}
        for data in session.read("/huge"):
            at = data.content.find(b"here")
            found[data.offset + at] = data.content.replace(b"here", b"").strip(b"\0")
        assert found == {0: b"", 1 << 40: b"", (1 << 62) + 12345: b""}


def assert_scanned_by_name(image: Path, names: set[str]) -> None:
    found = set()
    with open_scan(FileReader(image)) as session:
        for table in session.scan():
            if isinstance(table, NameTable):
                ends = table.lengths.cumsum(dtype="i8")
                text = table.text.decode()
                found |= {text[end - n : end] for end, n in zip(ends, table.lengths, strict=True)}
    assert found == names


V4_FORMS = {"v4": [], "v4-512-blocks": ["-b", "size=512"], "v4-kinds": ["-n", "ftype=1"]}


@pytest.mark.parametrize("form", list(V4_FORMS))
def test_the_older_format(form: str, tmp_path: Path) -> None:
    content = os.urandom(150_000)
    (tmp_path / "content").write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    target = "x" * 900
    lists = [
        f"full d--755 0 0 {' '.join(f'name-{n} ---600 1 1 {tmp_path}/empty' for n in range(1500))} $"
    ]
    lists += [
        f"some d-g750 5 6 {' '.join(f'n{n} ---600 1 1 {tmp_path}/empty' for n in range(40))} $"
    ]
    prototype = tmp_path / "prototype"
    prototype.write_text(
        f"/dev/null\n0 0\nd--755 3 4\nfile -u-640 7 8 {tmp_path}/content\nlink l--777 0 0 {target}\n"
        "near l--777 0 0 file\nnull c--666 0 0 1 3\ndisk b--600 0 0 259 300\nfifo p--600 0 0\n"
        + "\n".join(line.replace(" $", "\n$").replace(" name", "\nname") for line in lists)
        + "\n$\n"
    )
    image = tmp_path / "guest.img"
    make(image, ["-m", "crc=0", "-l", "size=4m", *V4_FORMS[form], "-p", str(prototype)], 40)
    with open_filesystem(FileReader(image)) as session:
        number = session.stat("/file").inode
    for command in (
        "attr_set -u one -v 20",
        "attr_set -r two -v 2000",
        "attr_set -s three -v 30000",
    ):
        subprocess.run(["xfs_db", "-x", "-c", f"inode {number}", "-c", command, image], check=True)
    with open_filesystem(FileReader(image)) as session:
        assert (session.label, session.journal) == ("atoll", "clean")
        entry = session.stat("/file")
        assert (entry.mode, entry.uid, entry.gid, entry.size) == (0o4640, 7, 8, len(content))
        assert b"".join(data.content for data in session.read("/file")) == content
        assert session.xattrs("/file") == {
            "user.one": b"v" * 20,
            "trusted.two": b"v" * 2000,
            "security.three": b"v" * 30000,
        }
        assert (session.stat("/link").target, session.stat("/near").target) == (target, "file")
        assert (session.stat("/null").device, session.stat("/disk").device) == ((1, 3), (259, 300))
        assert session.stat("/fifo").kind is EntryKind.FIFO
        assert session.stat("/some").mode == 0o2750
        assert_scanned_by_name(image, {e.name for e in session.list("/", recursive=True)})
        assert {e.name for e in session.list("/full")} == {f"name-{n}" for n in range(1500)}
        assert {e.name for e in session.list("/some")} == {f"n{n}" for n in range(40)}


def test_a_guest_whose_root_is_xfs_is_browsed(tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    make(image, ["-m", "uuid=5a6b7c8d-0000-4000-8000-0123456789ab"], 40)
    with mounted(image, tmp_path / "mnt") as top:
        (top / "etc").mkdir()
        (top / "etc/fstab").write_text(
            "UUID=5a6b7c8d-0000-4000-8000-0123456789ab / xfs defaults 0 0\n"
        )
        (top / "etc/hosts").write_text("127.0.0.1 localhost\n")
        (top / "etc/hostname").symlink_to("hosts")
    with FileBrowser([("Hard disk 1", FileReader(image))]) as browser:
        assert {entry.path for entry in browser.list("/etc")} >= {"/etc/fstab", "/etc/hosts"}


def test_a_log_on_another_device_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "guest.img"
    with (tmp_path / "log").open("wb") as file:
        file.truncate(16 << 20)
    make(image, ["-l", f"logdev={tmp_path}/log"], 40)
    with pytest.raises(UnsupportedFormatError, match="log on another device"):
        open_filesystem(FileReader(image))


def test_a_file_on_a_realtime_device_is_refused_and_others_are_read(tmp_path: Path) -> None:
    image = tmp_path / "guest.img"
    (tmp_path / "content").write_bytes(b"content")
    prototype = tmp_path / "prototype"
    prototype.write_text(
        f"/dev/null\n0 0\nd--755 0 0\nfar ---644 0 0 {tmp_path}/content\n"
        f"near ---644 0 0 {tmp_path}/content\n$\n"
    )
    make(image, ["-p", str(prototype)], 40)
    with open_filesystem(FileReader(image)) as session:
        number = session.stat("/far").inode
    command = ["xfs_db", "-x", "-c", f"inode {number}", "-c", "write core.realtime 1", image]
    subprocess.run(command, check=True, capture_output=True)
    with open_filesystem(FileReader(image)) as session:
        assert {entry.name for entry in session.list("/")} == {"far", "near"}
        assert b"".join(data.content for data in session.read("/near")) == b"content"
        with pytest.raises(UnsupportedFormatError, match="realtime device"):
            list(session.read("/far"))


def test_a_wrong_checksum_is_a_fault_of_its_path_alone(tmp_path: Path) -> None:
    image = tmp_path / "guest.img"
    make(image, [], 40)
    with mounted(image, tmp_path / "mnt") as top:
        for name in ("good", "bad"):
            (top / name).mkdir()
            for number in range(100):
                (top / name / f"{name}-{number}").write_bytes(b"x")
    raw = bytearray(image.read_bytes())
    for at in range(0, len(raw), 4096):  # in its place, not in the log, which has it too
        if raw[at : at + 4] == b"XDB3" and b"bad-50" in raw[at : at + 4096]:
            raw[raw.index(b"bad-50", at)] ^= 1
    image.write_bytes(raw)
    with open_filesystem(FileReader(image)) as session:
        assert len(list(session.list("/good"))) == 100
        with pytest.raises(UnsupportedFormatError, match="wrong checksum"):
            list(session.list("/bad"))
        seen = []
        with pytest.raises(UnsupportedFormatError, match="first /bad"):
            seen.extend(session.list("/", recursive=True))
        assert len(seen) == 102
