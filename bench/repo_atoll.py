"""`python -m bench.repo_atoll COMMAND …`: one thing done with a repository, in a process of its own.

Like `atoll backup` and `atoll restore`, without a site around it. What was copied or read is printed as JSON.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from atoll.blocks.readers import FileReader
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.extents import Extent
from atoll.model.points import DiskImage, RestorePoint
from atoll.recovery.disks import restore_disk
from atoll.repository.copying import CopiedDisk
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.places import open_place
from atoll.repository.repository import Repository
from atoll.repository.s3_access import S3Access


def create(repository: Path) -> None:
    """A repository and, beside it, its key."""
    Repository.create(repository, create_key_file(_key(repository))).close()


def _key(repository: Path) -> Path:
    return repository.with_name(f"{repository.name}.key")


def _open(repository: Path, level: int = 1) -> Repository:
    store = open_place(repository, S3Access())
    return Repository(store, KeyFile(_key(repository)), compression=level)


def _backup(
    repository: Path,
    disk: Path,
    name: str,
    level: int,
    parent: str,
    changed: Path | None,
    wait: bool,
) -> dict[str, float]:
    """`wait` says `ready` once there is nothing left to do but the copy, and begins it when told."""
    extents = None
    if changed is not None:
        extents = [Extent(offset, length) for offset, length in json.loads(changed.read_text())]
    reader = FileReader(disk)
    with _open(repository, level) as opened:
        older = opened.find(parent).disks[0] if parent else None
        if wait:
            opened.begin()
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            sys.stdin.readline()
        before = time.process_time()
        copied = opened.copy_disk(reader, extents=extents, parent=older)
        opened.commit([_point(name, copied)])
        used = time.process_time() - before
    reader.close()
    return {
        "read_bytes": copied.read_bytes,
        "stored_bytes": copied.stored_bytes,
        "cpu_seconds": used,
    }


def _point(name: str, copied: CopiedDisk) -> RestorePoint:
    now = time.time()
    proof = ConsistencyProof(
        name, Consistency.CRASH, ("a benchmark",), None, "", name, now, now, "", ""
    )
    size, read, stored = copied.size_bytes, copied.read_bytes, copied.stored_bytes
    image = DiskImage(2000, "Hard disk 1", name, size, copied.root, "", (), read, read, stored)
    return RestorePoint(name, name, name, name, now, "", "", False, proof, (image,), "", "")


def _restore(repository: Path, name: str, target: Path) -> dict[str, int]:
    with _open(repository) as opened:
        reader = opened.open_disk(opened.find(name).disks[0])
        restore_disk(reader, target)
        reader.close()
    return {"size_bytes": target.stat().st_size}


def _random(repository: Path, name: str, reads: int, read_bytes: int) -> dict[str, list[float]]:
    """Seconds of each read where there is data, the pages of the packs forgotten first, then in memory.

    `cold_cpu` and `warm_cpu` are their processor seconds, which others on the machine hardly change.
    """
    draw = random.Random(1)
    with _open(repository) as opened:
        reader = opened.open_disk(opened.find(name).disks[0])
        places = _places(reader.holes(), reader.size_bytes, read_bytes)
        seconds: dict[str, list[float]] = {}
        for kind in ("cold", "warm"):
            if kind == "cold":
                forget_pages(repository)
            else:
                for pack in repository.rglob("packs/*/*"):
                    pack.read_bytes()
            taken, used = [], []
            for offset in draw.sample(places, reads):
                began, before = time.perf_counter(), time.thread_time()
                reader.read(offset, read_bytes)
                used.append(time.thread_time() - before)
                taken.append(time.perf_counter() - began)
            seconds |= {kind: taken, f"{kind}_cpu": used}
        reader.close()
    return seconds


def _places(holes: Iterable[Extent], size: int, read_bytes: int) -> list[int]:
    taken: list[int] = []
    at = 0
    for hole in [*holes, Extent(size, 0)]:
        taken.extend(range(at, hole.offset - read_bytes + 1, read_bytes))
        at = hole.end
    return taken


def forget_pages(place: Path) -> None:
    """Have the kernel forget the contents of all files below a directory."""
    os.sync()
    for path in place.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def main() -> None:
    """One command."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    backup = commands.add_parser("backup")
    restore = commands.add_parser("restore")
    reads = commands.add_parser("random")
    for command in (backup, restore, reads):
        command.add_argument("repository", type=Path)
    backup.add_argument("disk", type=Path)
    for command in (backup, restore, reads):
        command.add_argument("name")
    backup.add_argument("--level", type=int, default=1)
    backup.add_argument("--parent", default="")
    backup.add_argument("--changed", type=Path)
    backup.add_argument("--wait", action="store_true")
    restore.add_argument("target", type=Path)
    reads.add_argument("--reads", type=int, default=2000)
    reads.add_argument("--read-bytes", type=int, default=64 << 10)
    given = vars(parser.parse_args())
    doing: dict[str, Callable[..., object]] = {
        "backup": _backup,
        "restore": _restore,
        "random": _random,
    }
    sys.stdout.write(json.dumps(doing[given.pop("command")](**given)) + "\n")


if __name__ == "__main__":
    main()
