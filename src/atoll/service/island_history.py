"""What became of each placeholder, refresh by refresh: a file of one JSON object a line, only added to."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll.vsphere.placeholder_specs import Placeholder


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a placeholder at `at` (seconds since the epoch).

    `vm` is its production VM's instance UUID. `what` is `made`, `renamed`, `changed` (another
    number of disks), `shown` (a run, nothing else new), `emptied` or `removed`; `was` the name it
    had before.
    """

    at: float
    what: str
    vm: str
    name: str
    moref: str
    run: str
    was: str = ""


def events(before: Sequence[Placeholder], after: Sequence[Placeholder]) -> Iterator[Event]:
    """What happened between two looks at the placeholders, by VM."""
    at = time.time()
    old, new = ({each.vm: each for each in look} for look in (before, after))
    for vm in sorted(old.keys() | new.keys()):
        was, now = old.get(vm), new.get(vm)
        if now is None:
            assert was is not None
            yield Event(at, "removed", vm, was.name, was.moref, was.run)
        elif was is None:
            yield Event(at, "made", vm, now.name, now.moref, now.run)
        elif was.name != now.name:
            yield Event(at, "renamed", vm, now.name, now.moref, now.run, was.name)
        elif was.folder != now.folder:
            yield Event(at, "moved", vm, now.name, now.moref, now.run)
        elif was.disks and not now.disks:
            yield Event(at, "emptied", vm, now.name, now.moref, was.run)
        elif was.disks and len(was.disks) != len(now.disks):
            yield Event(at, "changed", vm, now.name, now.moref, now.run)
        elif was.run != now.run:
            yield Event(at, "shown", vm, now.name, now.moref, now.run)


class IslandHistory:
    """The file. A line that a crash cut off is passed over when reading."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, happened: Sequence[Event]) -> None:
        """Append, and see that it is on the disk."""
        if not happened:
            return
        lines = "".join(json.dumps(asdict(event), ensure_ascii=False) + "\n" for event in happened)
        # A line that was cut off must not swallow the next one.
        whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
        descriptor = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(descriptor, ("" if whole else "\n").encode() + lines.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[Event]:
        """Everything, oldest first."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [event for line in lines if (event := _event(line)) is not None]


def _event(line: bytes) -> Event | None:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None
