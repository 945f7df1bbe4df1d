"""`atoll agent invite`, `serve-enrolment` and `enroll`: how a guest comes to be protected."""

import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.agent.arguments import applications, endpoint, find_vm, own_address, span
from atoll.cli.output import moment, out
from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.enrolment import DEFAULT_PORT, enrol
from atoll.guests.invitation import Invitation, Invitations
from atoll.guests.reception import DEFAULT_RECEPTION_PORT, Arrival, Reception
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import AgentUnavailableError, AtollError

_LISTEN = f"0.0.0.0:{DEFAULT_RECEPTION_PORT}"
_ANSWER_SECONDS = 60.0
_LOOK_SECONDS = 1.0

Vm = Annotated[str, typer.Argument(help="Name or instance UUID of the VM.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The agent's port there.")]
Listen = Annotated[str, typer.Option(help="Where to listen for guests that enrol, ADDRESS:PORT.")]


def invite(
    vm: Vm,
    valid: Annotated[str, typer.Option(help="How long the token is good: 30m, 1h, 2d.")] = "1h",
    address: Annotated[
        str, typer.Option(help="Where the director reaches the guest; else whence it enrols.")
    ] = "",
    port: Port = DEFAULT_PORT,
    director: Annotated[
        str,
        typer.Option(help="HOST:PORT where the guest reaches this machine, if it is not obvious."),
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Listen until the guest has enrolled.")
    ] = False,
    listen: Listen = _LISTEN,
    any_guest: Annotated[
        bool, typer.Option("--any-guest", help="Do not compare the guest's UUID with the VM's.")
    ] = False,
) -> None:
    """Make a one-time token with which a guest enrols as that VM.

    The guest must have the agent installed (`atoll agent package`) and reach
    this machine while `--wait` or `atoll agent serve-enrolment` listens.
    """
    valid_seconds, listening = span(valid), endpoint(listen)
    way = endpoint(director) if director else (own_address(address), listening[1])
    site = context.site()
    found = find_vm(site, vm)
    authority = site.authority()
    invitation, token = Invitations(authority.directory).create(
        vm_name=found.name,
        instance_uuid=found.instance_uuid,
        bios_uuid="" if any_guest else found.bios_uuid,
        address=address,
        port=port,
        listen_port=port,
        valid_seconds=valid_seconds,
        pin=authority.enrolment_identity()[1],
        endpoint=way,
    )
    out.print(f"Token for {found.name}, good once, until {moment(invitation.expires_at)}:")
    # On a line of its own and unbroken, to be copied.
    out.print(token, soft_wrap=True)
    out.print("In the guest, as root, run this and paste the token:")
    out.print("  atoll-agent enrol")
    out.print(f"It connects to {way[0]}:{way[1]}.")
    if wait:
        _await(authority, invitation, listening)
    else:
        out.print("`atoll agent serve-enrolment` must run here meanwhile.")


def serve_enrolment(listen: Listen = _LISTEN) -> None:
    """Let guests enrol with their tokens, until stopped.

    Nothing else of Atoll needs this; run it while guests are being set up.
    """
    authority = context.site().authority()
    with Reception(authority, endpoint(listen), _report) as reception:
        open_now = [one.vm_name for one in Invitations(authority.directory).all() if one.open]
        out.print(f"Guests can enrol on port {reception.port}. Stop with Ctrl-C.")
        out.print(f"Tokens that wait to be used: {', '.join(open_now) or 'none yet'}.")
        threading.Event().wait()


def enroll(
    vm: Vm,
    address: Annotated[str, typer.Option(help="Where the director reaches the guest.")],
    port: Port = DEFAULT_PORT,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The tar to write; VM-agent.tar by default.")
    ] = None,
    applications_file: Annotated[
        Path | None,
        typer.Option(
            "--applications",
            help="JSON list of what to add to the applications the agent finds, such as a witness.",
        ),
    ] = None,
) -> None:
    """Make the tar that turns a guest without a way to here into a protected one.

    Unpack it over the guest's root directory and start atoll-agent. It holds a
    private key: move it over a safe channel and delete it afterwards. A guest
    that can reach this machine needs no such thing: `atoll agent invite`.
    """
    site = context.site()
    found = find_vm(site, vm)
    target = out_file or Path(f"{found.name}-agent.tar")
    enrol(
        site.authority(),
        found.name,
        found.instance_uuid,
        target,
        address=address,
        port=port,
        applications=applications(applications_file),
    )
    out.print(f"Wrote {target}. In the guest, as root:")
    out.print(f"  tar -C / -xf {target.name}")
    out.print("  systemctl daemon-reload && systemctl enable --now atoll-agent")


def _await(authority: Authority, invitation: Invitation, listen: tuple[str, int]) -> None:
    """Listen until the invitation's guest has enrolled and answers, or its time is over."""
    came: list[EnrolledAgent] = []
    done = threading.Event()

    def arrived(arrival: Arrival) -> None:
        _report(arrival)
        if arrival.enrolled is not None and arrival.invitation.id == invitation.id:
            came.append(arrival.enrolled)
            done.set()

    with Reception(authority, listen, arrived) as reception:
        out.print(f"Waiting for {invitation.vm_name} on port {reception.port}. Stop with Ctrl-C.")
        if not done.wait(max(0.0, invitation.expires_at - time.time())):
            raise AgentUnavailableError(
                f"No guest enrolled as {invitation.vm_name} before the token expired; invite it "
                "again, and see whether it can reach this machine."
            )
        # Listening still, for a guest that lost the answer and asks again.
        _await_answer(authority, came[-1])


def _await_answer(authority: Authority, agent: EnrolledAgent) -> None:
    registry = AgentRegistry(authority.directory)
    end = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            status = AgentChannel(agent, authority.credentials, registry).status()
        except AtollError:
            if time.monotonic() > end:
                raise
            time.sleep(_LOOK_SECONDS)
        else:
            out.print(f"The agent of {agent.name} answers; its version is {status.version}.")
            return


def _report(arrival: Arrival) -> None:
    who = arrival.hostname or "a guest"
    if arrival.enrolled is None:
        out.print(f"{who} at {arrival.peer} was refused: {arrival.remark}")
        return
    agent = arrival.enrolled
    out.print(f"{who} at {arrival.peer} enrolled as {agent.name}. {arrival.remark}".rstrip())
