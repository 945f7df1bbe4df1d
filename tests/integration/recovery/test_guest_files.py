"""Files out of a VM with two disks: found where the guest mounts them, restored as they were."""

import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import EntryKind
from atoll.guestfiles.browser import FileBrowser
from atoll.model.errors import NotFoundInPointError, RestoreTargetError, UnsupportedFormatError
from atoll.recovery.archives import TarWriter, ZipWriter
from atoll.recovery.files import archive_files, restore_files

pytestmark = pytest.mark.needs_root

VAR_UUID = "0b6c8dd4-3a3b-4a54-9d2c-2f7f6d1b6a01"
FSTAB = f"""# <file system> <mount point> <type> <options> <dump> <pass>
PARTUUID=5a0f6a38-8c1c-4f0e-9d3b-1f3d6a8d0001 / ext4 errors=remount-ro 0 1
LABEL=var /var ext4 defaults 0 2
UUID={VAR_UUID} /var/lib/postgresql ext4 noatime 0 2
/dev/sda3 none swap sw 0 0
UUID=11111111-2222-3333-4444-555555555555 /srv/elsewhere ext4 nofail 0 2
tmpfs /tmp tmpfs nosuid 0 0
/dev/sda4 /data/with\\040space refs defaults 0 0
"""


@dataclass(frozen=True)
class Vm:
    """Disk images and the trees they were made from."""

    disks: list[Path]
    root: Path
    var: Path
    database: Path


def write(path: Path, content: bytes, mode: int = 0o644, owner: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.chown(path, owner, owner)
    path.chmod(mode)
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    return path


def make_root(top: Path) -> None:
    write(top / "etc/fstab", FSTAB.encode())
    write(top / "etc/shadow", b"root:*\n", 0o640, 42)
    write(top / "usr/bin/su", b"#!", 0o4755)
    (top / "bin").symlink_to("usr/bin")
    (top / "run").mkdir()
    (top / "absolute").symlink_to("/var/lib")
    (top / "around").symlink_to("around")
    (top / "etc/escape").symlink_to("../../../../etc/passwd")
    for point in ("var", "srv/elsewhere", "data/with space"):
        (top / point).mkdir(parents=True)
    write(top / "var/hidden-by-the-mount", b"x")
    odd = top / "home"
    write(odd / "plain", b"plain", 0o600, 1000)
    os.link(odd / "plain", odd / "again")
    os.makedirs(odd / "sub")
    os.link(odd / "plain", odd / "sub" / "third")
    (odd / "empty").mkdir(mode=0o1777)
    with open(os.fsencode(odd) + b"/bad\xff\xfename\n", "wb") as file:
        file.write(b"odd")
    with (odd / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(100 << 20)
    os.setxattr(odd / "plain", "user.note", b"kept")
    subprocess.run(["setfacl", "-m", "u:1001:rw,g:55:r", odd / "plain"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", odd / "sub"], check=True)
    os.mkfifo(odd / "fifo", 0o620)
    os.mknod(odd / "disk", stat.S_IFBLK | 0o666, os.makedev(8, 0))
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(str(odd / "sock"))
    os.lchown(odd / "fifo", 7, 8)
    os.utime(odd / "sub", ns=(1, 2_000_000_000))


def fill(disk: Path, offset: int, megabytes: int, options: list[str], tree: Path) -> None:
    """Make a file system on a part of a disk and let the kernel copy a tree into it."""
    made = ["mke2fs", "-q", "-F", "-t", "ext4", *options, "-E", f"offset={offset}"]
    subprocess.run([*made, disk, f"{megabytes}M"], check=True)
    top = disk.with_suffix(".mnt")
    top.mkdir(exist_ok=True)
    where = f"loop,offset={offset},sizelimit={megabytes << 20}"
    subprocess.run(["mount", "-o", where, disk, top], check=True)
    try:
        subprocess.run(["cp", "-aT", tree, top], check=True)
    finally:
        subprocess.run(["umount", top], check=True)


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Vm:
    work = tmp_path_factory.mktemp("vm")
    root, var, database = work / "root", work / "var", work / "database"
    root.mkdir()
    make_root(root)
    write(var / "log/messages", b"log")
    (var / "lib/postgresql").mkdir(parents=True)
    write(database / "15/main/PG_VERSION", b"15\n", 0o600, 114)
    os.chown(database, 114, 120)
    database.chmod(0o750)
    system, data = work / "system.img", work / "data.img"
    table = (
        "label: gpt\nfirst-lba: 2048\n"
        "1: start=2048, size=262144, type=L, uuid=5A0F6A38-8C1C-4F0E-9D3B-1F3D6A8D0001\n"
        "2: start=264192, size=65536, type=L\n"
        "3: start=329728, size=32768, type=S\n"
        "4: start=362496, size=32768, type=L\n"
    )
    with system.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["sfdisk", "-q", system], input=table.encode(), check=True)
    with data.open("wb") as file:
        file.truncate(32 << 20)
    fill(system, 2048 * 512, 128, ["-L", "root"], root)
    fill(system, 264192 * 512, 32, ["-L", "var"], var)
    fill(data, 0, 32, ["-U", VAR_UUID], database)
    with system.open("r+b") as file:
        file.seek(329728 * 512 + 4086)
        file.write(b"SWAPSPACE2")
        file.seek(362496 * 512 + 3)
        file.write(b"ReFS\0\0\0\0")
    return Vm([system, data], root, var, database)


@pytest.fixture
def browser(vm: Vm) -> Iterator[FileBrowser]:
    disks = [(f"Hard disk {n}", FileReader(path)) for n, path in enumerate(vm.disks, 1)]
    with FileBrowser(disks) as browser:
        yield browser


def facts(path: bytes) -> dict[str, object]:
    """All that a restore keeps of one name."""
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    return {
        "mode": info.st_mode,
        "owner": (info.st_uid, info.st_gid),
        "times": (info.st_atime_ns, info.st_mtime_ns) if kind != stat.S_IFDIR else info.st_mtime_ns,
        "size": None if kind == stat.S_IFDIR else info.st_size,
        "target": os.readlink(path) if kind == stat.S_IFLNK else None,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }


def assert_same(ours: Path, theirs: Path, without: tuple[bytes, ...] = ()) -> None:
    """The restored tree equals the tree the image was made from."""
    names = set(os.listdir(os.fsencode(theirs))) - set(without) - {b"lost+found"}
    assert set(os.listdir(os.fsencode(ours))) - {b"lost+found"} == names
    for name in names:
        a, b = (os.fsencode(top) + b"/" + name for top in (ours, theirs))
        if stat.S_ISREG(os.lstat(b).st_mode):
            times = os.lstat(b)
            assert Path(os.fsdecode(a)).read_bytes() == Path(os.fsdecode(b)).read_bytes()
            for path in (a, b):  # reading may have changed the time of access
                os.utime(path, ns=(0, times.st_mtime_ns))
        assert facts(a) == facts(b), name
        if stat.S_ISDIR(os.lstat(b).st_mode):
            assert_same(Path(os.fsdecode(a)), Path(os.fsdecode(b)), without)


def test_volumes_are_mounted_as_the_guest_does(browser: FileBrowser) -> None:
    mounts = {point: volume.address for point, volume in browser.mounts.volumes.items()}
    assert mounts == {
        "/": "disk1:part1",
        "/var": "disk1:part2",
        "/var/lib/postgresql": "disk2:part0",
        "/data/with space": "disk1:part4",
    }
    assert list(browser.mounts.absent) == ["/srv/elsewhere"]
    kinds = {volume.address: volume.content.kind for volume in browser.volumes}
    assert kinds["disk1:part3"] == "swap"


def test_listing_crosses_disks_and_hides_what_mounts_hide(browser: FileBrowser) -> None:
    def names(path: str) -> set[str]:
        return {entry.path for entry in browser.list(path) if entry.name != "lost+found"}

    assert names("/var") == {"/var/log", "/var/lib"}
    assert names("/var/lib/postgresql") == {"/var/lib/postgresql/15"}
    assert names("/bin") == {"/usr/bin/su"}
    assert names("/absolute/postgresql") == {"/var/lib/postgresql/15"}
    assert names("/absolute/../../etc/.") == {"/etc/fstab", "/etc/shadow", "/etc/escape"}
    assert names("disk1:part1:/var") == {"disk1:part1:/var/hidden-by-the-mount"}
    everything = [entry.path for entry in browser.list("/var", recursive=True)]
    assert "/var/lib/postgresql/15/main/PG_VERSION" in everything
    assert len(everything) == len(set(everything))
    mountpoint = next(e for e in browser.list("/var/lib") if e.name == "postgresql")
    assert (mountpoint.uid, mountpoint.mode) == (114, 0o750)
    assert browser.stat("/bin").kind is EntryKind.SYMLINK
    content = b"".join(
        data.content for data in browser.read("/absolute/postgresql/15/main/PG_VERSION")
    )
    assert content == b"15\n"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing/here", "There is no /nothing"),
        ("/var/nothing", "There is no /var/nothing"),
        ("etc", "must begin with /"),
        ("disk9:part1:/", "There is no disk9:part1"),
        ("/around/x", "loop of symlinks"),
        ("/etc/fstab/x", "There is no /etc/fstab/x"),
    ],
)
def test_what_is_not_there_is_said(browser: FileBrowser, path: str, message: str) -> None:
    with pytest.raises(NotFoundInPointError, match=message):
        list(browser.list(path))


def test_volumes_of_other_kinds_are_refused_by_name(browser: FileBrowser) -> None:
    with pytest.raises(UnsupportedFormatError, match="ReFS"):
        list(browser.list("/data/with space"))
    with pytest.raises(UnsupportedFormatError, match="swap"):
        list(browser.list("disk1:part3:/"))


def test_a_tree_comes_back_as_it_was(browser: FileBrowser, vm: Vm, tmp_path: Path) -> None:
    report = restore_files(browser, "/home", tmp_path)
    assert os.listdir(tmp_path) == ["home"]
    assert_same(tmp_path / "home", vm.root / "home", without=(b"disk",))
    links = {os.stat(tmp_path / "home" / p).st_ino for p in ("plain", "again", "sub/third")}
    assert len(links) == 1
    assert (tmp_path / "home" / "sparse").stat().st_blocks * 512 < 1 << 20
    assert report.files == 5
    assert report.not_kept == ["home/disk: a device node is not restored"]
    assert report.missing == 0


def test_the_whole_guest_comes_back_over_all_mounts(
    browser: FileBrowser, vm: Vm, tmp_path: Path
) -> None:
    target = tmp_path / "new"
    report = restore_files(browser, "/", target)
    assert_same(target / "var/log", vm.var / "log")
    assert_same(target / "var/lib/postgresql", vm.database)
    info = (target / "var/lib/postgresql").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (114, 120, 0o750)
    assert not (target / "var/hidden-by-the-mount").exists()
    assert (target / "bin").is_symlink()
    assert stat.S_IMODE((target / "usr/bin/su").stat().st_mode) == 0o755
    notes = "\n".join(report.not_kept)
    assert "usr/bin/su: set-user-ID left off" in notes
    assert report.missing == 1, "the volume that cannot be read, and not what no disk holds"
    assert "/data/with space: not restored." in notes
    assert "ReFS" in notes
    assert "/srv/elsewhere" in notes


def test_privileges_come_back_when_they_are_asked_for(browser: FileBrowser, tmp_path: Path) -> None:
    report = restore_files(browser, "/usr/bin", tmp_path, keep_privileges=True)
    assert stat.S_IMODE((tmp_path / "bin/su").stat().st_mode) == 0o4755
    assert (report.missing, report.not_kept) == (0, [])


def test_one_file_and_one_symlink(browser: FileBrowser, vm: Vm, tmp_path: Path) -> None:
    report = restore_files(browser, "/etc/shadow", tmp_path)
    assert (report.files, report.bytes, report.not_kept) == (1, 7, [])
    assert facts(os.fsencode(tmp_path / "shadow")) | {"times": 0} == facts(
        os.fsencode(vm.root / "etc/shadow")
    ) | {"times": 0}
    restore_files(browser, "/etc/escape", tmp_path)
    assert os.readlink(tmp_path / "escape") == "../../../../etc/passwd"
    restore_files(browser, "disk2:part0:/15/main/PG_VERSION", tmp_path)
    assert (tmp_path / "PG_VERSION").read_bytes() == b"15\n"
    with pytest.raises(UnsupportedFormatError, match="device node"):
        restore_files(browser, "/home/disk", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["PG_VERSION", "escape", "shadow"]


def test_tar_holds_what_a_directory_does(browser: FileBrowser, vm: Vm, tmp_path: Path) -> None:
    """GNU tar, reading from a pipe, makes the tree that the image was made from."""
    unpack = ["tar", "--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", tmp_path]
    with subprocess.Popen(unpack, stdin=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        report = archive_files(browser, "/home", TarWriter(tar.stdin))
        tar.stdin.close()
    assert tar.returncode == 0
    for top in (tmp_path, vm.root):  # tar unpacks no times of access
        for path in (top / "home").rglob("*"):
            if not path.is_dir():
                times = (0, path.lstat().st_mtime_ns)
                os.utime(path, ns=times, follow_symlinks=False)
    assert_same(tmp_path / "home", vm.root / "home", without=(b"disk", b"sock"))
    links = {os.stat(tmp_path / "home" / p).st_ino for p in ("plain", "again", "sub/third")}
    assert len(links) == 1
    assert sorted(report.not_kept) == [
        "home/disk: a device node is not restored into an archive",
        "home/sock: a socket is not restored into an archive",
    ]
    assert (report.files, report.missing) == (5, 0)


def test_the_whole_guest_as_tar(browser: FileBrowser, vm: Vm, tmp_path: Path) -> None:
    with (tmp_path / "all.tar").open("wb") as file:
        report = archive_files(browser, "/", TarWriter(file))
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xpf", tmp_path / "all.tar", "-C", out], check=True)
    assert_same(out / "var/lib/postgresql", vm.database)
    assert stat.S_IMODE((out / "usr/bin/su").stat().st_mode) == 0o755
    assert report.missing == 1
    assert "usr/bin/su: set-user-ID" in "\n".join(report.not_kept)


def test_zip_says_what_it_cannot_hold(browser: FileBrowser, vm: Vm, tmp_path: Path) -> None:
    target = tmp_path / "home.zip"
    with target.open("wb") as file:
        report = archive_files(browser, "/home", ZipWriter(file))
    subprocess.run(["unzip", "-q", target, "-d", tmp_path], check=True)
    home = tmp_path / "home"
    assert {path.relative_to(home).as_posix() for path in home.rglob("*")} == {
        "plain",
        "again",
        "sub",
        "sub/third",
        "empty",
        "bad%FF%FEname%0A",
        "sparse",
    }
    for name in ("plain", "again", "sub/third"):
        assert (home / name).read_bytes() == b"plain"
    assert (home / "sparse").read_bytes() == (vm.root / "home/sparse").read_bytes()
    assert stat.S_IMODE((home / "plain").stat().st_mode) == 0o660
    assert (report.files, report.missing) == (5, 0)
    notes = "\n".join(report.not_kept)
    for said in ("owners", "ACLs", "hard links", "named pipe", "socket", "written as"):
        assert said in notes


def test_both_are_kept_when_that_is_asked_for(browser: FileBrowser, tmp_path: Path) -> None:
    (tmp_path / "etc/shadow").mkdir(parents=True)
    (tmp_path / "etc/fstab").write_text("mine")
    (tmp_path / "etc/fstab.restored").write_text("of last week")
    report = restore_files(browser, "/etc", tmp_path, keep_both=True)
    assert (tmp_path / "etc/fstab").read_text() == "mine"
    assert (tmp_path / "etc/fstab.restored").read_text() == "of last week"
    assert (tmp_path / "etc/fstab.restored-2").read_text() == FSTAB
    assert (tmp_path / "etc/shadow.restored").read_bytes() == b"root:*\n"
    assert (tmp_path / "etc/escape").is_symlink()
    assert sorted(report.not_kept) == [
        "etc/fstab: there is one already, so it was restored as fstab.restored-2",
        "etc/shadow: there is one already, so it was restored as shadow.restored",
    ]


def test_what_exists_is_refused_and_stays(browser: FileBrowser, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mine").write_text("mine")
    for path in ("/etc", "/"):
        with pytest.raises(RestoreTargetError, match="exists already"):
            restore_files(browser, path, tmp_path)
    assert os.listdir(tmp_path) == ["etc"]
    assert os.listdir(tmp_path / "etc") == ["mine"]


def test_overwriting_merges_and_replaces_whole_files(browser: FileBrowser, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mine").write_text("mine")
    (tmp_path / "etc" / "shadow").write_text("old")
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "etc" / "fstab").symlink_to(outside)
    restore_files(browser, "/etc", tmp_path, overwrite=True)
    assert (tmp_path / "etc" / "mine").read_text() == "mine"
    assert (tmp_path / "etc" / "shadow").read_bytes() == b"root:*\n"
    assert (tmp_path / "etc" / "fstab").read_text() == FSTAB
    assert not (tmp_path / "etc" / "fstab").is_symlink()
    assert outside.read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == ["etc", "outside"]


def test_a_symlink_in_the_target_is_not_followed(browser: FileBrowser, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "etc").symlink_to(elsewhere)
    with pytest.raises(RestoreTargetError, match="not both"):
        restore_files(browser, "/etc", target, overwrite=True)
    assert os.listdir(elsewhere) == []
    assert (target / "etc").is_symlink()


def test_a_full_target_is_said_and_left_clean(browser: FileBrowser, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], check=True)
    try:
        with pytest.raises(RestoreTargetError, match="No space left"):
            restore_files(browser, "/", small)
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_leftovers_of_a_killed_restore_are_cleared(browser: FileBrowser, tmp_path: Path) -> None:
    left = tmp_path / ".atoll-restore-0123456789ab"
    (left / "etc").mkdir(parents=True)
    (tmp_path / ".atoll-restore-mine").mkdir()
    restore_files(browser, "/etc/fstab", tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".atoll-restore-mine", "fstab"]


def test_a_vm_with_one_bare_file_system_needs_no_fstab(vm: Vm) -> None:
    with FileBrowser([("data", FileReader(vm.disks[1]))]) as browser:
        assert "/15" in {entry.path for entry in browser.list("/")}


def test_without_a_root_the_addresses_are_named(tmp_path: Path) -> None:
    image = tmp_path / "empty.img"
    image.write_bytes(bytes(1 << 20))
    with (
        FileBrowser([("disk", FileReader(image))]) as browser,
        pytest.raises(NotFoundInPointError, match=r"disk1:part0:/ \(empty\)"),
    ):
        list(browser.list("/"))
