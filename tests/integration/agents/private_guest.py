"""Pieces of a private guest: databases on a real file system in a loop device, and the agent as it ships."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atoll.guests.channel import AgentChannel

PG_BIN = Path("/usr/lib/postgresql/15/bin")
_FITHAW = 0xC0045878


def await_that(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so; the limit only keeps a failed test from hanging."""
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, f"never happened: {what}"
        time.sleep(0.05)


def run(*argv: str | Path, user: str | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        user=user,
        group=user,
        extra_groups=[] if user else None,
        timeout=120,
    )
    assert done.returncode == 0, f"{argv}: {done.stderr} {done.stdout}"
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    where.mkdir(parents=True, exist_ok=True)
    run("mount", "-o", "loop", image, where)
    try:
        yield where
    finally:
        # Whatever a failed test left frozen would make the unmount wait for ever.
        descriptor = os.open(where, os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _FITHAW, 0)
        os.close(descriptor)
        # A watchdog that has just thawed is still on its way out.
        deadline = time.monotonic() + 30
        while subprocess.run(["umount", where], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                run("umount", where)
            time.sleep(0.1)


@contextlib.contextmanager
def postgres(data: Path, sockets: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    sockets.mkdir(exist_ok=True)
    shutil.chown(sockets, "postgres", "postgres")
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [
                *(PG_BIN / "postgres", "-D", data, "-k", sockets, "-p", str(port)),
                *("-c", "listen_addresses="),
            ],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            cwd="/",
            user="postgres",
            group="postgres",
            extra_groups=[],
        )
    try:
        await_that(lambda: "ready to accept connections" in log.read_text(), f"{data} starts")
        yield process
    finally:
        process.send_signal(2)
        process.wait(60)


@contextlib.contextmanager
def mariadb(data: Path, sock: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [
                *("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={sock}"),
                *(f"--pid-file={data}/server.pid", "--skip-networking"),
                "--innodb-buffer-pool-size=64M",
            ],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            cwd="/",
            user="mysql",
            group="mysql",
            extra_groups=[],
        )
    try:
        await_that(lambda: "ready for connections" in log.read_text(), f"{data} starts")
        yield process
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Guest:
    """The servers, their file system, and the directories beside it."""

    base: Path
    mount: Path
    image: Path
    pg_port: int = 5544
    mariadb_socket: Path = field(init=False)

    def __post_init__(self) -> None:
        self.mariadb_socket = self.base / "my" / "a.sock"

    def psql(self, sql: str, port: int | None = None) -> str:
        return run(
            *("psql", "-X", "-A", "-t", "-h", self.base / "pgsock"),
            *("-p", str(port or self.pg_port), "-d", "postgres", "-c", sql),
            user="postgres",
        )

    def sql(self, statement: str, sock: Path | None = None) -> str:
        return run(
            *("mariadb", "--no-defaults", "-BN", f"--socket={sock or self.mariadb_socket}"),
            *("-e", statement),
        )

    def frozen(self) -> bool:
        """Whether a write into the file system waits."""
        done = threading.Event()

        def write() -> None:
            (self.mount / "probe").write_bytes(os.urandom(16))
            done.set()

        threading.Thread(target=write, daemon=True).start()
        return not done.wait(0.7)


class AgentProcess:
    """The zipapp serving, and the director's channel to it."""

    def __init__(self, config: Path, pyz: Path, log: Path, channel: AgentChannel) -> None:
        self.channel = channel
        self.argv = [sys.executable, "-B", str(pyz), "serve", "--config", str(config)]
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("wb") as stream:
            self.process = subprocess.Popen(self.argv, stdout=stream, stderr=stream, cwd="/")
        await_that(lambda: "listens on" in self.log, "the agent listens")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def children(self) -> dict[int, str]:
        """Its processes by id with their command lines."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    command = (path.parent / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(path.parent.name)] = command.decode()
        return found

    def watchdog(self) -> int:
        [pid] = [pid for pid, command in self.children().items() if "watchdog" in command]
        return pid

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(18)
            self.process.terminate()
            self.process.wait(30)
