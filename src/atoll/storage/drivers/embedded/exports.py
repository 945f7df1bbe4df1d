"""Which daemons the pool needs and what each is to serve."""

import socket
from collections.abc import Sequence

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import Portal
from atoll.storage.drivers.embedded.daemon import Durability, Export, GroupDaemon
from atoll.storage.drivers.embedded.identity import identity_of, target_name
from atoll.storage.drivers.embedded.pool import Pool, settle
from atoll.storage.drivers.embedded.process import TargetProcess

_LUN_NUMBER = 1


class Exports:
    """Brings a group's daemon in line with the records. Callers hold the group's lock."""

    def __init__(
        self, pool: Pool, address: str, ports: Sequence[int], durability: Durability
    ) -> None:
        self._pool = pool
        self._address = address
        self._ports = ports
        self._durability = durability
        self._daemons: dict[str, GroupDaemon] = {}

    def process(self, group: str) -> TargetProcess | None:
        """The group's daemon, or None; the caller closes it."""
        return self._daemon(group).process()

    def release(self, group: str) -> bool:
        """Lift a barrier somebody left behind; whether there was one."""
        return self._daemon(group).release()

    def portal(self, group: str, lun: str) -> Portal:
        """Where a presented LUN is found."""
        return Portal(
            self._address, self._port(group), target_name(self._pool.name, group, lun), _LUN_NUMBER
        )

    def apply(self, group: str) -> list[str]:
        """Serve what is recorded as presented, or stop the daemon; one sentence per repair."""
        daemon = self._daemon(group)
        exports = self._wanted(group)
        if not exports:
            if daemon.stop():
                return [f"Stopped the iSCSI daemon of LUN group {group}: nothing is presented."]
            return []
        done = []
        if daemon.start(self._port(group)):
            done.append(f"Started the iSCSI daemon of LUN group {group}.")
        done += [f"Served {target} anew." for target in daemon.apply(exports)]
        return done

    def stop(self, group: str) -> bool:
        """End the group's daemon, leaving the records; whether it ran."""
        return self._daemon(group).stop()

    def daemons(self) -> list[str]:
        """Groups that have a daemon's socket, recorded or not."""
        return sorted(path.name.removesuffix(".tgt.0") for path in self._pool.run.glob("*.tgt.0"))

    def _daemon(self, group: str) -> GroupDaemon:
        if group not in self._daemons:
            self._daemons[group] = GroupDaemon(
                self._pool.run, group, self._address, self._durability
            )
        return self._daemons[group]

    def _wanted(self, group: str) -> list[Export]:
        records = self._pool.records
        presented = records.presented(group)
        settle(self._pool.group(group))
        wanted = []
        for lun in records.luns(group):
            if initiators := presented.get(lun.name):
                image = self._pool.image(group, lun.name)
                settle(image)
                wanted.append(
                    Export(
                        target_name(self._pool.name, group, lun.name),
                        identity_of(lun.uuid),
                        image,
                        image.stat().st_size,
                        initiators,
                    )
                )
        return wanted

    def _port(self, group: str) -> int:
        """The group's port: chosen once, then the same for ever, as initiators remember it."""
        record = self._pool.records.group(group)
        if record is not None and record.port is not None:
            return record.port
        with self._pool.lock("_ports"):  # no group can have this name
            taken = self._pool.records.ports()
            # Pools start at different places, so that one does not take what another had.
            first = int(self._pool.id, 16) % len(self._ports)
            for port in (*self._ports[first:], *self._ports[:first]):
                if port not in taken and self._free(port):
                    self._pool.records.set_port(group, port)
                    return port
        raise StorageUnreachableError(
            f"No port from {self._ports[0]} to {self._ports[-1]} is free on {self._address} for "
            f"LUN group {group}; give the pool more ports."
        )

    def _free(self, port: int) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._address, port))
            except OSError:
                return False
        return True
