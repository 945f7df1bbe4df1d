"""Who reaches which volume of a FlashArray: hosts, connections, CHAP, and the array's ports."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from atoll.model.errors import StorageConflictError
from atoll.model.storage import Portal
from atoll.storage.backend import Chap, Export, Place
from atoll.storage.drivers.array import LunNumbers, is_fibre_channel, numbered
from atoll.storage.drivers.pure.names import Names
from atoll.storage.drivers.pure.session import ArrayRefusedError, FlashArray, value
from atoll.storage.locks import Locks


class Hosts:
    """One host object per initiator: whichever has it, ours or not, or else a new one."""

    def __init__(self, array: FlashArray, names: Names, place: Place) -> None:
        self._array = array
        self._names = names
        self._notes = place.notes
        self._locks = Locks(place.run)
        self._numbers = LunNumbers(place)

    @cached_property
    def _ports(self) -> list[Any]:
        return list_ports(self._array)

    def protocols(self) -> frozenset[str]:
        """What the array's ports speak, of what we do."""
        found = set()
        for port in self._ports:
            if value(port, "iqn") and value(port, "portal"):
                found.add("iscsi")
            elif value(port, "wwn"):
                found.add("fc")
        return frozenset(found)

    def portals(self, initiators: Iterable[str]) -> tuple[Portal, ...]:
        """The array's ports that these can log in to, all for LUN 0.

        A Fibre Channel port is `naa.` and its WWPN, without a port number.
        """
        kinds = {is_fibre_channel(initiator) for initiator in initiators}
        found = []
        for port in self._ports:
            iqn, portal, wwn = (value(port, name) for name in ("iqn", "portal", "wwn"))
            if False in kinds and iqn and portal:
                address, _, number = portal.rpartition(":")
                found.append(Portal(address.strip("[]"), int(number), iqn, 0))
            elif True in kinds and wwn:
                wwpn = f"naa.{_plain(wwn)}"
                found.append(Portal(wwpn, 0, wwpn, 0))
        return tuple(sorted(found, key=lambda portal: (portal.target, portal.address)))

    def portals_of(self, export: Export) -> tuple[Portal, ...]:
        """Where an export is reached."""
        return numbered(self.portals(export.initiators), self._number(export))

    def connections(self) -> dict[str, dict[str, int]]:
        """LUN numbers by volume name and host name, of all connections to single hosts."""
        found: dict[str, dict[str, int]] = {}
        for each in self._array.call("get_connections", "list its connections"):
            volume, host = value(each, "volume", "name"), value(each, "host", "name")
            if volume is not None and host is not None:
                found.setdefault(volume, {})[host] = int(value(each, "lun") or 0)
        return found

    def serve(
        self,
        exports: Sequence[Export],
        connected: Mapping[str, Mapping[str, int]],
        others: Iterable[str],
    ) -> list[str]:
        """Connect each volume to the hosts of exactly its initiators; one sentence per change.

        `connected` is what `connections` gave; `others` are volumes, by name, that
        nobody is to reach.
        """
        done: list[str] = []
        idle: set[str] = set()
        with self._locks.held("_hosts"):  # or another might drop a host between its two steps
            hosts = self._hosts_of(exports)
            for export in exports:
                volume, number = self._names.volume(export.volume), self._number(export)
                now = connected.get(volume, {})
                right = {hosts[each] for each in export.initiators}
                fresh = sorted(host for host in right if now.get(host) != number)
                gone = sorted(host for host in now if host not in right or now[host] != number)
                self._disconnect(volume, gone)
                for host in fresh:
                    self._connect(volume, host, number)
                if fresh or gone:
                    done.append(f"Connected LUN {export.identity.naa} anew.")
                idle |= set(gone) - right
            for volume in others:
                gone = sorted(connected.get(volume, ()))
                if gone:
                    self._disconnect(volume, gone)
                    done.append(f"Disconnected {volume}, which is presented to nobody.")
                    idle |= set(gone)
            self._drop_idle(idle)
        return done

    def withdraw(self, volume: str) -> None:
        """Disconnect a volume, by its name, from all hosts; absent is success."""
        with self._locks.held("_hosts"):
            try:
                found = self._array.call(
                    "get_connections", f"list the connections of {volume}", volume_names=[volume]
                )
            except ArrayRefusedError as error:
                if not error.absent:
                    raise
                return
            hosts = [host for each in found if (host := value(each, "host", "name"))]
            self._disconnect(volume, hosts)
            self._drop_idle(hosts)

    def connect_proxy(self, volume: str, initiator: str, chap: Chap | None) -> int:
        """Connect a volume, by its name, to this machine; the LUN number the array chose."""
        with self._locks.held("_hosts"):
            host = self._host(self._all(), initiator, chap, personality=None)
            self._array.make(
                "post_connections",
                f"connect {volume} to {host}",
                volume_names=[volume],
                host_names=[host],
                connection=self._array.model("ConnectionPost"),
            )
            for each in self._connection(volume, host):
                return int(each.lun)
        raise StorageConflictError(
            f"FlashArray {self._array.name} lost the connection of {volume} to {host} at once; see "
            "who else works on the array."
        )

    def forget(self, volume: str) -> None:
        """A volume, by its id, is gone, and its LUN number free."""
        self._numbers.forget(volume)

    def _number(self, export: Export) -> int:
        return self._numbers.of(export.volume, lambda: self._taken(export.initiators))

    def _taken(self, initiators: Collection[str]) -> set[int]:
        """LUN numbers that these initiators' hosts use for anything."""
        wanted = {initiator.lower() for initiator in initiators}
        hosts = {host.name for host in self._all() if wanted & set(_initiators(host))}
        return {
            int(each.lun)
            for each in self._array.call("get_connections", "list its connections")
            if value(each, "host", "name") in hosts and value(each, "lun") is not None
        }

    def _connection(self, volume: str, host: str) -> list[Any]:
        return self._array.call(
            "get_connections",
            f"find the connection of {volume}",
            volume_names=[volume],
            host_names=[host],
        )

    def _connect(self, volume: str, host: str, number: int) -> None:
        try:
            self._array.call(
                "post_connections",
                f"connect {volume} to {host} as LUN {number}",
                volume_names=[volume],
                host_names=[host],
                connection=self._array.model("ConnectionPost", lun=number),
            )
        except ArrayRefusedError as error:
            # Either this very connection, made by a call that was cut short, or the number is taken.
            if not error.present or all(
                value(each, "lun") != number for each in self._connection(volume, host)
            ):
                raise

    def _disconnect(self, volume: str, hosts: Iterable[str]) -> None:
        for host in hosts:
            self._array.remove(
                "delete_connections",
                f"disconnect {volume} from {host}",
                volume_names=[volume],
                host_names=[host],
            )

    def _drop_idle(self, hosts: Iterable[str]) -> None:
        """Delete those hosts of ours that nothing is connected to any more."""
        for host in sorted(host for host in hosts if self._names.is_host(host)):
            try:
                if not self._array.call(
                    "get_connections", f"list the connections of {host}", host_names=[host]
                ):
                    self._array.remove("delete_hosts", f"delete host {host}", names=[host])
                    self._notes.put_note(f"chap:{host}", None)
            except ArrayRefusedError as error:
                if not error.absent and "existing connections" not in error.said:
                    raise

    def _all(self) -> Sequence[Any]:
        return self._array.call("get_hosts", "list its hosts")

    def _hosts_of(self, exports: Iterable[Export]) -> dict[str, str]:
        """Hosts by initiator, all of which are there then."""
        accounts = {
            initiator: export.chap.get(initiator)
            for export in exports
            for initiator in export.initiators
        }
        there = self._all() if accounts else ()
        return {
            initiator: self._host(there, initiator, chap) for initiator, chap in accounts.items()
        }

    def _host(
        self,
        there: Iterable[Any],
        initiator: str,
        chap: Chap | None,
        personality: str | None = "esxi",
    ) -> str:
        """The name of the host that has an initiator, with this CHAP account."""
        found = _with(there, initiator)
        if found is None:
            name = self._names.host(initiator)
            fields: dict[str, object] = {"personality": personality} if personality else {}
            if is_fibre_channel(initiator):
                fields["wwns"] = [initiator.removeprefix("naa.").upper()]
            else:
                fields["iqns"] = [initiator]
            try:
                self._array.call(
                    "post_hosts",
                    f"create host {name}",
                    names=[name],
                    host=self._array.model("HostPost", **fields),
                )
            except ArrayRefusedError:
                # A call whose answer got lost may have made it before.
                found = _with(self._all(), initiator)
                if found is None:
                    raise
            else:
                self._set_chap(name, None, chap)
                return name
        name = str(found.name)
        user = value(found, "chap", "host_user")
        if self._names.is_host(name):
            self._set_chap(name, user, chap)
        elif (chap.user if chap else None) != (user or None):
            raise StorageConflictError(
                f"Host {name} of FlashArray {self._array.name} has initiator {initiator} and "
                f"{f'CHAP user {user}' if user else 'no CHAP'}, and Atoll did not make it; give "
                "the host what the settings say by hand, or correct the settings."
            )
        return name

    def _set_chap(self, host: str, user: str | None, chap: Chap | None) -> None:
        """Give one of our hosts an account; the array never shows secrets, so a digest is noted."""
        key = f"chap:{host}"
        if chap is None:
            if user:
                self._patch_chap(host, "", "", "", "")
            self._notes.put_note(key, None)
            return
        told = _digest(host, chap)
        if user != chap.user or self._notes.note(key) != told:
            self._notes.put_note(key, None)
            self._patch_chap(
                host, chap.user, chap.secret, chap.mutual_user or "", chap.mutual_secret or ""
            )
            self._notes.put_note(key, told)

    def _patch_chap(self, host: str, user: str, secret: str, mutual: str, proof: str) -> None:
        account = self._array.model(
            "Chap",
            host_user=user,
            host_password=secret,
            target_user=mutual,
            target_password=proof,
        )
        self._array.call(
            "patch_hosts",
            f"set the CHAP account of host {host}",
            names=[host],
            host=self._array.model("HostPatch", chap=account),
        )


def list_ports(array: FlashArray) -> list[Any]:
    """All ports of the array, of whatever kind."""
    return [port for page in array.pages("get_ports", "list its ports") for port in page]


def _initiators(host: Any) -> list[str]:
    """All of a host's initiators as Atoll writes them, in lower case, which is all the same."""
    iqns = [str(iqn).lower() for iqn in value(host, "iqns") or ()]
    return iqns + [f"naa.{_plain(wwn)}" for wwn in value(host, "wwns") or ()]


def _with(hosts: Iterable[Any], initiator: str) -> Any:
    """The host that has an initiator, or None."""
    return next((one for one in hosts if initiator.lower() in _initiators(one)), None)


def _plain(wwn: str) -> str:
    return wwn.replace(":", "").lower()


def _digest(host: str, chap: Chap) -> str:
    text = f"{host}\t{chap.user}\t{chap.secret}\t{chap.mutual_user}\t{chap.mutual_secret}"
    return hashlib.sha256(text.encode()).hexdigest()
