"""`atoll agent`: enrol guests and see whether their agents answer."""

import json as json_module
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, out, seconds, table
from atoll.guests.enrolment import DEFAULT_PORT, enrol
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import AtollError, ConfigurationError, UnknownVmError
from atoll.service.site import Site

app = typer.Typer(help="Enrol agents and see how they are.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An enrolled agent and what it said just now."""

    name: str
    instance_uuid: str
    address: str
    port: int
    state: str
    version: str
    clock_offset_seconds: float | None
    problem: str


@app.command("enroll")
def enroll(
    vm: Annotated[str, typer.Argument(help="Name or instance UUID of the VM.")],
    address: Annotated[str, typer.Option(help="Where the director reaches the guest.")],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The agent's port there.")
    ] = DEFAULT_PORT,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The tar to write; VM-agent.tar by default.")
    ] = None,
    applications: Annotated[
        Path | None,
        typer.Option(
            help="JSON list of what to add to the applications the agent finds, such as a witness."
        ),
    ] = None,
) -> None:
    """Make the tar that turns a guest into a protected one.

    Unpack it over the guest's root directory and start atoll-agent. It holds a
    private key: move it over a safe channel and delete it afterwards.
    """
    site = context.site()
    found = [
        item for item in site.vcenter().inventory().vms if vm in (item.name, item.instance_uuid)
    ]
    if len(found) != 1:
        raise UnknownVmError(
            f"vCenter knows {len(found)} VMs called {vm}; `atoll inventory` lists all."
        )
    target = out_file or Path(f"{found[0].name}-agent.tar")
    enrol(
        site.authority(),
        found[0].name,
        found[0].instance_uuid,
        target,
        address=address,
        port=port,
        applications=_applications(applications),
    )
    out.print(f"Wrote {target}. In the guest, as root:")
    out.print(f"  tar -C / -xf {target.name}")
    out.print("  systemctl daemon-reload && systemctl enable --now atoll-agent")


@app.command("list")
def list_agents(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List enrolled agents and ask each how it is."""
    site = context.site()
    agents = AgentRegistry(site.authority().directory).agents()
    with ThreadPoolExecutor(max_workers=16) as pool:
        rows = list(pool.map(lambda agent: _row(site, agent), agents))
    if json:
        as_json(rows)
        return
    table(
        ["VM", "address", "state", "version", ">clock", "~problem"],
        [
            (
                row.name,
                f"{row.address}:{row.port}",
                row.state,
                row.version,
                "-" if row.clock_offset_seconds is None else seconds(row.clock_offset_seconds),
                row.problem,
            )
            for row in rows
        ],
    )


def _row(site: Site, agent: EnrolledAgent) -> AgentRow:
    state, version, problem = "away", "-", ""
    offset: float | None = None
    try:
        status = site.agents()[agent.instance_uuid].status()
        state, version, offset = status.state, status.version, status.clock_offset_seconds
    except AtollError as error:
        problem = str(error)
    return AgentRow(
        agent.name, agent.instance_uuid, agent.address, agent.port, state, version, offset, problem
    )


def _applications(path: Path | None) -> list[dict[str, object]]:
    if path is None:
        return []
    try:
        given = json_module.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise ConfigurationError(f"{path} must hold a JSON list of objects.")
    return given
