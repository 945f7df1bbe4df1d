"""Which daemons a storage system needs and what each is to serve."""

import socket
from collections.abc import Callable, Sequence

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import Portal
from atoll.storage.backend import Export, Place
from atoll.storage.locks import Locks
from atoll.storage.targets.tgt.daemon import BackingStore, Durability, GroupDaemon
from atoll.storage.targets.tgt.process import TargetProcess

_LUN_NUMBER = 1


class TgtTargets:
    """A tgtd a group: each on a port of its own, the same on all `addresses`.

    `backing` says where a volume's bytes are, by group and export. Callers hold
    the group's lock.
    """

    def __init__(
        self,
        place: Place,
        addresses: Sequence[str],
        ports: Sequence[int],
        backing: Callable[[str, Export], BackingStore],
        durability: Durability = "disk",
    ) -> None:
        self._run = place.run
        self._addresses = tuple(addresses)
        self._ports = ports
        self._seed = place.seed
        self._notes = place.notes
        self._backing = backing
        self._durability = durability
        self._locks = Locks(place.run)
        self._daemons: dict[str, GroupDaemon] = {}

    def process(self, group: str) -> TargetProcess | None:
        """The group's daemon, or None; the caller closes it."""
        return self._daemon(group).process()

    def release(self, group: str) -> bool:
        """Lift a barrier somebody left behind; whether there was one."""
        return self._daemon(group).release()

    def portals(self, group: str, export: Export) -> tuple[Portal, ...]:
        """Where an export is found: one portal an address."""
        port = self._port(group)
        return tuple(
            Portal(address, port, export.target, _LUN_NUMBER) for address in self._addresses
        )

    def serve(self, group: str, exports: Sequence[Export]) -> list[str]:
        """Serve exactly these, or stop the daemon; one sentence per repair."""
        daemon = self._daemon(group)
        if not exports:
            return ["Stopped an iSCSI daemon that nothing needs."] if daemon.stop() else []
        done = []
        if daemon.start(self._port(group)):
            done.append(f"Started the iSCSI daemon of {exports[0].target}.")
        wanted = [(export, self._backing(group, export)) for export in exports]
        return done + [f"Served {target} anew." for target in daemon.apply(wanted)]

    def stop(self, group: str) -> bool:
        """End the group's daemon; whether it ran."""
        return self._daemon(group).stop()

    def served(self) -> list[str]:
        """Groups that have a daemon's socket, recorded or not."""
        return sorted(path.name.removesuffix(".tgt.0") for path in self._run.glob("*.tgt.0"))

    def forget(self, group: str) -> None:
        """Free the port of a group that is gone."""
        self._notes.put_note(f"port:{group}", None)

    def _daemon(self, group: str) -> GroupDaemon:
        if group not in self._daemons:
            self._daemons[group] = GroupDaemon(self._run, group, self._addresses, self._durability)
        return self._daemons[group]

    def _port(self, group: str) -> int:
        """The group's port: chosen once, then the same for ever, as initiators remember it."""
        noted = self._notes.note(f"port:{group}")
        if noted is not None:
            return int(noted)
        with self._locks.held("_ports"):  # no group can have this name
            taken = {int(port) for port in self._notes.notes("port:").values()}
            # Systems start at different places, so that one does not take what another had.
            first = self._seed % len(self._ports)
            for port in (*self._ports[first:], *self._ports[:first]):
                if port not in taken and all(_free(each, port) for each in self._addresses):
                    self._notes.put_note(f"port:{group}", str(port))
                    return port
        raise StorageUnreachableError(
            f"No port from {self._ports[0]} to {self._ports[-1]} is free on "
            f"{', '.join(self._addresses)}; give the storage system more ports."
        )


def _free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
