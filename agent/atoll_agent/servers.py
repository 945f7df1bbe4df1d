"""The processes of servers, found in /proc by their names or by how they were started."""

import fnmatch
import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.owners import owner_of

PROC = Path("/proc")

# Of a process's files in /proc; a title longer than this is of no server that is looked for.
_MOST_BYTES = 4096


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
    names, titles = _compiled(tuple(patterns))
    return process.name in names or (titles is not None and bool(titles.match(process.title)))


@functools.lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> tuple[frozenset[str], "re.Pattern[str] | None"]:
    titles = [pattern for pattern in patterns if "/" in pattern or "*" in pattern]
    expression = "|".join(map(fnmatch.translate, titles))
    return frozenset(patterns).difference(titles), re.compile(expression) if titles else None


def processes(proc: Path = PROC) -> list[Process]:
    """All that run now, by their ids.

    Asked for while other guests of the run stand still already, hence the short way to each file.
    """
    found = []
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):  # noqa: PTH208
        stat = _read(f"{proc}/{pid}/stat")
        if not stat:
            continue  # it ended meanwhile
        # The name is in brackets and may hold anything, brackets too (proc(5)).
        name, _, rest = stat.partition(b"(")[2].rpartition(b")")
        title = _read(f"{proc}/{pid}/cmdline").split(b"\0", 1)[0]
        found.append(
            Process(
                pid,
                int(rest.split(None, 2)[1]),
                name.decode(errors="replace"),
                title.decode(errors="replace"),
            )
        )
    return found


def server_processes(patterns: Sequence[str], proc: Path = PROC) -> list[Process]:
    """The first process of each server whose processes match: not those a matching one started."""
    everyone = processes(proc)
    matching = {process.pid for process in everyone if matches(process, patterns)}
    return [
        process
        for process in everyone
        if process.pid in matching and process.parent not in matching
    ]


def _read(path: str) -> bytes:
    """The beginning of a file in /proc; empty when it cannot be read, or not any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MOST_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
