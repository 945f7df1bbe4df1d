"""The processes of servers, found in /proc by their names or by how they were started."""

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.owners import owner_of

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A running program. `name` is the kernel's (at most 15 characters), `title` its first argument."""

    pid: int
    parent: int
    name: str
    title: str

    @property
    def owner(self) -> str | None:
        """The user it runs as, if that has a name."""
        return owner_of(self.pid)

    def environment(self) -> dict[str, str]:
        """What it was started with; empty when that cannot be read."""
        try:
            data = (PROC / str(self.pid) / "environ").read_bytes()
        except OSError:
            return {}
        pairs = (item.partition("=") for item in data.decode(errors="replace").split("\0") if item)
        return {name: value for name, _, value in pairs}

    def arguments(self) -> list[str]:
        """How it was started, its title first; empty when that cannot be read."""
        try:
            data = (PROC / str(self.pid) / "cmdline").read_bytes()
        except OSError:
            return []
        return [part.decode(errors="replace") for part in data.split(b"\0")[:-1]]

    def directory(self) -> str:
        """Its current directory; empty when that cannot be read."""
        try:
            return os.readlink(PROC / str(self.pid) / "cwd")  # noqa: PTH115 - a magic link
        except OSError:
            return ""


def matches(process: Process, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns is the process's name, or with a slash or a wildcard, its title.

    Names are what servers are called that are not scripts; a title tells those
    apart whose name is somebody else's too (`*/pgm/kernel`) or says which server
    it is (`ora_pmon_*`).
    """
    return any(
        fnmatch.fnmatchcase(process.title, pattern)
        if "/" in pattern or "*" in pattern
        else process.name == pattern
        for pattern in patterns
    )


def processes(proc: Path = PROC) -> list[Process]:
    """All that run now, by their ids."""
    found = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # The name is in brackets and may hold anything, brackets too (proc(5)).
        name, _, rest = stat.partition("(")[2].rpartition(")")
        found.append(Process(int(entry.name), int(rest.split()[1]), name, _title(entry)))
    return sorted(found, key=lambda process: process.pid)


def server_processes(patterns: Sequence[str], proc: Path = PROC) -> list[Process]:
    """The first process of each server whose processes match: not those a matching one started."""
    everyone = processes(proc)
    matching = {process.pid for process in everyone if matches(process, patterns)}
    return [
        process
        for process in everyone
        if process.pid in matching and process.parent not in matching
    ]


def _title(entry: Path) -> str:
    try:
        with (entry / "cmdline").open("rb") as stream:
            return stream.read(4096).split(b"\0", 1)[0].decode(errors="replace")
    except OSError:
        return ""
