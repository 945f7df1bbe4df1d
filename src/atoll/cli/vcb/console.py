"""How the commands speak and end: VCB's lines, and exit status 0 or 1."""

import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime

from atoll.cli.output import printable
from atoll.cli.programs import find_programs
from atoll.cli.vcb.options import DEFAULT_LEVEL, UsageError
from atoll.model.errors import AtollError

FAILED = 1
WARNING, INFO, VERBOSE = 2, 3, 4
_KINDS = {WARNING: "warning", INFO: "info", VERBOSE: "verbose"}
_STARS = 50


class Console:
    """Results go to standard output; what is told along the way to standard error, by `-L`."""

    def __init__(self, name: str, level: int = DEFAULT_LEVEL) -> None:
        self._name = name
        self._level = level

    def say(self, line: str) -> None:
        """A line that scripts read."""
        sys.stdout.write(f"{_line(line)}\n")
        sys.stdout.flush()

    def log(self, text: str, level: int = INFO) -> None:
        """A line for people, when so much is wanted."""
        if level <= self._level:
            self._tell(_KINDS[level], text)

    def error(self, text: str) -> None:
        """Always told."""
        self._tell("error", f"Error: {text}")

    def progress(self, title: str, size: int) -> "Progress":
        """A bar for something of so many bytes."""
        return Progress(title, size)

    def _tell(self, kind: str, text: str) -> None:
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        sys.stderr.write(f"[{now} '{self._name}' {os.getpid()} {kind}] {_line(text)}\n")
        sys.stderr.flush()


class Progress:
    """`Copying "…":` and fifty stars."""

    def __init__(self, title: str, size: int) -> None:
        self._size = max(1, size)
        self._stars = 0
        sys.stdout.write(f"{_line(title)}:\n\t0%{'=' * 21}50%{'=' * 21}100%\n\t")
        sys.stdout.flush()

    def __call__(self, done: int) -> None:
        """So many bytes are done."""
        stars = min(_STARS, done * _STARS // self._size)
        sys.stdout.write("*" * (stars - self._stars))
        sys.stdout.flush()
        self._stars = max(stars, self._stars)

    def finish(self) -> None:
        """All of it is done."""
        self(self._size)
        sys.stdout.write("\n\n")
        sys.stdout.flush()


def command(name: str, run: Callable[[list[str], Callable[[int], Console]], int]) -> None:
    """Run a command on the words of the command line and end the process with its status.

    An AtollError is told in one line and ends it with 1, as everything that went wrong does.
    """
    find_programs()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    console = Console(name)
    try:
        status = run(sys.argv[1:], lambda level: Console(name, level))
    except UsageError as error:
        console.error(str(error))
        sys.stderr.write(f"{error.usage}\n")
        status = FAILED
    except AtollError as error:
        console.error(" ".join([str(error), *getattr(error, "__notes__", ())]))
        status = FAILED
    except KeyboardInterrupt:
        console.error("interrupted")
        status = FAILED
    except BrokenPipeError:
        # Whoever read us is gone; without this Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    sys.exit(status)


def _line(text: str) -> str:
    return printable(text).replace("\n", " ")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
