"""`atoll agent renew`, `renew-authority`, `forget` and `withdraw`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.agent.arguments import choose
from atoll.cli.agent.words import until
from atoll.cli.output import as_json, out, table
from atoll.guests.authority import Authority
from atoll.guests.invitation import Invitations
from atoll.guests.registry import AgentRegistry
from atoll.guests.renewal import Renewed, renew_due
from atoll.guests.renewal import renew as renew_agents
from atoll.model.errors import ConfigurationError, UnknownVmError

_INCOMPLETE = 4

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def renew(
    vms: Annotated[
        list[str] | None, typer.Argument(help="Names or instance UUIDs; else what is due.")
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All agents, due or not.")] = False,
    json: Json = False,
) -> None:
    """Renew the certificates of agents: those named, all, or what is due, as each backup run does."""
    if vms and everyone:
        raise ConfigurationError("Name VMs or say --all, not both.")
    authority = context.site().authority()
    agents = AgentRegistry(authority.directory).agents()
    if vms or everyone:
        outcomes = renew_agents(authority, choose(agents, vms) if vms else agents)
    else:
        outcomes = renew_due(authority)
    _show(outcomes, json)
    _end(outcomes)


def renew_authority(json: Json = False) -> None:
    """Replace the authority that signs all certificates, as far as all agents come along.

    Repeat it until it says that it is done; agents that are away are waited
    for. Each backup run goes on with it too. `atoll agent forget` gives up one
    that will not come back.
    """
    authority = context.site().authority()
    outcomes = renew_due(authority.prepare_successor())
    now = Authority.open(authority.directory, authority.leaf_days)
    finished = len(now.trusted_fingerprints) == 1
    _show(outcomes, json)
    if not json:
        out.print(
            "Done: the new authority signs, and the old one is trusted no more."
            if finished
            else "The new authority is trusted; some agents are still to come along."
        )
    _end(outcomes, finished=finished)


def forget(vm: Annotated[str, typer.Argument(help="Name or instance UUID.")]) -> None:
    """Forget a VM's agent: the director will not call it any more. Stop it in the guest yourself."""
    registry = AgentRegistry(context.site().authority().directory)
    [agent] = choose(registry.agents(), [vm])
    registry.remove(agent.instance_uuid)
    out.print(f"The agent of {agent.name} is forgotten.")


def withdraw(vm: Annotated[str, typer.Argument(help="Name or instance UUID.")]) -> None:
    """Make the token that `invite` printed for a VM useless, if it was not used yet."""
    invitations = Invitations(context.site().authority().directory)
    found = [one for one in invitations.all() if vm in (one.vm_name, one.instance_uuid)]
    if not found:
        raise UnknownVmError(f"There is no token for {vm}; `atoll agent invite` makes one.")
    for one in found:
        invitations.withdraw(one.instance_uuid)
    out.print(f"The token for {vm} is void.")


def _show(outcomes: Sequence[Renewed], json: bool) -> None:
    if json:
        as_json(list(outcomes))
    elif outcomes:
        table(
            ["VM", "certificate", "~problem"],
            [(one.name, until(one.expires_at), one.problem) for one in outcomes],
        )
    else:
        out.print("No certificate is due.")


def _end(outcomes: Sequence[Renewed], *, finished: bool = True) -> None:
    if not finished or any(one.problem for one in outcomes):
        raise typer.Exit(_INCOMPLETE)
