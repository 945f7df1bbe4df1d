"""A disk of its own for one application, and an agent that holds both."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from private_guest import await_that, mounted, run

_SCRIPT = Path(__file__).with_name("keeper_process.py")


@contextlib.contextmanager
def disk(image: Path, where: Path, fstype: str = "ext4", megabytes: int = 512) -> Iterator[Path]:
    """A file system in a loop device."""
    image.touch()
    os.truncate(image, megabytes << 20)
    run(f"mkfs.{fstype}", *(["-q", "-F"] if fstype == "ext4" else ["-f"]), image)
    with mounted(image, where):
        yield where


@contextlib.contextmanager
def program(
    argv: Sequence[str | Path], log: Path, ready: str, user: str | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server from its start, told by its log, to its end."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            cwd="/",
            user=user,
            group=user,
            extra_groups=[] if user else None,
            env={**os.environ, **environment},
        )
    try:

        def started() -> bool:
            assert process.poll() is None, log.read_text()
            return ready in log.read_text()

        await_that(started, f"{argv[0]} starts")
        yield process
    finally:
        process.terminate()
        process.wait(60)


class Agent:
    """`keeper_process` as a subprocess. `killed` ones leave their children behind."""

    def __init__(self, applications: Sequence[dict[str, Any]], mounts: Sequence[Path]) -> None:
        self._argv = [sys.executable, "-B", str(_SCRIPT), json.dumps(applications)]
        self._argv.append(json.dumps([str(mount) for mount in mounts]))
        self.start()

    def start(self) -> None:
        source = Path(__file__).parents[3] / "agent"
        self.process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source)},
        )

    def order(self, *words: object) -> Any:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def prepare(self, name: str) -> None:
        assert self.order("prepare", name) is None

    def freeze(self, name: str, lease: float = 60, budget: float = 30) -> Any:
        return self.order("freeze", name, lease, budget)

    def thaw(self, name: str) -> Any:
        return self.order("thaw", name)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def dead_men(self) -> list[int]:
        """The processes that hold for it and their fuses, for as long as it lives itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                pid = int(path.parent.name)
                if b"atoll_agent.deadman" in path.read_bytes() and self._is_ours(pid):
                    found.append(pid)
        return found

    def _is_ours(self, pid: int) -> bool:
        parent = _parent(pid)
        return parent == self.process.pid or (
            parent is not None and _parent(parent) == self.process.pid
        )

    def stop(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.process.send_signal(18)
        self.process.wait(60)


@contextlib.contextmanager
def agent(applications: Sequence[dict[str, Any]], mounts: Sequence[Path]) -> Iterator[Agent]:
    running = Agent(applications, mounts)
    try:
        yield running
    finally:
        running.stop()


def alive(pids: Iterable[int]) -> bool:
    """Whether any of these processes has not ended yet."""
    return any(_parent(pid) is not None for pid in pids)


def _parent(pid: int) -> int | None:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def certificate(where: Path) -> tuple[Path, Path]:
    """A certificate that signed itself, and its key: server's, client's and authority's in one."""
    made = where / "tls.crt", where / "tls.key"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=elsewhere.example"),
        *("-out", made[0], "-keyout", made[1]),
    )
    return made


class Writer:
    """Writes numbered records in a thread and counts those acknowledged."""

    def __init__(self, write) -> None:
        self._write = write
        self.acknowledged = 0
        self.failure = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._write(self.acknowledged + 1)
                self.acknowledged += 1
        except Exception as error:  # noqa: BLE001 - told to the test, which fails
            self.failure = error

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None, self.failure

    def settled(self) -> int:
        """How many are acknowledged once answers on their way have come, with nothing committing."""
        for _ in range(20):
            before = self.acknowledged
            time.sleep(0.5)
            if self.acknowledged == before:
                return before
        raise AssertionError("records are still being acknowledged")

    def goes_on(self) -> None:
        """Wait until another record is acknowledged.

        And one more: one may be written already whose answer was not counted yet.
        """
        before = self.acknowledged + 1
        await_that(lambda: self.acknowledged > before or self.failure, "writing goes on")
