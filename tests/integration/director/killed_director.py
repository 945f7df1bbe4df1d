"""A director that dies: backs up as `atoll backup` does, and is killed at a chosen line of its code.

Arguments: the settings file, then the VMs. Each line of standard input says where the next backup
is killed with SIGKILL, in the director's own code (`director/`, `service/backup.py` and
`copy_run.py`, `guests/channel.py`, all threads): a number N is the N-th line that it runs,
`FILE:LINE N` the N-th time that it runs that one, and 0 lets it live. $DRAFT_SECONDS says how often
it notes how far its copy has come. The answer is one line of JSON: `lines` that were
run and how often each, by `FILE:LINE`; `where` it was killed and the `stage` of the run then;
`error` of a backup that ended with one. Each backup is a process of its own, forked from this one so
that it need not start anew.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# Threads of a mathematics library would be lost in the fork.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import atoll
from atoll.model.errors import AtollError
from atoll.model.progress import Silent
from atoll.repository import drafts
from atoll.service.backup import back_up
from atoll.wiring import open_site

_BEFORE = f"{Path(atoll.__file__).parent}/"
_TRACED = (
    f"{_BEFORE}director/",
    f"{_BEFORE}service/backup.py",
    f"{_BEFORE}service/copy_run.py",
    f"{_BEFORE}guests/channel.py",
)


class Stages(Silent):
    """Where the run is."""

    now = "plan"

    def stage(self, vm: str, stage: str, total_bytes: int = 0) -> None:
        self.now = stage


class Killer:
    """Counts lines, and ends the process at one of them."""

    def __init__(self, order: str, stages: Stages, out: int) -> None:
        self._where, _, times = order.strip().rpartition(" ")
        self._times = int(times)
        self._stages = stages
        self._out = out
        self._lines: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Count from here on, in all threads."""
        threading.settrace(self._call)
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_TRACED) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            with self._lock:
                where = f"{frame.f_code.co_filename.removeprefix(_BEFORE)}:{frame.f_lineno}"
                self._lines[where] += 1
                counted = self._lines[where] if self._where else self._lines.total()
                if counted == self._times and self._where in ("", where):
                    self.say(where=where)
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._line

    def say(self, **words: object) -> None:
        """One line, written at once."""
        answer = {"lines": self._lines, "stage": self._stages.now, **words}
        with os.fdopen(self._out, "wb") as out:
            out.write(json.dumps(answer).encode() + b"\n")


def child(settings: Path, vms: Sequence[str], order: str, out: int) -> None:
    stages = Stages()
    killer = Killer(order, stages, out)
    site = open_site(settings, accept_less=True)
    try:
        killer.begin()
        back_up(site, vms, stages)
    except AtollError as error:
        killer.say(error=str(error))
    else:
        killer.say()
    finally:
        sys.settrace(None)
        site.close()


def main() -> None:
    drafts.EVERY_SECONDS = float(os.environ.get("DRAFT_SECONDS", drafts.EVERY_SECONDS))
    settings, vms = Path(sys.argv[1]), sys.argv[2:]
    for line in sys.stdin:
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                child(settings, vms, line, write)
            finally:
                os._exit(0)
        os.close(write)
        # Not before it is dead, and its locks are gone.
        with os.fdopen(read, "rb") as answer:
            said = answer.read()
        os.waitpid(process, 0)
        sys.stdout.buffer.write(said)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
