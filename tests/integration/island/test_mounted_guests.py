"""A VM's disks and files through a mounted tree: the same as what they were made from."""

import errno
import hashlib
import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest_root import fill_guest_root
from mounted_tree import MountedTree, mounted_tree, served_vm

pytestmark = pytest.mark.needs_root

FSTAB = """PARTUUID=5a0f6a38-8c1c-4f0e-9d3b-1f3d6a8d0001 / ext4 errors=remount-ro 0 1
LABEL=var /var ext4 defaults 0 2
/dev/sda4 /data refs defaults 0 0
"""
MANY = 3000


@dataclass(frozen=True)
class Vm:
    """A disk and the trees its volumes were made from."""

    disk: Path
    root: Path
    var: Path


@contextmanager
def kernel_mount(disk: Path, top: Path, offset: int, length: int) -> Iterator[Path]:
    top.mkdir(exist_ok=True)
    where = f"loop,offset={offset},sizelimit={length}"
    subprocess.run(["mount", "-o", where, disk, top], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True)


def fill_root(top: Path) -> None:
    fill_guest_root(top, FSTAB, b"bad\xff\xfename\n")
    for point in ("var", "data"):
        (top / point).mkdir()
    (top / "var/hidden-by-the-mount").write_bytes(b"x")
    home = top / "home"
    with (home / "scattered").open("wb") as file:
        for number in range(0, 600, 2):
            file.seek(number * 4096)
            file.write(bytes([number % 251]) * 4096)
    os.utime(home / "sub", ns=(-1_500_000_000, -2_000_000_000))
    os.utime(home / "scattered", ns=(10**18, 15 * 10**17 + 123_456_789))
    many = top / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"name-{number:06d}").write_bytes(b"%d" % number)


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Vm:
    work = tmp_path_factory.mktemp("mounted")
    root, var = work / "root", work / "var"
    root.mkdir()
    var.mkdir()
    fill_root(root)
    (var / "log").mkdir()
    (var / "log/messages").write_bytes(os.urandom(3 << 20))
    disk = work / "system.img"
    table = (
        "label: gpt\nfirst-lba: 2048\n"
        "1: start=2048, size=262144, type=L, uuid=5A0F6A38-8C1C-4F0E-9D3B-1F3D6A8D0001\n"
        "2: start=264192, size=65536, type=L\n"
        "3: start=329728, size=32768, type=S\n"
        "4: start=362496, size=32768, type=L\n"
    )
    with disk.open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["sfdisk", "-q", disk], input=table.encode(), check=True)
    for start, sectors, label, tree in ((2048, 262144, "root", root), (264192, 65536, "var", var)):
        made = [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-L",
            label,
            "-E",
            f"offset={start * 512}",
        ]
        subprocess.run([*made, disk, f"{sectors // 2048}M"], check=True)
        with kernel_mount(disk, work / "mnt", start * 512, sectors * 512) as top:
            subprocess.run(["cp", "-aT", "--sparse=always", tree, top], check=True)
    with disk.open("r+b") as file:
        file.seek(329728 * 512 + 4086)
        file.write(b"SWAPSPACE2")
        file.seek(362496 * 512 + 3)
        file.write(b"ReFS\0\0\0\0")
    return Vm(disk, root, var)


@pytest.fixture(scope="module")
def tree(vm: Vm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedTree]:
    top = tmp_path_factory.mktemp("tree")
    top.chmod(0o700)
    with mounted_tree([served_vm("db1", [vm.disk])], top) as mounted:
        yield mounted


def facts(path: bytes) -> dict[str, object]:
    """All that a backup keeps of one name."""
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    content = None
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    return {
        "mode": info.st_mode,
        "owner": (info.st_uid, info.st_gid),
        "mtime": info.st_mtime_ns,
        "size": None if kind == stat.S_IFDIR else info.st_size,
        "blocks": info.st_blocks if kind == stat.S_IFREG else None,
        "links": info.st_nlink,
        "device": info.st_rdev,
        "target": os.readlink(path) if kind == stat.S_IFLNK else None,
        "content": content,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }


def walk(top: Path) -> dict[bytes, dict[str, object]]:
    start = os.fsencode(top)
    return {
        os.path.relpath(os.path.join(place, name), start): facts(os.path.join(place, name))
        for place, directories, files in os.walk(start)
        for name in directories + files
    }


def test_every_name_is_as_the_kernel_mounts_it(vm: Vm, tree: MountedTree, tmp_path: Path) -> None:
    shown = walk(tree.top / "db1/volumes/disk1-part1")
    with kernel_mount(vm.disk, tmp_path / "mnt", 2048 * 512, 262144 * 512) as top:
        truth = walk(top)
        holes = segments(top / "home/sparse"), segments(top / "home/scattered")
    assert len(shown) > MANY
    assert shown == truth
    home = tree.top / "db1/volumes/disk1-part1/home"
    assert (segments(home / "sparse"), segments(home / "scattered")) == holes


def segments(path: Path) -> list[int]:
    """Where data and holes begin, by turns."""
    found = []
    with path.open("rb") as file:
        at, whence = 0, os.SEEK_DATA
        while True:
            try:
                at = os.lseek(file.fileno(), at, whence)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return found
            found.append(at)
            whence = os.SEEK_HOLE if whence == os.SEEK_DATA else os.SEEK_DATA


def test_files_are_mounted_as_the_guest_mounts_them(tree: MountedTree) -> None:
    files = tree.top / "db1/files"
    assert (files / "etc/fstab").read_text() == FSTAB
    assert sorted(os.listdir(files / "var")) == ["log", "lost+found"]
    assert (tree.top / "db1/volumes/disk1-part1/var/hidden-by-the-mount").exists()
    assert sorted(os.listdir(tree.top / "db1/volumes")) == [
        "disk1-part1",
        "disk1-part2",
        "not-read.txt",
    ]
    told = (tree.top / "db1/volumes/not-read.txt").read_text()
    assert "disk1-part3: " in told
    assert "ReFS" in told
    # Its own directory would look like an empty mount: a backup has to be told that it is not.
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(files / "data")
    assert any("ReFS" in str(error) for error in tree.failures)


def test_rsync_takes_everything(vm: Vm, tree: MountedTree, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    done = subprocess.run(
        ["rsync", "-aHAXS", "--numeric-ids", "--exclude=/data", f"{tree.top}/db1/files/", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = walk(copy), walk(vm.root)
    for name in list(ours):
        if name.startswith((b"var/", b"lost+found")):
            del ours[name]
    for name in (b"var/hidden-by-the-mount", b"data"):
        del theirs[name]
    for each in (*ours.values(), *theirs.values()):
        del each["blocks"]
        if stat.S_ISDIR(each["mode"]):
            del each["links"], each["mtime"]
    del ours[b"var"], theirs[b"var"]
    assert ours == theirs
    assert (copy / "home/plain").samefile(copy / "home/sub/again")
    assert (copy / "var/log/messages").read_bytes() == (vm.var / "log/messages").read_bytes()


def test_tar_finds_the_holes_and_the_links(tree: MountedTree, tmp_path: Path) -> None:
    archive = tmp_path / "files.tar"
    command = ["tar", "--sparse", "--acls", "--xattrs", "-C", tree.top / "db1/files/home", "-cf"]
    subprocess.run([*command, archive, "."], check=True, capture_output=True)
    assert archive.stat().st_size < 6 << 20
    listed = subprocess.run(["tar", "-tvf", archive], check=True, capture_output=True, text=True)
    assert "link to" in listed.stdout


def test_images_are_the_disk(vm: Vm, tree: MountedTree) -> None:
    image = tree.top / "db1/image"
    assert sorted(os.listdir(image)) == ["db1-flat.vmdk", "db1.nvram", "db1.vmdk", "db1.vmx", "raw"]
    assert (image / "db1.vmx").read_bytes() == b'displayName = "x"\n'
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", vm.disk, image / "db1.vmdk"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "identical" in compared.stdout
    assert segments(image / "db1-flat.vmdk") == segments(vm.disk)


def test_nothing_can_be_written_or_followed_or_used(tree: MountedTree) -> None:
    files = tree.top / "db1/files"
    with pytest.raises(OSError, match="Read-only"):
        (files / "etc/new").write_text("x")
    with pytest.raises(OSError, match="Read-only"):
        os.unlink(files / "etc/fstab")
    assert os.readlink(files / "absolute") == "/etc/passwd"
    with pytest.raises(OSError, match="Too many levels"):
        (files / "absolute").read_text()
    with pytest.raises(PermissionError):
        os.open(files / "home/disk", os.O_RDONLY)
    (line,) = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(tree.top) in line
    ]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(line.split(" ")[5].split(","))


def test_names_that_are_not_there(tree: MountedTree) -> None:
    files = tree.top / "db1/files"
    for name in ("no", "etc/no", "etc/fstab/no", "many/name-999999"):
        assert not os.path.lexists(files / name)
    with pytest.raises(OSError) as caught:
        os.getxattr(files / "etc/fstab", "user.none")
    assert caught.value.errno == errno.ENODATA


def test_many_read_at_once(vm: Vm, tree: MountedTree) -> None:
    files = tree.top / "db1/files"
    wrong = []

    def read(number: int) -> None:
        if (files / f"many/name-{number:06d}").read_bytes() != b"%d" % number:
            wrong.append(number)

    def image(_: int) -> str:
        return hashlib.sha256((tree.top / "db1/image/raw/disk1.img").read_bytes()).hexdigest()

    with ThreadPoolExecutor(12) as pool:
        images = [pool.submit(image, number) for number in range(2)]
        list(pool.map(read, range(MANY)))
        digests = {each.result() for each in images}
    assert wrong == []
    assert digests == {hashlib.sha256(vm.disk.read_bytes()).hexdigest()}


def test_nothing_is_opened_before_it_is_looked_into(vm: Vm, tmp_path: Path) -> None:
    opened: list[str] = []
    vms = [served_vm(f"vm{number:04d}", [vm.disk], opened) for number in range(1000)]
    with mounted_tree(vms, tmp_path / "tree") as mounted:
        listed = subprocess.run(
            ["find", mounted.top, "-maxdepth", "1"], check=True, capture_output=True
        )
        assert len(listed.stdout.splitlines()) == 1001
        assert sorted(os.listdir(mounted.top / "vm0000")) == ["files", "image", "volumes"]
        assert opened == []
        for number in range(9):
            assert (mounted.top / f"vm{number:04d}/files/etc/fstab").read_text() == FSTAB
        assert len(set(opened)) == 9
        assert mounted.tree.guests.open_parsers <= 8
        # Closed meanwhile, and opened again for whoever comes back.
        assert (mounted.top / "vm0000/files/many/name-000007").read_bytes() == b"7"
        assert mounted.failures == []


def test_the_end_cuts_off_who_still_reads(vm: Vm, tmp_path: Path) -> None:
    before = threading.active_count()
    with mounted_tree([served_vm("db1", [vm.disk])], tmp_path / "tree") as mounted:
        file = os.open(mounted.top / "db1/image/db1-flat.vmdk", os.O_RDONLY)
        os.read(file, 512)
    with pytest.raises(OSError) as caught:
        os.read(file, 512)
    with suppress(OSError):
        os.close(file)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    assert mounted.server.was_in_use
    assert os.listdir(tmp_path / "tree") == []
    assert threading.active_count() == before


@pytest.mark.parametrize("allowed", [False, True])
def test_others_get_in_only_where_they_are_let(vm: Vm, allowed: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        top = Path(place) / "tree"
        Path(place).chmod(0o755)
        with mounted_tree([served_vm("db1", [vm.disk])], top, allow_other=allowed):
            for path, readable in (
                ("files/etc/fstab", allowed),
                ("files/lost+found", False),
                ("image/raw/disk1.img", False),
            ):
                nobody = ["setpriv", "--reuid", "65534", "--clear-groups"]
                what = ["head", "-c1"] if path.endswith(("fstab", "img")) else ["ls"]
                done = subprocess.run(
                    [*nobody, *what, top / "db1" / path], capture_output=True, check=False
                )
                assert (done.returncode == 0) == readable, (path, done.stderr)
