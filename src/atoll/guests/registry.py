"""Which agents are enrolled: one JSON file beside the authority."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll.guests.files import write_atomically
from atoll.model.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class EnrolledAgent:
    """An agent as it was enrolled. `fingerprint` is its certificate's SHA-256, hex.

    Only the newest certificate of a VM is accepted, so enrolling again revokes
    the one before.
    """

    instance_uuid: str
    name: str
    address: str
    port: int
    fingerprint: str


class AgentRegistry:
    """`agents.json` in the agents' directory; every change is whole or not there after a crash."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "agents.json"

    def agents(self) -> tuple[EnrolledAgent, ...]:
        """All enrolled agents, by name. Raises ConfigurationError when the file cannot be read."""
        try:
            entries = json.loads(self._path.read_bytes())
            return tuple(sorted((EnrolledAgent(**entry) for entry in entries), key=_by_name))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The list of agents {self._path} cannot be read; restore it or enrol again."
            ) from error

    def put(self, agent: EnrolledAgent) -> None:
        """Add an agent, or replace the one of the same VM."""
        with self._locked():
            others = [
                known for known in self.agents() if known.instance_uuid != agent.instance_uuid
            ]
            self._write((*others, agent))

    def remove(self, instance_uuid: str) -> None:
        """Forget a VM's agent; its certificate is of no use then. Absent is success."""
        with self._locked():
            self._write(
                tuple(agent for agent in self.agents() if agent.instance_uuid != instance_uuid)
            )

    def _write(self, agents: tuple[EnrolledAgent, ...]) -> None:
        text = json.dumps([asdict(agent) for agent in agents], indent=1) + "\n"
        write_atomically(self._path, text.encode(), 0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Reading, changing and writing is one act, also between processes."""
        lock = self._path.with_name(".agents.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _by_name(agent: EnrolledAgent) -> tuple[str, str]:
    return agent.name, agent.instance_uuid
