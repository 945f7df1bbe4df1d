"""Which agents are enrolled: one JSON file beside the authority."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll.guests.files import write_atomically
from atoll.model.errors import ConfigurationError

# More than one only after renewals that were cut short.
_MOST_PENDING = 8


@dataclass(frozen=True, slots=True)
class ExpectedCertificate:
    """A certificate that an agent may show from now on, because it was issued to it."""

    fingerprint: str
    expires_at: float
    authority: str


@dataclass(frozen=True, slots=True)
class EnrolledAgent:
    """An agent as the director knows it. `fingerprint` is its certificate's SHA-256, hex.

    `expires_at` (seconds since the epoch) and `authority` (the fingerprint of
    the one that signed) are of that certificate; None and empty when an older
    version enrolled it. `trusts` are the authorities the agent was last told to
    trust. `pending` are certificates issued since, the oldest first, of which
    it is not known whether the agent got them: each is as good as the present
    one until the agent shows a newer one. Enrolling again revokes all of them.
    """

    instance_uuid: str
    name: str
    address: str
    port: int
    fingerprint: str
    expires_at: float | None = None
    authority: str = ""
    trusts: tuple[str, ...] = ()
    pending: tuple[ExpectedCertificate, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """The fingerprints the agent may show."""
        return (self.fingerprint, *(one.fingerprint for one in self.pending))

    def showing(self, fingerprint: str) -> "EnrolledAgent":
        """The same agent once it has shown that certificate; those issued before are void."""
        accepted = self.accepted
        if fingerprint not in accepted[1:]:
            return self
        position = accepted.index(fingerprint)
        shown = self.pending[position - 1]
        return dataclasses.replace(
            self,
            fingerprint=shown.fingerprint,
            expires_at=shown.expires_at,
            authority=shown.authority,
            pending=self.pending[position:],
        )


class AgentRegistry:
    """`agents.json` in the agents' directory; every change is whole or not there after a crash."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "agents.json"

    def agents(self) -> tuple[EnrolledAgent, ...]:
        """All enrolled agents, by name. Raises ConfigurationError when the file cannot be read."""
        try:
            entries = json.loads(self._path.read_bytes())
            return tuple(sorted((_agent(entry) for entry in entries), key=_by_name))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"The list of agents {self._path} cannot be read; restore it or enrol again."
            ) from error

    def get(self, instance_uuid: str) -> EnrolledAgent | None:
        """The agent of that VM, if one is enrolled."""
        found = [agent for agent in self.agents() if agent.instance_uuid == instance_uuid]
        return found[0] if found else None

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

    def expect(self, instance_uuid: str, certificate: ExpectedCertificate) -> None:
        """Accept a further certificate of that agent, before it is sent to it.

        Absent is success: who was forgotten meanwhile stays forgotten.
        """

        def add(agent: EnrolledAgent) -> EnrolledAgent:
            return dataclasses.replace(
                agent, pending=(*agent.pending, certificate)[-_MOST_PENDING:]
            )

        self._change(instance_uuid, add)

    def confirm(self, instance_uuid: str, fingerprint: str) -> None:
        """The agent has shown that certificate: those issued before it are void. Repeatable."""
        self._change(instance_uuid, lambda agent: agent.showing(fingerprint))

    def trusted_by(self, instance_uuid: str, authorities: tuple[str, ...]) -> None:
        """The agent has taken these authorities for the ones to trust. Repeatable."""
        self._change(
            instance_uuid, lambda agent: dataclasses.replace(agent, trusts=tuple(authorities))
        )

    def _change(self, instance_uuid: str, change: Callable[[EnrolledAgent], EnrolledAgent]) -> None:
        with self._locked():
            before = self.agents()
            after = tuple(
                change(agent) if agent.instance_uuid == instance_uuid else agent for agent in before
            )
            if after != before:
                self._write(after)

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


def _agent(entry: Any) -> EnrolledAgent:
    pending = tuple(ExpectedCertificate(**one) for one in entry.get("pending", ()))
    trusts = tuple(entry.get("trusts", ()))
    return EnrolledAgent(**{**entry, "pending": pending, "trusts": trusts})


def _by_name(agent: EnrolledAgent) -> tuple[str, str]:
    return agent.name, agent.instance_uuid
