"""A tgtd of ours as a process: found by its environment, signalled by pidfd, never by a bare pid."""

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atoll.storage.targets.tgt.tgt_socket import TgtSocket

_STOPPED = frozenset("Tt")


@dataclass(frozen=True)
class TargetProcess:
    """A running tgtd. The pidfd keeps meaning this very process after its pid is reused."""

    pid: int
    pidfd: int

    def __enter__(self) -> "TargetProcess":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.pidfd)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; ended processes are past caring."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def ended(self, timeout_seconds: float = 0) -> bool:
        """Wait for the end, at most so long; whether it came."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_seconds * 1000))

    def stopped(self) -> bool:
        """Whether every thread is stopped, so that nothing can be acknowledged."""
        states = self._thread_states()
        return bool(states) and states <= _STOPPED

    def partly_stopped(self) -> bool:
        """Whether a stop was sent and not yet taken back."""
        return bool(self._thread_states() & _STOPPED)

    def descriptors(self, kind: str) -> list[int]:
        """The numbers of its descriptors whose link in /proc begins so. OSError when it is gone."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if str(entry.readlink()).startswith(kind):
                    found.append(int(entry.name))
        return found

    def _thread_states(self) -> set[str]:
        states = set()
        try:
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                try:
                    states.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
                except (FileNotFoundError, ProcessLookupError):
                    continue  # the thread ended meanwhile
        except (FileNotFoundError, ProcessLookupError):
            return set()
        return states


def find_process(management: TgtSocket) -> TargetProcess | None:
    """The tgtd of a management socket, or None. The caller closes it.

    Known by the environment it was started with, and not by connecting: a tgtd
    never lets go of a connection on which nothing was asked, and reads it in a
    circle for as long as it runs. The pidfd is trusted because the process was
    looked at after it was opened.
    """
    wanted = b"TGT_IPC_SOCKET=" + os.fsencode(management.base)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not _calls_itself_tgtd(entry):
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except ProcessLookupError:
            continue
        # A zombie has no environment left, so it does not count.
        if wanted in _environment(entry):
            return TargetProcess(int(entry.name), pidfd)
        os.close(pidfd)
    return None


def _calls_itself_tgtd(entry: Path) -> bool:
    try:
        return (entry / "comm").read_text() == "tgtd\n"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _environment(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
