"""A tgtd of ours as a process: found by its socket, signalled by pidfd, never by a bare pid."""

import os
import select
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from atoll.storage.drivers.embedded.tgt_socket import TgtSocket, peer_pid

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
    """The tgtd that listens on the management socket, or None. The caller closes it.

    The kernel names the listener; the pidfd is trusted only if the listener was
    alive after it was opened, and the process calls itself tgtd.
    """
    connection = management.connect()
    if connection is None:
        return None
    with connection:
        pid = peer_pid(connection)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if _hung_up(connection) or not _calls_itself_tgtd(pid):
            os.close(pidfd)
            return None
    return TargetProcess(pid, pidfd)


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _calls_itself_tgtd(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return Path(os.fsdecode(command)).name == "tgtd"
