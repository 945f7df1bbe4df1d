"""Management connections whose other end died before it asked anything.

tgtd never lets go of such a connection: reading its end gives nothing and no error, so it reads
again, and a core is busy until tgtd ends (mtask_recv_send_handler in usr/mgmt.c). It is made to
overlook it instead; what remains is a descriptor nobody uses.
"""

import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from atoll.storage.targets.tgt import dismiss
from atoll.storage.targets.tgt.kernel import duplicate
from atoll.storage.targets.tgt.process import TargetProcess

_GRACE_SECONDS = 0.05
"""A request is dealt with long before; what is left then stays for ever."""

_TIMEOUT_SECONDS = 20.0


def dismiss_dead_callers(process: TargetProcess) -> int:
    """Free a tgtd from connections that keep it busy for nothing; returns how many there were."""
    try:
        waiting = _dead_callers(process)
        if not waiting:
            return 0
        time.sleep(_GRACE_SECONDS)
        still = _dead_callers(process)
        for epoll in {epoll for epoll, _, _ in waiting & still}:
            numbers = [str(number) for one, number, _ in waiting & still if one == epoll]
            subprocess.run(
                [sys.executable, "-I", "-S", dismiss.__file__, str(process.pidfd), str(epoll),
                 *numbers],
                pass_fds=(process.pidfd,), stdin=subprocess.DEVNULL, capture_output=True,
                check=True, timeout=_TIMEOUT_SECONDS,
            )  # fmt: skip
        return len(waiting & still)
    except (OSError, subprocess.SubprocessError):
        return 0  # not permitted, or it is ending: a busy core is no reason to fail


def _dead_callers(process: TargetProcess) -> set[tuple[int, int, int]]:
    """Epoll, descriptor and inode of each."""
    found = set()
    sockets = set(process.descriptors("socket:"))
    for epoll in process.descriptors("anon_inode:[eventpoll]"):
        watched = Path(f"/proc/{process.pid}/fdinfo/{epoll}").read_text()
        for number in map(int, re.findall(r"^tfd:\s*(\d+)", watched, re.MULTILINE)):
            if number in sockets:
                with socket.socket(fileno=duplicate(process.pidfd, number)) as one:
                    if one.family == socket.AF_UNIX and _hung_up_silently(one):
                        found.add((epoll, number, os.fstat(one.fileno()).st_ino))
    return found


def _hung_up_silently(one: socket.socket) -> bool:
    poll = select.poll()
    poll.register(one, select.POLLIN)
    happened = poll.poll(0)
    if not happened or not happened[0][1] & select.POLLHUP:
        return False
    return not one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
