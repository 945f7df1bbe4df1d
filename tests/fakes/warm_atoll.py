"""`atoll` without its start-up: each command in a process of its own, forked where all is imported.

Run as a program this is that place: it reads a request a line, runs it, and answers with its status.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class WarmAtoll:
    """Runs commands one after the other. What they start and leave running is nobody's child here."""

    def __init__(self, server: "subprocess.Popen[str]", directory: Path) -> None:
        self._server = server
        self._directory = directory

    def run(
        self, *arguments: str, environment: Mapping[str, str], cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """As `subprocess.run` gives it: exit status, standard output and error."""
        files = {name: self._directory / name for name in ("out", "err")}
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "cwd": str(cwd or Path.cwd()),
            **{name: str(path) for name, path in files.items()},
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        out, err = (path.read_text() for path in files.values())
        return subprocess.CompletedProcess(["atoll", *arguments], status, out, err)


@contextmanager
def warm_atoll() -> Iterator[WarmAtoll]:
    """A place to run commands, which is gone afterwards."""
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        try:
            yield WarmAtoll(server, Path(directory))
        finally:
            assert server.stdin is not None
            server.stdin.close()


def _serve() -> None:
    from atoll.cli.main import run

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            run()
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(request: Mapping[str, object]) -> None:
    """Take arguments, environment, directory and files of the request, as if started with them."""
    for place, name, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(request["out"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, str(request["err"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        handle = os.open(name, mode, 0o600)
        os.dup2(handle, place)
        os.close(handle)
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.argv = ["atoll", *request["arguments"]]  # type: ignore[misc]


if __name__ == "__main__":
    _serve()
