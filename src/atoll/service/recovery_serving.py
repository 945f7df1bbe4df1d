"""The disks of a recovery from the repository: served by a process of its own until they are unmounted."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from atoll.fuse import device
from atoll.fuse.server import FuseServer
from atoll.model.errors import (
    AtollError,
    ConfigurationError,
    MountError,
    RestoreTargetError,
    RunConflictError,
)
from atoll.model.points import RestorePoint
from atoll.recovery.disk_target import DiskTarget, TargetDisk, volume_id
from atoll.recovery.disk_tree import DiskDirectory
from atoll.recovery.overlay import Overlay
from atoll.service.filelocks import lock_file
from atoll.service.recoveries import Recoveries, Recovery
from atoll.service.site import Site

_SERVER = "atoll.cli.recovery_server"
_WAIT_SECONDS = 3600
_END_SECONDS = 120.0
_LONGEST_SOCKET = 100


def recoveries(site: Site) -> Recoveries:
    """The site's recoveries."""
    return Recoveries(site.recovery.directory or site.work_directory.parent / "recoveries")


def target_of(site: Site, record: Recovery) -> DiskTarget:
    """The iSCSI daemon of a recovery; ConfigurationError where its sockets have too long a path."""
    run = recoveries(site).directory(record.id)
    if len(os.fspath(run / f"{record.id}.tgt.0")) > _LONGEST_SOCKET:
        raise ConfigurationError(
            f"{run} is too long a path for a socket; give [recovery] a shorter directory."
        )
    return DiskTarget(run, record.id, site.recovery.addresses, site.recovery.durability)


def target_disks(site: Site, record: Recovery, sizes: Sequence[int]) -> list[TargetDisk]:
    """A recovery's LUNs in the order of its point's disks."""
    mount = recoveries(site).directory(record.id) / "mount"
    return [
        TargetDisk(
            volume_id(record.id, record.began_at, number),
            f"disk{number}",
            mount / f"disk{number}",
            size,
        )
        for number, size in enumerate(sizes, 1)
    ]


def spawn(site: Site, record: Recovery, config: Path | None) -> None:
    """Start the process that serves a recovery's disks, and return when hosts can reach them.

    RestoreTargetError, with what it said last, when it ends before that.
    """
    command = [
        *(sys.executable, "-m", _SERVER),
        *(str(config) if config else "", site.copy or "", record.id),
    ]
    log = recoveries(site).directory(record.id) / "serve.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
    except BaseException:
        process.terminate()
        raise
    if ready != b"ready\n":
        process.wait()
        words = log.read_text(errors="replace").strip().splitlines()
        raise RestoreTargetError(
            f"The disks of {record.reference} could not be served "
            f"({words[-1].removeprefix('atoll: ').rstrip('.') if words else 'nothing was said'})."
        )
    # It outlives this process, so nobody waits for it here.
    process.stdout.close()
    process.returncode = 0


def serve(site: Site, record: Recovery, ready: Callable[[int], None]) -> None:
    """Serve the disks of a recovery until they are unmounted or it is interrupted.

    `ready` is called when hosts can reach them, with the descriptor of the mount.
    """
    with site.slots().serving():
        point = site.repository().find(record.reference)
        if point.id != record.point:
            raise ConfigurationError(
                f"{record.reference} is another restore point ({point.id}) than the one that was "
                "recovered; this repository is not the one it came from."
            )
        with _mounted(site, record, point) as server:
            target = target_of(site, record)
            disks = target_disks(site, record, [disk.size_bytes for disk in point.disks])
            try:
                target.serve(record.port, disks, record.initiator)
                ready(server.descriptor)
                while not server.wait(_WAIT_SECONDS):
                    pass
            finally:
                target.stop()


def stop_serving(site: Site, record: Recovery) -> None:
    """End the sessions of hosts and the process that serves the disks. None is success.

    MountError when it does not end in time.
    """
    known = recoveries(site)
    # The target goes first: it holds the files.
    target_of(site, record).stop()
    mount = known.directory(record.id) / "mount"
    if mount in device.mounts():
        try:
            device.unmount(mount)
        except MountError:
            if mount in device.mounts():  # else it has unmounted by itself meanwhile
                raise
    path = known.serving_lock(record.id)
    if path.exists() and not _freed(path):
        raise MountError(
            f"The process that serves the disks of {record.name} does not end; see "
            f"{known.directory(record.id)}/serve.log and end it (`atoll recover serve {record.id}`)."
        )


def written_bytes(site: Site, record: Recovery) -> int:
    """How much room what was written takes."""
    disks = recoveries(site).directory(record.id) / "disks"
    return sum(path.stat().st_blocks * 512 for path in disks.glob("*/data"))


@contextmanager
def _mounted(site: Site, record: Recovery, point: RestorePoint) -> Iterator[FuseServer]:
    place = recoveries(site).directory(record.id)
    with ExitStack() as stack:
        disks = {}
        for number, image in enumerate(point.disks, 1):
            reader = site.repository().open_disk(image)
            stack.callback(reader.close)
            own = place / "disks" / str(number)
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
            disk = Overlay(reader, own, image.root)
            stack.callback(disk.close)
            disks[f"disk{number}"] = disk
        mount = place / "mount"
        if mount in device.mounts():
            device.let_go(mount)  # of a process that died
        mount.mkdir(exist_ok=True, mode=0o700)
        yield stack.enter_context(
            FuseServer(
                DiskDirectory(disks), mount, source=record.id, writable=True, on_failure=_say
            )
        )


@contextmanager
def alone(known: Recoveries, record: Recovery) -> Iterator[None]:
    """Be the one that serves the disks, with all processes forked inside; RunConflictError."""
    descriptor = lock_file(known.serving_lock(record.id), fcntl.LOCK_EX)
    if descriptor is None:
        raise RunConflictError(f"The disks of {record.name} are served already.")
    try:
        yield
    finally:
        os.close(descriptor)


def _freed(path: Path) -> bool:
    """Wait until nobody has a file locked; whether that came in time."""
    deadline = time.monotonic() + _END_SECONDS
    while (descriptor := lock_file(path, fcntl.LOCK_EX)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    os.close(descriptor)
    return True


def _say(error: AtollError) -> None:
    """Into the log of the process."""
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
