"""What people write on the command line, read into what the commands need."""

import json
import re
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from atoll.guests.reception import DEFAULT_RECEPTION_PORT
from atoll.guests.registry import EnrolledAgent
from atoll.model.errors import ConfigurationError, UnknownVmError
from atoll.model.inventory import VirtualMachine
from atoll.service.site import Site

_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def find_vm(site: Site, vm: str) -> VirtualMachine:
    """The one VM of that name or instance UUID; UnknownVmError otherwise."""
    found = [
        item for item in site.vcenter().inventory().vms if vm in (item.name, item.instance_uuid)
    ]
    if len(found) != 1:
        raise UnknownVmError(
            f"vCenter knows {len(found)} VMs called {vm}; `atoll inventory` lists all."
        )
    return found[0]


def choose(agents: Sequence[EnrolledAgent], names: Sequence[str]) -> list[EnrolledAgent]:
    """The enrolled agents of these VMs, by name or instance UUID; UnknownVmError names a stranger."""
    chosen = []
    for name in names:
        found = [agent for agent in agents if name in (agent.name, agent.instance_uuid)]
        if len(found) != 1:
            raise UnknownVmError(
                f"{len(found)} agents are enrolled for {name}; `atoll agent list` lists all."
            )
        chosen += found
    return chosen


def span(text: str) -> float:
    """`90s`, `30m`, `1h`, `2d` in seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if found is None:
        raise ConfigurationError(f"{text} is not a time such as 30m, 1h or 2d.")
    return int(found[1]) * _SPANS[found[2]]


def endpoint(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT or [ADDRESS]:PORT; the port is the enrolment endpoint's when left out."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s]+))(?::([0-9]{1,5}))?", text)
    port = int(found[3] or DEFAULT_RECEPTION_PORT) if found else 0
    if found is None or port > 65535:
        raise ConfigurationError(f"{text} is not HOST:PORT.")
    return found[1] or found[2], port


def own_address(towards: str) -> str:
    """How a guest at that address most likely reaches this machine; its name when none is given."""
    if towards:
        try:
            [first, *_] = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)
            # Connecting a datagram socket sends nothing; it only asks for the route.
            with closing(socket.socket(first[0], socket.SOCK_DGRAM)) as route:
                route.connect(first[4])
                return str(route.getsockname()[0])
        except OSError as error:
            raise ConfigurationError(
                f"There is no way to {towards} from here ({error}); check --address."
            ) from error
    return socket.getfqdn()


def applications(path: Path | None) -> list[dict[str, object]]:
    """The JSON list of a file, as `agent.json` takes it; empty for None."""
    if path is None:
        return []
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise ConfigurationError(f"{path} must hold a JSON list of objects.")
    return given
