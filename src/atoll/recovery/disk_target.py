"""A recovery's disks as LUNs for ESX hosts: files of this machine behind a tgtd of their own."""

import hashlib
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.backend import Export
from atoll.storage.identity import identity_of, target_name
from atoll.storage.targets.tgt import BackingStore, Durability
from atoll.storage.targets.tgt.daemon import GroupDaemon

LUN_NUMBER = 1
_SYSTEM = "recovery"
_END_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """A disk to serve: `volume` is its id, 32 hex digits, `path` the file with its bytes."""

    volume: str
    name: str
    path: Path
    size_bytes: int

    @property
    def naa(self) -> str:
        """The name by which ESX knows the LUN, for as long as there is the id."""
        return identity_of(self.volume).naa


class DiskTarget:
    """The daemon of one recovery, its sockets in `run`. One user at a time.

    Raises StorageUnreachableError when it cannot be started or does not answer.
    """

    def __init__(
        self, run: Path, recovery: str, addresses: Sequence[str], durability: Durability
    ) -> None:
        self._recovery = recovery
        self._daemon = GroupDaemon(run, recovery, addresses, durability)

    def serve(self, port: int, disks: Sequence[TargetDisk], initiator: str) -> None:
        """Let the initiator, and nobody else, reach the disks, each at a target of its own.

        A daemon that is left from before has the files of a mount that is gone, so it goes first.
        Hosts that were logged in log in again by themselves.
        """
        self._daemon.stop()
        self._daemon.start(port)
        self._daemon.apply(
            [
                (
                    Export(
                        volume=disk.volume,
                        target=target_name(_SYSTEM, self._recovery, disk.name),
                        identity=identity_of(disk.volume),
                        size_bytes=disk.size_bytes,
                        initiators=(initiator,),
                        chap={},
                        read_only=False,
                    ),
                    # Nothing can be unmapped: what was written stays above the point.
                    BackingStore("rdwr", str(disk.path), parameters=("thin_provisioning=0",)),
                )
                for disk in disks
            ]
        )

    def running(self) -> bool:
        """Whether the daemon is there."""
        process = self._daemon.process()
        if process is None:
            return False
        with process:
            return True

    def kill(self, meanwhile: Callable[[], None]) -> None:
        """End it without a word, so that hosts find nobody and ask again, and get no error instead.

        `meanwhile` is called when it can answer no more and before it is waited for: it may wait for
        what is behind its files.
        """
        process = self._daemon.process()
        if process is None:
            meanwhile()
            return
        with process:
            process.signal(signal.SIGKILL)
            meanwhile()
            process.ended(_END_SECONDS)

    def stop(self) -> bool:
        """End it and every session; whether it ran."""
        return self._daemon.stop()


def volume_id(recovery: str, made_at: float, number: int) -> str:
    """An id for a disk that no other recovery ever has."""
    return hashlib.sha256(f"{recovery}/{made_at!r}/{number}".encode()).hexdigest()[:32]


def free_port(addresses: Sequence[str], first: int, last: int, taken: Sequence[int]) -> int:
    """A port that is free on all addresses and not in `taken`; StorageUnreachableError."""
    for port in range(first, last + 1):
        if port not in taken and all(_is_free(address, port) for address in addresses):
            return port
    raise StorageUnreachableError(
        f"No port from {first} to {last} is free on {', '.join(addresses)}; end a recovery, or give "
        "[recovery] more ports."
    )


def _is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
