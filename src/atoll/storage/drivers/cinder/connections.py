"""Cinder's words for hosts and for how they reach a volume, to and from Atoll's.

Source: `initialize_connection` in Cinder's driver interface, and os-brick's connectors, which take
what it returns.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from atoll.model.errors import StorageConflictError
from atoll.model.storage import Portal
from atoll.storage.backend import Chap
from atoll.storage.drivers.array import is_fibre_channel
from atoll.storage.drivers.cinder.remembered import Connection
from atoll.storage.drivers.cinder.settings import Settings


def connectors(settings: Settings, initiators: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A connector for each host that the initiators are ports of, by the host's name.

    Ports that the settings give to no host are one of their own each.
    """
    ports: dict[str, list[str]] = {}
    for initiator in sorted(initiators):
        host = settings.host_of(initiator) or host_name(initiator)
        ports.setdefault(host, []).append(initiator)
    return {host: connector(host, each) for host, each in ports.items()}


def connector(host: str, initiators: Sequence[str]) -> dict[str, Any]:
    """A host as Cinder's drivers are told of it."""
    wwpns = [each.removeprefix("naa.") for each in initiators if is_fibre_channel(each)]
    iqns = [each for each in initiators if not is_fibre_channel(each)]
    return {
        "host": host,
        "ip": "0.0.0.0",  # noqa: S104 - nobody listens there: drivers for block storage ignore it
        "platform": "x86_64",
        "os_type": "linux",
        "multipath": True,
        "do_local_attach": False,
        **({"initiator": iqns[0]} if iqns else {}),
        **({"wwpns": wwpns, "wwnns": wwpns} if wwpns else {}),
    }


def host_name(initiator: str) -> str:
    """A name for the host of an initiator: readable, short, and no other initiator's."""
    tail = re.sub(r"[^A-Za-z0-9]+", "-", re.split(r"[:.]", initiator)[-1]).strip("-")
    return f"{tail[:16] or 'host'}-{sha256(initiator.encode()).hexdigest()[:6]}"


def portals(connections: Iterable[Connection]) -> tuple[Portal, ...]:
    """Where the hosts of these connections find the volume, each place once.

    A Fibre Channel port is `naa.` and its WWPN, without a port number.
    """
    found: dict[Portal, None] = {}
    for connection in connections:
        for portal in _portals(connection.kind, connection.data):
            found[portal] = None
    return tuple(found)


def chap(data: Mapping[str, Any]) -> Chap | None:
    """What the array asks for at login, if it asks."""
    if data.get("auth_method") != "CHAP":
        return None
    return Chap(str(data["auth_username"]), str(data["auth_password"]))


def _portals(kind: str, data: Mapping[str, Any]) -> list[Portal]:
    if kind == "iscsi":
        return _iscsi(data)
    if kind == "fibre_channel":
        return _fibre_channel(data)
    raise StorageConflictError(
        f"The array's driver presents volumes by {kind or 'nothing'}, and Atoll's hosts take iSCSI "
        "and Fibre Channel; use the array's driver for one of these."
    )


def _iscsi(data: Mapping[str, Any]) -> list[Portal]:
    addresses = data.get("target_portals") or [data["target_portal"]]
    targets = data.get("target_iqns") or [data["target_iqn"]] * len(addresses)
    numbers = data.get("target_luns") or [data["target_lun"]] * len(addresses)
    found = []
    for address, target, number in zip(addresses, targets, numbers, strict=True):
        host, _, port = str(address).rpartition(":")
        found.append(Portal(host.strip("[]"), int(port), str(target), int(number)))
    return found


def _fibre_channel(data: Mapping[str, Any]) -> list[Portal]:
    ports = data["target_wwn"] if "target_wwn" in data else data["target_wwns"]
    ports = [ports] if isinstance(ports, str) else list(ports)
    numbers = data.get("target_luns") or [data["target_lun"]] * len(ports)
    found = []
    for port, number in zip(ports, numbers, strict=True):
        name = f"naa.{str(port).replace(':', '').lower()}"
        found.append(Portal(name, 0, name, int(number)))
    return found
