"""A real agent in this process: its server over TLS, with nothing to hold unless given."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll_agent.config import Config, load_config
from atoll_agent.keeper import Keeper
from atoll_agent.server import AgentServer

UUID = "50123456-789a-bcde-f012-3456789abcde"


@dataclass
class ServedAgent:
    """The agent's parts, the files it was enrolled with, and the director's way to it."""

    authority: Authority
    config: Config
    keeper: Keeper
    server: AgentServer

    @property
    def registry(self) -> AgentRegistry:
        return AgentRegistry(self.authority.directory)

    @property
    def entry(self) -> EnrolledAgent:
        found = self.registry.get(self.config.instance_uuid)
        assert found is not None
        return found

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.server.server_address[1])

    def channel(self) -> AgentChannel:
        return AgentChannel(self.entry, self.authority.credentials, self.registry)


@contextlib.contextmanager
def served_agent(
    where: Path,
    authority: Authority,
    *,
    name: str = "db1",
    instance_uuid: str = UUID,
    find_applications: Callable[[], Sequence[Any]] = list,
) -> Iterator[ServedAgent]:
    """Enrol into `where`/`name`, as a guest's /etc/atoll, and serve on a free port of loopback."""
    issued = authority.issue_agent(name, instance_uuid)
    (where / name).mkdir()
    (where / name / "agent.pem").write_bytes(issued.pem)
    (where / name / "ca.crt").write_bytes(authority.trusted)
    files = {"certificate": "agent.pem", "key": "agent.pem", "authority": "ca.crt"}
    nothing = {"address": "127.0.0.1", "port": 0, "discover": False, "freeze_only": []}
    given = {"name": name, "instance_uuid": instance_uuid, **files, **nothing}
    path = where / name / "agent.json"
    path.write_text(json.dumps(given))
    config = load_config(path)
    with serving(config, Keeper(find_applications, list)) as server:
        AgentRegistry(authority.directory).put(
            EnrolledAgent(
                instance_uuid=instance_uuid,
                name=name,
                address="127.0.0.1",
                port=server.server_address[1],
                fingerprint=issued.fingerprint,
                expires_at=issued.expires_at,
                authority=issued.authority,
                trusts=authority.trusted_fingerprints,
            )
        )
        yield ServedAgent(authority, config, server.keeper, server)


@contextlib.contextmanager
def serving(config: Config, keeper: Keeper) -> Iterator[AgentServer]:
    """The agent's server in a thread of this process; holds nothing afterwards."""
    server = AgentServer(config, keeper)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        keeper.stop()
        server.shutdown()
        thread.join()
        server.server_close()
