"""Atoll and what it is compared with, each as a program that backs a disk up and restores it.

All encrypt and write to a directory. Each is a process of its own, timed from its start to its end.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll.model.extents import Extent
from bench import repo_atoll

TOOLS = Path.home() / ".cache" / "atoll-bench"
RESTIC = TOOLS / "restic-0.18.0/usr/bin/restic"
BORG = TOOLS / "borg-1.4.5/bin/borg"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took: seconds on the clock, and processor seconds of it and its children."""

    wall: float
    cpu: float
    output: str = ""


def _environment() -> dict[str, str]:
    """This one, in which Python may keep what it compiled, as it does for what is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def timed(
    command: Sequence[str | Path], where: Path | None = None, more: Mapping[str, str] | None = None
) -> Cost:
    """Run a program to its end; SystemExit with what it said if it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=where,
        env={**_environment(), **(more or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        output = process.stdout.read()
        process.stdout.close()
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()  # whoever interrupts a measurement does not want its programs to go on
        process.wait()
        raise
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`{command[0]}` failed: {output[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, output)


class Peer(Protocol):
    """A program with a repository in `place`."""

    name: str
    place: Path

    def create(self) -> None:
        """An empty repository."""
        ...

    def backup(self, disk: Path, name: str) -> Cost:
        """Everything of a disk, as a backup of that name."""
        ...

    def restore(self, disk: Path, name: str, target: Path) -> Cost:
        """The backup of that name, made of `disk`, as a new file."""
        ...


class Atoll:
    """This repository's code; `level` is the compression."""

    def __init__(self, place: Path, level: int = 1) -> None:
        self.name = f"atoll-{level}"
        self.place = place
        self._level = level

    def create(self) -> None:
        """With its key beside it."""
        self.place.with_name(f"{self.place.name}.key").unlink(missing_ok=True)
        repo_atoll.create(self.place)

    def backup(self, disk: Path, name: str) -> Cost:
        """All but the file's holes."""
        return self._do("backup", self.place, disk, name, "--level", str(self._level))

    def increment(self, disk: Path, name: str, parent: str, changed: Sequence[Extent]) -> Cost:
        """What changed since `parent`."""
        listed = self.place.with_name("changed.json")
        listed.write_text(json.dumps([(extent.offset, extent.length) for extent in changed]))
        level = ("--level", str(self._level))
        more = ("--parent", parent, "--changed", listed)
        return self._do("backup", self.place, disk, name, *level, *more)

    def restore(self, disk: Path, name: str, target: Path) -> Cost:
        """As `atoll restore` does, with an fsync at the end."""
        return self._do("restore", self.place, name, target)

    def random(self, name: str) -> Mapping[str, Sequence[float]]:
        """Seconds of random reads, `cold` and `warm`, and processor seconds of the same."""
        found: dict[str, list[float]] = json.loads(self._do("random", self.place, name).output)
        return found

    @staticmethod
    def _do(*arguments: str | Path) -> Cost:
        return timed([sys.executable, "-m", "bench.repo_atoll", *arguments])


class Restic:
    """restic; a file of its own cache, no look at other hosts' snapshots."""

    def __init__(self, place: Path, compression: str = "auto") -> None:
        self.name = f"restic-{compression}"
        self.place = place
        self._more = {"RESTIC_PASSWORD": "measured", "RESTIC_CACHE_DIR": f"{place}.cache"}
        self._command: list[str | Path] = [RESTIC, "-q", "-r", place, "--compression", compression]

    def create(self) -> None:
        """Format 2, its newest."""
        timed([*self._command, "init"], more=self._more)

    def backup(self, disk: Path, name: str) -> Cost:
        """All of the file: it is given no list of changes, and copies a snapshot's new file."""
        return timed(
            [*self._command, "backup", "--tag", name, disk.name], disk.parent, more=self._more
        )

    def restore(self, disk: Path, name: str, target: Path) -> Cost:
        """Sparse, like ours."""
        target.mkdir()
        return timed(
            [*self._command, "restore", "latest", "--sparse", "--tag", name, "--target", target],
            more=self._more,
        )


class Borg:
    """Borg with its own chunker and zstd level 1, authenticated encryption."""

    def __init__(self, place: Path) -> None:
        self.name = "borg-zstd,1"
        self.place = place
        self._more = {
            "BORG_PASSPHRASE": "measured",
            "BORG_BASE_DIR": f"{place}.base",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def create(self) -> None:
        """With the hash that is quicker here of the two it offers."""
        timed([BORG, "init", "-e", "repokey-blake2", self.place], more=self._more)

    def backup(self, disk: Path, name: str) -> Cost:
        """All of the file; holes are read from the file system."""
        archive = f"{self.place}::{name}"
        return timed(
            [BORG, "create", "--sparse", "-C", "zstd,1", archive, disk.name],
            disk.parent,
            self._more,
        )

    def restore(self, disk: Path, name: str, target: Path) -> Cost:
        """Sparse, like ours."""
        target.mkdir()
        return timed([BORG, "extract", "--sparse", f"{self.place}::{name}"], target, self._more)


class Copy:
    """cp, which is a backup to nobody but a limit to all; what it copied is made durable."""

    def __init__(self, place: Path) -> None:
        self.name = "cp"
        self.place = place

    def create(self) -> None:
        """A directory."""
        self.place.mkdir()

    def backup(self, disk: Path, name: str) -> Cost:
        """Sparse."""
        return _copied(disk, self.place / name)

    def restore(self, disk: Path, name: str, target: Path) -> Cost:
        """Sparse."""
        return _copied(self.place / name, target)


def _copied(source: Path, target: Path) -> Cost:
    script = 'cp --sparse=always "$1" "$2" && sync "$2"'
    return timed(["sh", "-c", script, "sh", source, target])


def remove(peer: Peer) -> None:
    """The repository and what lies beside it."""
    for path in peer.place.parent.glob(f"{peer.place.name}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def stored_bytes(peer: Peer) -> int:
    """What all files of the repository hold."""
    return sum(path.stat().st_size for path in peer.place.rglob("*") if path.is_file())


def restored_file(disk: Path, target: Path) -> Path:
    """Where a restore put the disk: some restore into a directory."""
    if target.is_file():
        return target
    [found] = target.rglob(disk.name)
    return found
