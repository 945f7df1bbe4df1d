"""One run of a server's own program, as its owner and with a deadline."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.owners import as_owner

_MAX_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a program ended. `output` is what it wrote, standard error included, without blanks around."""

    status: int
    output: str


def run_command(
    argv: Sequence[str],
    deadline: Deadline,
    *,
    owner: str | None = None,
    environment: Mapping[str, str] | None = None,
    text: str = "",
    directory: str = "/",
) -> Outcome:
    """Run a program to its end and return how it ended; `text` is its standard input.

    It gets no environment but PATH, LC_ALL=C and what is given. Raises
    ApplicationError when it cannot be started or is still running at the
    deadline; then it and what it started are killed, except for what has
    left its session.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "LC_ALL": "C",
                **(environment or {}),
            },
            cwd=directory,
            start_new_session=True,
            **as_owner(owner),
        )
    except OSError as error:
        raise ApplicationError(f"{argv[0]} could not be started: {error.strerror}") from error
    # What it starts must not inherit the agent's protection from the OOM killer.
    with suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("0")
    try:
        output, _ = process.communicate(text.encode(), timeout=deadline.remaining)
    except subprocess.TimeoutExpired as error:
        _kill(process)
        raise ApplicationError(f"{argv[0]} did not end in time") from error
    return Outcome(process.returncode, output[:_MAX_OUTPUT_BYTES].decode(errors="replace").strip())


def _kill(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    # One that waits for a disk dies when the disk answers; nobody here waits for that.
    with suppress(subprocess.TimeoutExpired):
        process.wait(1)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
