"""Director, Storage Daemon and File Daemon of Bacula as children, laid out by the recipe."""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

RECIPE = Path(__file__).parents[3] / "recipes/bacula"
ATOLL = Path(sys.executable).with_name("atoll")
DAEMONS = ("sd", "fd", "dir")
PATIENCE_SECONDS = 120
ENDED = set("TWEefA")
"""Job states that are final: done, with warnings, and the ways to fail."""


@dataclass
class BaculaSite:
    """A whole Bacula in a directory of its own, on loopback."""

    work: Path
    settings: Path
    environment: Mapping[str, str] = field(init=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work.mkdir()
        self.etc, self.state = self.work / "etc", self.work / "state"
        self.archive, self.mount = self.work / "archive", self.work / "mnt"
        self.ports = free_ports()
        # Debian's daemons lie where not every user's PATH leads.
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment = {**os.environ, "PATH": path, "ATOLL_CONFIG": str(self.settings)}
        places = {
            "ETC": self.etc,
            "STATE": self.state,
            "RUN": self.work / "run",
            "ARCHIVE": self.archive,
            "MOUNT": self.mount,
            "ATOLL": ATOLL,
            **{f"{name.upper()}_PORT": port for name, port in self.ports.items()},
        }
        subprocess.run(
            ["sh", RECIPE / "install"],
            check=True,
            capture_output=True,
            env={**self.environment, **{name: str(value) for name, value in places.items()}},
        )

    def start(self, **environment: object) -> None:
        """Start all three; variables are for the File Daemon's scripts."""
        self.environment = {
            **self.environment,
            **{name: str(value) for name, value in environment.items()},
        }
        for name in DAEMONS:
            self._start(name)

    def _start(self, name: str) -> None:
        """Start one daemon and wait until it answers."""
        program = shutil.which(f"bacula-{name}", path=self.environment["PATH"])
        assert program, "scripts/setup tests installs it"
        with (self.work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [program, "-f", "-P", "-c", self.etc / f"bacula-{name}.conf"],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.processes[name] = process

        def answers() -> bool:
            assert process.poll() is None, (self.work / f"{name}.log").read_text()
            return listens(self.ports[name])

        await_that(answers, lambda: f"bacula-{name} does not answer")

    def close(self) -> None:
        """End what runs."""
        ending = list(self.processes.values())
        self.processes.clear()
        for process in ending:
            process.terminate()
        for process in ending:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def console(self, *commands: str) -> str:
        """What bconsole says to these commands."""
        done = subprocess.run(
            ["bconsole", "-n", "-c", self.etc / "bconsole.conf"],
            input="\n".join((*commands, "quit", "")),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            env=self.environment,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def restore(self, file_set: str, where: Path) -> tuple[int, str]:
        """Restore the newest of what a FileSet's jobs took; the job's number and outcome."""
        said = self.console(
            f"restore client=atoll-fd fileset={file_set} where={where} select current all done yes"
        )
        started = re.search(r"Job queued\. JobId=(\d+)", said)
        assert started, said
        return int(started[1]), self.await_end(int(started[1]))

    def begin(self, job: str, *words: str) -> int:
        """Start a job; its number."""
        said = self.console(" ".join(("run", f"job={job}", *words, "yes")))
        started = re.search(r"Job queued\. JobId=(\d+)", said)
        assert started, said
        return int(started[1])

    def await_end(self, job: int) -> str:
        """Wait until a job has ended; the letter of what it came to."""
        # The Director writes the row before it lets go of the job.
        await_that(
            lambda: self.state_of(job) in ENDED and not self._is_running(job), lambda: self.log(job)
        )
        return self.state_of(job)

    def run(self, job: str, *words: str) -> tuple[int, str]:
        """Run a job to its end; its number and what it came to."""
        number = self.begin(job, *words)
        return number, self.await_end(number)

    def state_of(self, job: int) -> str:
        """The letter of a job's state in the catalogue."""
        rows = self.rows("SELECT JobStatus FROM Job WHERE JobId = ?", job)
        return str(rows[0][0]) if rows else "C"

    def _is_running(self, job: int) -> bool:
        """Whether the Director still has it."""
        return (
            re.search(rf"^ *{job} ", self.console(".status dir running"), re.MULTILINE) is not None
        )

    def files(self, job: int) -> set[str]:
        """Names of what a job took, below the mount; without what it found deleted."""
        return {name for name, index in self._names(job) if index > 0}

    def deleted(self, job: int) -> set[str]:
        """Names that a job found to be gone."""
        return {name for name, index in self._names(job) if index <= 0}

    def _names(self, job: int) -> list[tuple[str, int]]:
        rows = self.rows(
            "SELECT Path.Path || Filename.Name, FileIndex FROM File JOIN Path USING (PathId)"
            " JOIN Filename USING (FilenameId) WHERE JobId = ?",
            job,
        )
        return [(str(name).removeprefix(f"{self.mount}/"), int(str(index))) for name, index in rows]

    def log(self, job: int) -> str:
        """A job's report."""
        return "".join(
            str(row[0]) for row in self.rows("SELECT LogText FROM Log WHERE JobId = ?", job)
        )

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Rows of the catalogue."""
        with closing(sqlite3.connect(f"file:{self.state}/atoll.db?mode=ro", uri=True)) as catalogue:
            catalogue.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            catalogue.execute("PRAGMA busy_timeout = 10000")
            return list(catalogue.execute(query, values))


def await_that(condition: Callable[[], bool], why: Callable[[], str]) -> None:
    """Wait until something is so; `why` is what to say when it does not come about."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def free_ports() -> dict[str, int]:
    """A port for each daemon that nobody listens on."""
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in DAEMONS}
    try:
        return {name: each.getsockname()[1] for name, each in sockets.items()}
    finally:
        for each in sockets.values():
            each.close()


def listens(port: int) -> bool:
    """Whether somebody does there; a connection that says nothing would be logged as an attack."""
    # Fields of /proc/net/tcp: number, local address and port, remote ones, state (10 is LISTEN).
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)
