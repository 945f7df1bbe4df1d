"""A server that lives in a file, and clients of it that a test puts on PATH."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAKES = Path(__file__).resolve().parent.parent

_HANG_SECONDS = 60.0


class Product:
    """One server's state: `state.json` in a directory, changed under a lock.

    `events` is what was done to it, in order. `refuse` maps a part of a command
    to the message with which it is refused; a command that has a part in
    `hang` never ends by itself.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / "state.json"

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """The state, written back at the end."""
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = json.loads(self._file.read_text())
            yield state
            beside = self._file.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps(state))
            beside.rename(self._file)

    def state(self) -> dict[str, Any]:
        """What it is now."""
        with self.changing() as state:
            return state

    def set(self, **changes: Any) -> None:
        """Make it so."""
        with self.changing() as state:
            state.update(changes)

    def note(self, event: str) -> None:
        """Add to what was done."""
        with self.changing() as state:
            state["events"].append(event)

    def fault(self, command: str) -> str:
        """Hang if this command is to; else empty, or why it is refused."""
        state = self.state()
        for part in state["hang"]:
            if part in command:
                self.note(f"hangs: {part}")
                wait_until(lambda part=part: part not in self.state()["hang"])
        return next((said for part, said in state["refuse"].items() if part in command), "")


def create(directory: Path, programs: tuple[str, ...], module: str, **state: Any) -> Product:
    """A server in a directory, with its clients in `directory/bin`."""
    (directory / "bin").mkdir(parents=True)
    file = directory / "state.json"
    file.write_text(json.dumps({"events": [], "refuse": {}, "hang": [], **state}))
    for program in programs:
        path = directory / "bin" / program
        path.write_text(
            f"#!{sys.executable}\n"
            "import sys\nfrom pathlib import Path\n"
            f"sys.path.insert(0, {str(FAKES)!r})\n"
            f"from vendors import {module}\nfrom vendors.product import Product\n"
            f"sys.exit({module}.main(Product(Path({str(directory)!r})), sys.argv))\n"
        )
        path.chmod(0o755)
    return Product(directory)


def wait_until(condition: Any, seconds: float = _HANG_SECONDS) -> None:
    """Wait for it, and leave with an error if it does not come or whoever started us is gone."""
    parent = os.getppid()
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit or os.getppid() != parent:
            os._exit(3)
        time.sleep(0.02)


def say(text: str) -> None:
    """A line of output that leaves at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line on standard error that leaves at once."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
