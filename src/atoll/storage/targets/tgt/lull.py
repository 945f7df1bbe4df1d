"""A lull: initiators are not heard for an instant, and a tgtd has nothing to do meanwhile.

tgtd closes and opens an image to see its new size, and must have no command under way then. So its
connections get a socket filter that drops what arrives. TCP sends it again after the lull: to an
initiator that is a pause of some tenths of a second, and nothing else. What tgtd answers still
goes out.

When tgtd has read what had arrived before, its main thread waits for events and its workers wait
for commands, nothing is under way. Half a command that was read stays half until its rest comes,
which is not before the lull is over; it does not touch the image until it is whole.

Whoever dies in a lull leaves nothing behind: the filter is a program that looks at the clock, and
lets everything pass when its time is over.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.targets.tgt.kernel import duplicate, let_packets_settle, load_pause
from atoll.storage.targets.tgt.process import TargetProcess

WORKERS = 16
"""Threads tgtd is told to have for each LUN."""

_LIMIT_SECONDS = 2.0
_DEAF_SECONDS = 5.0
"""The filters' time. The lull ends before, so that what is done in it is done in it."""

_POLL_SECONDS = 0.001
_ATTACH_FILTER, _DETACH_FILTER = 50, 27  # SO_ATTACH_BPF, SO_DETACH_FILTER


class NoLullError(StorageUnreachableError):
    """The daemon could not be brought to rest: no right to, or its commands take too long."""


@contextmanager
def lull(process: TargetProcess, luns: int) -> Iterator[None]:
    """While inside, nothing is under way in a tgtd with so many LUNs, and nothing begins.

    Inside, do one thing that takes a moment. NoLullError, upon which all is as before.
    """
    with ExitStack() as held:
        try:
            deafness = load_pause(time.monotonic_ns() + int(_DEAF_SECONDS * 1e9))
            held.callback(os.close, deafness)
            held.callback(_hear, process)
            _wait_for_rest(process, deafness, luns)
        except OSError as error:
            raise NoLullError(
                f"Initiators of the iSCSI daemon (process {process.pid}) cannot be paused: {error}; "
                "run Atoll as root."
            ) from error
        yield


def _wait_for_rest(process: TargetProcess, deafness: int, luns: int) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    known: set[int] = set()
    while time.monotonic() < deadline:
        with _tcp_sockets(process) as sockets:
            if _deafen(sockets, known, deafness):
                let_packets_settle()  # those that passed before the filter was there
            elif not any(_has_news(one) for one in sockets) and _rests(process, luns):
                return
        time.sleep(_POLL_SECONDS)
    raise NoLullError(
        f"The iSCSI daemon (process {process.pid}) did not come to rest within "
        f"{_LIMIT_SECONDS:g} s; try again when the pool's disks are less busy."
    )


def _deafen(sockets: list[socket.socket], known: set[int], deafness: int) -> bool:
    """Attach the filter where it is not; whether any was without.

    Listening sockets first: what they accept is born with it.
    """
    strangers = [one for one in sockets if os.fstat(one.fileno()).st_ino not in known]
    for one in sorted(strangers, key=_listens, reverse=True):
        one.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("i", deafness))
        known.add(os.fstat(one.fileno()).st_ino)
    return bool(strangers)


def _hear(process: TargetProcess) -> None:
    """Detach the filters. One that slips through, just accepted, ends by itself."""
    with suppress(OSError), _tcp_sockets(process) as sockets:
        for one in sorted(sockets, key=_listens, reverse=True):
            with suppress(OSError):  # it had none
                one.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _has_news(one: socket.socket) -> bool:
    """Whether there is something that tgtd will read or accept."""
    if _listens(one):
        poll = select.poll()
        poll.register(one, select.POLLIN)
        return bool(poll.poll(0))
    arrived = fcntl.ioctl(one, termios.FIONREAD, b"\0" * 4)
    return bool(struct.unpack("i", arrived)[0])


@contextmanager
def _tcp_sockets(process: TargetProcess) -> Iterator[list[socket.socket]]:
    """Duplicates of the TCP sockets of a process's portals, open as long as this lasts.

    Others may lead to the images, as librbd's do, and must be heard.
    """
    with ExitStack() as held:
        found = []
        for number in process.descriptors("socket:"):
            try:
                one = socket.socket(fileno=duplicate(process.pidfd, number))
            except OSError as error:
                if error.errno == errno.EBADF:  # closed meanwhile
                    continue
                raise
            held.enter_context(one)
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                found.append(one)
        ports = {one.getsockname()[1] for one in found if _listens(one)}
        yield [one for one in found if one.getsockname()[1] in ports]


def _rests(process: TargetProcess, luns: int) -> bool:
    """Whether the main thread waits for events and all workers for commands.

    A worker that was seen waiting stays so if the main thread, which alone gives
    out commands, did not run while the others were looked at.
    """
    before = _main_thread(process)
    if before is None or not _workers_wait(process, luns):
        return False
    return _main_thread(process) == before


def _main_thread(process: TargetProcess) -> int | None:
    """How often it has waited, if it waits for events now."""
    where = _blocked_in(process.pid, process.pid)
    if where is None or where not in process.descriptors("anon_inode:[eventpoll]"):
        return None
    status = Path(f"/proc/{process.pid}/task/{process.pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def _workers_wait(process: TargetProcess, luns: int) -> bool:
    """Whether for each LUN all workers wait in one place: its condition variable.

    glibc waits on either of two neighbouring words of that. A worker that waits
    for something else, such as a disk, is elsewhere.
    """
    places: dict[int, int] = {}
    for entry in Path(f"/proc/{process.pid}/task").iterdir():
        thread = int(entry.name)
        if thread != process.pid:
            where = _blocked_in(process.pid, thread)
            if where is not None:
                places[where >> 3] = places.get(where >> 3, 0) + 1
    return sum(count == WORKERS for count in places.values()) >= luns


def _blocked_in(pid: int, thread: int) -> int | None:
    """The first argument of the system call a thread is blocked in; None if it is in none."""
    try:
        words = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(words[1], 16) if len(words) > 2 and words[0] != "-1" else None
