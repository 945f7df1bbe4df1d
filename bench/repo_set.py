"""`python -m bench.repo_set`: the disks that the repository's figures are measured with.

Three VMs of 8 GiB each, from Debian's packages alone:

- `vm1`: an operating system with compilers, logs, a small database, media, and what deleted files left
- `vm2`: a clone of `vm1` as a template is cloned, with a PostgreSQL cluster of pgbench tables
- `vm3`: an installation of its own of the same operating system, with other data
- `vm2-day2`: `vm2` after a day: transactions, logs, new and changed files, about 1 % of the disk

The seeds, the file systems' identifiers and the order of all work are fixed; what PostgreSQL draws by itself
and the versions of Debian's packages are not. Built once, into the lab's cache: some minutes and 7 GiB.
"""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.model.extents import Extent
from atoll_lab.guests.cache import cached, content_key
from atoll_lab.guests.rootfs import SUITE, debian_tree
from bench.report import say

DISK_BYTES = 8 << 30
GRAIN_BYTES = 64 << 10
"""What a storage system's list of changes is precise to."""
PARTITION_OFFSET = 1 << 20
PACKAGES = (
    "build-essential",
    "ca-certificates",
    "git",
    "linux-image-cloud-amd64",
    "openssh-server",
    "perl",
    "postgresql",
    "python3",
    "systemd-sysv",
    "vim",
)
_EDITION = "1"
"""Another one when other disks are made of the same packages and scripts."""
_SEEDS = {"vm1": 1, "vm3": 3}
_UUIDS = {
    "vm1": "8a0a6d6e-0d3b-4f0c-8f54-0b6f3c5a0001",
    "vm3": "8a0a6d6e-0d3b-4f0c-8f54-0b6f3c5a0003",
}
_POSTGRES = "/usr/lib/postgresql/15/bin"
_CLUSTER = "/var/lib/postgresql/bench"
_SERVER = f"{_POSTGRES}/pg_ctl -w -s -D {_CLUSTER} -l /tmp/log -o '-c listen_addresses='"
_BENCH = "pgbench -h /var/run/postgresql"
_LOAD = f"""{_POSTGRES}/initdb -D {_CLUSTER} --locale=C.UTF-8 >/dev/null
{_SERVER} start
createdb bench
{_BENCH} -q -i -s 20 bench 2>/dev/null
{_BENCH} -c 2 -t 1000 --random-seed=7 bench >/dev/null 2>&1
{_SERVER} stop"""
_DAY = f"""{_SERVER} start
{_BENCH} -n -c 2 -t 150 --random-seed=11 bench >/dev/null 2>&1
{_SERVER} stop"""


@dataclass(frozen=True, slots=True)
class DiskSet:
    """Where the disks are, and which ranges of `day2` differ from `vm2`."""

    vm1: Path
    vm2: Path
    vm3: Path
    day2: Path
    changed: tuple[Extent, ...]

    @property
    def day1(self) -> tuple[Path, Path, Path]:
        """The three VMs."""
        return self.vm1, self.vm2, self.vm3


def disk_set() -> DiskSet:
    """The disks, built the first time; needs root and the network."""
    parts = [SUITE, *PACKAGES, *_UUIDS.values(), _LOAD, _DAY, _EDITION]
    place = cached("bench-repo", content_key(part.encode() for part in parts), _build)
    changed = json.loads((place / "changed.json").read_text())
    return DiskSet(
        place / "vm1.raw",
        place / "vm2.raw",
        place / "vm3.raw",
        place / "vm2-day2.raw",
        tuple(Extent(offset, length) for offset, length in changed),
    )


def _tree(work: Path) -> None:
    say("building a Debian tree")
    debian_tree(work / "root", PACKAGES)
    shutil.rmtree(work / "root/var/cache/apt/archives")


def _build(work: Path) -> None:
    key = content_key([SUITE.encode(), *(name.encode() for name in PACKAGES)])
    tree = cached("bench-tree", key, _tree) / "root"
    for name, seed in _SEEDS.items():
        say(f"building {name}")
        disk = work / f"{name}.raw"
        # Another ratio of inodes places all files of vm3 otherwise.
        _make_disk(disk, tree, _UUIDS[name], inode_ratio=16384 if seed == 1 else 12288)
        with _mounted(disk, work) as root:
            _fill(root, name, seed)
    say("building vm2 and its second day")
    for older, newer, script in (("vm1", "vm2", _LOAD), ("vm2", "vm2-day2", _DAY)):
        _run("cp", "--sparse=always", f"{work}/{older}.raw", f"{work}/{newer}.raw")
        with _mounted(work / f"{newer}.raw", work) as root:
            (root / "etc/hostname").write_text("vm2\n")
            if older == "vm2":
                _one_day(root)
            _in_guest(root, script)
    changed = [(e.offset, e.length) for e in differences(work / "vm2.raw", work / "vm2-day2.raw")]
    (work / "changed.json").write_text(json.dumps(changed))


def _make_disk(disk: Path, tree: Path, uuid: str, inode_ratio: int) -> None:
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    _run("sh", "-c", f"echo 'start=2048,type=83,bootable' | sfdisk -q {disk}")
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-d", str(tree), "-U", uuid, "-i", str(inode_ratio)),
        *("-E", f"offset={PARTITION_OFFSET},hash_seed={uuid},assume_storage_prezeroed=1,nodiscard"),
        *(str(disk), f"{(DISK_BYTES - PARTITION_OFFSET) // 1024}k"),
    )


@contextmanager
def _mounted(disk: Path, work: Path) -> Iterator[Path]:
    root = work / "mnt"
    root.mkdir(exist_ok=True)
    options = f"loop,offset={PARTITION_OFFSET},noatime,nodiscard"
    _run("mount", "-o", options, str(disk), str(root))
    try:
        yield root
    finally:
        _run("umount", str(root))
    root.rmdir()


def _fill(root: Path, name: str, seed: int) -> None:
    """What a server has besides its packages: text, a database, media, and deleted files."""
    draw = random.Random(seed)
    words = (root / "usr/share/perl/5.36.0/perl5db.pl").read_text(errors="replace").split()
    (root / "etc/hostname").write_text(f"{name}\n")
    app = root / "srv/app"
    app.mkdir(parents=True)
    _write_log(root / "var/log/app.log", draw, words, 700_000)
    with closing(sqlite3.connect(app / "data.db")) as database:
        database.execute("pragma journal_mode=off")
        database.execute("create table t(id integer primary key, k text, v text, n int)")
        rows = (
            (
                f"{draw.getrandbits(64):016x}",
                " ".join(draw.choices(words, k=12)),
                draw.randrange(10**6),
            )
            for _ in range(400_000)
        )
        database.executemany("insert into t(k, v, n) values(?, ?, ?)", rows)
        database.commit()
    (app / "media").write_bytes(draw.randbytes(160 << 20))
    for number in range(40):
        garbage = draw.randbytes(1 << 18) + " ".join(draw.choices(words, k=200_000)).encode()
        (root / f"srv/{number}").write_bytes(garbage)
    os.sync()
    for number in range(40):
        (root / f"srv/{number}").unlink()


def _one_day(root: Path) -> None:
    draw = random.Random(42)
    words = (root / "etc/services").read_text().split()
    _write_log(root / "var/log/app.log", draw, words, 60_000)
    with closing(sqlite3.connect(root / "srv/app/data.db")) as database:
        changes = ((draw.randrange(10**6), draw.randrange(400_000)) for _ in range(150))
        database.executemany("update t set n=? where id=?", changes)
        database.commit()
    with (root / "srv/app/media").open("r+b") as media:
        for _ in range(40):
            media.seek(draw.randrange(159) << 20)
            media.write(draw.randbytes(64 << 10))
    (root / "srv/app/new").write_bytes(draw.randbytes(12 << 20))
    shutil.copytree(root / "usr/share/vim", root / "srv/vim", symlinks=True)
    shutil.rmtree(root / "usr/share/man/de")


def _write_log(path: Path, draw: random.Random, words: list[str], lines: int) -> None:
    now = 1.7e9
    with path.open("a") as log:
        for _ in range(lines):
            now += draw.random()
            stamp = time.strftime("%b %d %H:%M:%S", time.gmtime(now))
            log.write(
                f"{stamp} app[{draw.randrange(9999)}]: req={draw.getrandbits(48):012x} "
                f"{draw.choice(words)} {draw.choice(words)} ip=10.0.{draw.randrange(255)}."
                f"{draw.randrange(255)} ms={draw.randrange(5000)}\n"
            )


def _in_guest(root: Path, script: str) -> None:
    """Run a script as `postgres` in the tree; servers and mounts are gone when it ends, however."""
    outer = (
        'mount -t proc proc "$1/proc" && mount -t tmpfs run "$1/run" && '
        'mount -t tmpfs tmp "$1/tmp" && mount -t devtmpfs dev "$1/dev" && mkdir -p "$1/dev/shm" && '
        'mount -t tmpfs shm "$1/dev/shm" && install -d -m 1777 "$1/run/postgresql" && '
        'chmod 1777 "$1/tmp" && exec chroot "$1" su postgres -c "$2"'
    )
    _run(
        *("unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child"),
        *("sh", "-c", outer, "sh", str(root), f"cd /tmp; set -e; {script}"),
    )


def differences(older: Path, newer: Path) -> list[Extent]:
    """Ranges of whole grains in which two files of one size differ, joined."""
    found: list[Extent] = []
    with older.open("rb") as one, newer.open("rb") as two:
        offset = 0
        while block := two.read(4 << 20):
            before = one.read(len(block))
            if before != block:
                for at in range(0, len(block), GRAIN_BYTES):
                    if before[at : at + GRAIN_BYTES] == block[at : at + GRAIN_BYTES]:
                        continue
                    if found and found[-1].end == offset + at:
                        found[-1] = Extent(found[-1].offset, found[-1].length + GRAIN_BYTES)
                    else:
                        found.append(Extent(offset + at, GRAIN_BYTES))
            offset += len(block)
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        tail = " / ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise SystemExit(f"Building the disks failed in `{command[0]}`: {tail}")


if __name__ == "__main__":
    made = disk_set()
    for path in (*made.day1, made.day2):
        say(f"{path}: {path.stat().st_blocks >> 11} MiB allocated")
    total = sum(extent.length for extent in made.changed)
    say(
        f"day 2: {len(made.changed)} ranges, {total >> 20} MiB, {total / DISK_BYTES:.2%} of the disk"
    )
