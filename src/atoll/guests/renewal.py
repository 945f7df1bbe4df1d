"""Renews agents' certificates over the channel they have, and the authority behind them.

An agent makes its next key, the director signs it and writes down that the new
certificate may come, and only then sends it. From there on both are good until
the agent has shown the new one, so that no death in between locks anybody out.

An authority is succeeded in steps, each taken when every enrolled agent has
come along: both are trusted; the new one signs; the old one is trusted no more.
"""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from atoll.guests.authority import Authority, is_due
from atoll.guests.certificates import parse_public_key
from atoll.guests.channel import AgentChannel
from atoll.guests.connection import making_sense
from atoll.guests.registry import AgentRegistry, EnrolledAgent, ExpectedCertificate
from atoll.model.errors import AgentUnavailableError, AtollError

_CALL_SECONDS = 30.0
_MOST_AT_ONCE = 16
# Trust the new authority, be signed by it, forget the old one.
_STEPS = 3


@dataclass(frozen=True, slots=True)
class Renewed:
    """An agent whose certificate was to be renewed; `problem` says why it was not, if so.

    `expires_at` is of the certificate it has now, seconds since the epoch.
    """

    name: str
    instance_uuid: str
    expires_at: float | None
    problem: str


def due(authority: Authority, agents: Sequence[EnrolledAgent]) -> list[EnrolledAgent]:
    """The agents whose certificate nears its end, or whom a succession waits for.

    Not those that an older version enrolled, whose agents cannot be renewed.
    """
    return [agent for agent in agents if _is_due(authority, agent)]


def renew_due(authority: Authority) -> list[Renewed]:
    """Renew every agent that is due, and take the steps of a succession that are possible by now.

    Does not raise for an agent that does not answer; it stays due.
    """
    registry = AgentRegistry(authority.directory)
    outcomes: dict[str, Renewed] = {}
    for _ in range(_STEPS):
        stuck = {uuid for uuid, outcome in outcomes.items() if outcome.problem}
        chosen = [
            agent for agent in due(authority, registry.agents()) if agent.instance_uuid not in stuck
        ]
        outcomes |= {outcome.instance_uuid: outcome for outcome in renew(authority, chosen)}
        after = advance(authority)
        if after.trusted == authority.trusted and not _moved(authority, after):
            break
        authority = after
    return sorted(outcomes.values(), key=lambda outcome: outcome.name)


def renew(authority: Authority, agents: Sequence[EnrolledAgent]) -> list[Renewed]:
    """Renew these agents' certificates now, due or not, several at once, in their order."""
    if not agents:
        return []
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(agents))) as pool:
        return list(pool.map(lambda agent: _attempt(authority, agent), agents))


def advance(authority: Authority) -> Authority:
    """Take the next step of a succession if every enrolled agent is ready for it."""
    with Authority.changing(authority.directory, authority.leaf_days) as now:
        agents = AgentRegistry(now.directory).agents()
        newest = now.trusted_fingerprints[-1]
        if len(now.trusted_fingerprints) == 1:
            return now
        if now.signing_fingerprint != newest:
            return now.succeed() if all(newest in agent.trusts for agent in agents) else now
        return now.retire() if all(agent.authority == newest for agent in agents) else now


def renew_agent(authority: Authority, agent: EnrolledAgent) -> EnrolledAgent:
    """Give the agent a new certificate and have it shown; raises AgentUnavailableError.

    Cut short at any point, it can be repeated, and the agent can be called meanwhile.
    """
    registry = AgentRegistry(authority.directory)
    with Authority.steady(authority.directory, authority.leaf_days) as now:
        channel = AgentChannel(agent, now.credentials, registry)
        reply = channel.ask("POST", "/v1/renew", {}, _CALL_SECONDS)
        with making_sense(agent.name):
            public_key = parse_public_key(base64.b64decode(reply["public_key"], validate=True))
        signed = now.sign_agent(agent.name, agent.instance_uuid, public_key)
        # Before it is sent: who dies after sending must know it again.
        registry.expect(
            agent.instance_uuid,
            ExpectedCertificate(signed.fingerprint, signed.expires_at, signed.authority),
        )
        order = {"certificate": signed.certificate.decode(), "authorities": now.trusted.decode()}
        channel.ask("POST", "/v1/install", order, _CALL_SECONDS)
        registry.trusted_by(agent.instance_uuid, now.trusted_fingerprints)
        # Shows the new certificate, which voids the one before.
        channel.status()
    found = registry.get(agent.instance_uuid)
    if found is None or found.fingerprint != signed.fingerprint:
        raise AgentUnavailableError(
            f"The agent of {agent.name} took its new certificate and does not show it; "
            "restart it, and renew it again."
        )
    return found


def _attempt(authority: Authority, agent: EnrolledAgent) -> Renewed:
    try:
        renewed = renew_agent(authority, agent)
    except AtollError as error:
        return Renewed(agent.name, agent.instance_uuid, agent.expires_at, str(error))
    return Renewed(agent.name, agent.instance_uuid, renewed.expires_at, "")


def _is_due(authority: Authority, agent: EnrolledAgent) -> bool:
    if agent.expires_at is None:
        return False
    return (
        is_due(agent.expires_at, authority.leaf_days)
        or agent.trusts != authority.trusted_fingerprints
        or agent.authority != authority.signing_fingerprint
    )


def _moved(before: Authority, after: Authority) -> bool:
    return before.signing_fingerprint != after.signing_fingerprint
