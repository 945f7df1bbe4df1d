"""Watches over the process that serves a recovery's disks, and starts another when it dies.

No host may get an error for that: it would tell its guest that a disk is broken. So the keeper has the
mount's descriptor too, and the mount outlives its server: requests wait. It kills the iSCSI daemon,
which then can answer nothing any more, lets the mount go, and serves anew. To hosts the LUNs were away
for some seconds, and they ask again for what they got no answer to.
"""

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atoll.fuse import device
from atoll.model.errors import AtollError
from atoll.service.recoveries import Recovery
from atoll.service.recovery_serving import alone, recoveries, serve, target_of
from atoll.service.site import Site

_PAUSES_SECONDS = (0.0, 1.0, 5.0, 30.0)
_STEADY_SECONDS = 300.0


def keep_serving(site: Site, recovery: str, ready: Callable[[], None]) -> None:
    """Serve the disks of a recovery, by name or id, until they are unmounted or it is interrupted.

    `ready` is called once, when hosts can reach them. What keeps them from being served at first is
    raised, RunConflictError when a process serves them already; later it is tried again.
    """
    known = recoveries(site)
    record = known.find(recovery)
    with alone(known, record):
        failures = 0
        while True:
            began = time.monotonic()
            ended = _Server.start(site, record).watch(ready)
            if ended.status == 0:
                return
            if not ended.was_ready and failures == 0:
                raise SystemExit(ended.status)
            ready = _nothing
            _clear(site, record, ended.mount)
            if known.read(record.id) is None:
                return  # the recovery was ended meanwhile
            steady = time.monotonic() - began > _STEADY_SECONDS
            failures = 1 if steady else failures + 1
            time.sleep(_PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS)) - 1])


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a server ended; `mount` is the descriptor of what it mounted, -1 without."""

    status: int
    was_ready: bool
    mount: int


class _Server:
    """A forked process that serves. It must be forked before there is any thread."""

    def __init__(self, process: int, channel: socket.socket) -> None:
        self._process = process
        self._channel = channel

    @classmethod
    def start(cls, site: Site, record: Recovery) -> "_Server":
        """Fork."""
        ours, theirs = socket.socketpair()
        process = os.fork()
        if process == 0:
            status = AtollError.exit_status
            try:
                ours.close()
                status = _serve(site, record, theirs)
            finally:
                os._exit(status)  # whatever happens, it is never taken for the keeper
        theirs.close()
        return cls(process, ours)

    def watch(self, ready: Callable[[], None]) -> _Ended:
        """Wait for its end; when we are interrupted it is too."""
        mount = -1
        pidfd = os.pidfd_open(self._process)
        waits: list[socket.socket | int] = [self._channel, pidfd]
        try:
            while True:
                heard, _, _ = select.select(waits, [], [])
                if self._channel in heard and mount < 0:
                    _, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
                    waits.remove(self._channel)
                    if descriptors:
                        mount = descriptors[0]
                        ready()
                if pidfd in heard:
                    break
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.kill(self._process, signal.SIGTERM)
            os.waitpid(self._process, 0)
            raise
        finally:
            os.close(pidfd)
            self._channel.close()
        _, status = os.waitpid(self._process, 0)
        return _Ended(os.waitstatus_to_exitcode(status), mount >= 0, mount)


def _serve(site: Site, record: Recovery, channel: socket.socket) -> int:
    """The forked process, from its beginning to its exit status."""
    try:
        serve(site, record, lambda mount: _hand_over(channel, mount))
    except AtollError as error:
        sys.stderr.write(f"atoll: {error}\n")
        sys.stderr.flush()
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 - a defect, for the log; the process ends here
        traceback.print_exc()
        return AtollError.exit_status
    finally:
        site.close()
    return 0


def _hand_over(channel: socket.socket, mount: int) -> None:
    socket.send_fds(channel, [b"m"], [mount])
    channel.close()


def _clear(site: Site, record: Recovery, mount: int) -> None:
    """After a server that died: nothing that it left may answer anybody."""

    def let_go() -> None:
        if mount >= 0:
            os.close(mount)

    target_of(site, record).kill(let_go)
    directory: Path = recoveries(site).directory(record.id) / "mount"
    if directory in device.mounts():
        device.let_go(directory)


def _nothing() -> None:
    """It was ready before."""
