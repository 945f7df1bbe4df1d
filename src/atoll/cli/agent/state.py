"""`atoll agent list` and `check`: how the agents are and what they would hold."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import typer

from atoll import __version__
from atoll.cli import context
from atoll.cli.agent.arguments import choose
from atoll.cli.agent.words import until
from atoll.cli.output import as_json, out, seconds, table
from atoll.guests.authority import is_due
from atoll.guests.interface import FoundApplication, FoundFilesystem
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import AtollError, ConfigurationError
from atoll.service.site import Site

# A signer that ends sooner than this is worth a word each time somebody looks.
_AUTHORITY_WARNING_SECONDS = 365 * 86400.0
_CLOCK_WARNING_SECONDS = 60.0
_WANTING = 4
_AT_ONCE = 16

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An enrolled agent and what it said just now. `certificate_expires_at` is since the epoch."""

    name: str
    instance_uuid: str
    address: str
    port: int
    state: str
    version: str
    clock_offset_seconds: float | None
    certificate_expires_at: float | None
    problem: str


@dataclass(frozen=True, slots=True)
class AgentCheck(AgentRow):
    """The same with what it would hold, and what its admin should look at."""

    applications: tuple[FoundApplication, ...] = ()
    filesystems: tuple[FoundFilesystem, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def list_agents(json: Json = False) -> None:
    """List enrolled agents and ask each how it is."""
    site = context.site()
    authority = site.authority()
    agents = AgentRegistry(authority.directory).agents()
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        rows = list(pool.map(lambda agent: _row(site, agent), agents))
    if json:
        as_json(rows)
        return
    table(
        ["VM", "address", "state", "version", "certificate", ">clock", "~problem"],
        [
            (
                row.name,
                f"{row.address}:{row.port}",
                row.state,
                row.version,
                until(row.certificate_expires_at),
                "-" if row.clock_offset_seconds is None else seconds(row.clock_offset_seconds),
                row.problem,
            )
            for row in rows
        ],
    )
    if authority.expires_at - time.time() < _AUTHORITY_WARNING_SECONDS:
        out.print(
            f"The agents' certificate authority: {until(authority.expires_at)}; replace it with "
            "`atoll agent renew-authority`."
        )


def check(
    vms: Annotated[list[str] | None, typer.Argument(help="Names or instance UUIDs.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All enrolled agents.")] = False,
    json: Json = False,
) -> None:
    """Ask agents what they would hold, and say what is wrong with each, if anything.

    Holds nothing. Ends with status 4 when an agent does not answer or something is not as it
    should be.
    """
    if bool(vms) == everyone:
        raise ConfigurationError("Name VMs, or say --all.")
    site = context.site()
    authority = site.authority()
    enrolled = AgentRegistry(authority.directory).agents()
    agents: Sequence[EnrolledAgent] = choose(enrolled, vms) if vms else enrolled
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        checks = list(pool.map(lambda agent: _check(site, agent), agents))
    if json:
        as_json(checks)
    else:
        for one in checks:
            _tell(one)
    if any(one.problem or one.remarks for one in checks):
        raise typer.Exit(_WANTING)


def _row(site: Site, agent: EnrolledAgent) -> AgentRow:
    state, version, problem = "away", "-", ""
    offset: float | None = None
    try:
        status = site.agents()[agent.instance_uuid].status()
        state, version, offset = status.state, status.version, status.clock_offset_seconds
    except AtollError as error:
        problem = str(error)
    return AgentRow(
        name=agent.name,
        instance_uuid=agent.instance_uuid,
        address=agent.address,
        port=agent.port,
        state=state,
        version=version,
        clock_offset_seconds=offset,
        certificate_expires_at=agent.expires_at,
        problem=problem,
    )


def _check(site: Site, agent: EnrolledAgent) -> AgentCheck:
    row = _row(site, agent)
    applications: tuple[FoundApplication, ...] = ()
    filesystems: tuple[FoundFilesystem, ...] = ()
    problem = row.problem
    if not problem:
        try:
            found = site.agents()[agent.instance_uuid].look()
            applications, filesystems = found.applications, found.filesystems
        except AtollError as error:
            problem = str(error)
    return AgentCheck(
        name=row.name,
        instance_uuid=row.instance_uuid,
        address=row.address,
        port=row.port,
        state=row.state,
        version=row.version,
        clock_offset_seconds=row.clock_offset_seconds,
        certificate_expires_at=row.certificate_expires_at,
        problem=problem,
        applications=applications,
        filesystems=filesystems,
        remarks=tuple(_remarks(site, row, None if problem else filesystems)),
    )


def _remarks(site: Site, row: AgentRow, filesystems: Sequence[FoundFilesystem] | None) -> list[str]:
    """What its admin should look at; `filesystems` None when the agent could not say."""
    remarks = []
    if not row.problem and _older(row.version, __version__):
        remarks.append(f"its version {row.version} is older than the director's, {__version__}")
    expires_at = row.certificate_expires_at
    if expires_at is not None and is_due(expires_at, site.authority().leaf_days):
        remarks.append(
            f"its certificate is due: {until(expires_at)}; `atoll agent renew` renews it"
        )
    if row.clock_offset_seconds is not None and (
        abs(row.clock_offset_seconds) > _CLOCK_WARNING_SECONDS
    ):
        late = "behind" if row.clock_offset_seconds < 0 else "ahead"
        remarks.append(f"its clock is {seconds(abs(row.clock_offset_seconds))} {late}")
    if filesystems is not None and not filesystems:
        remarks.append("it finds no file system to freeze")
    return remarks


def _tell(one: AgentCheck) -> None:
    out.print(
        f"{one.name}: {one.state}, version {one.version}, certificate "
        f"{until(one.certificate_expires_at)}"
    )
    for application in one.applications:
        remark = f": {application.remark}" if application.remark else ""
        out.print(f"  application  {application.kind} {application.name}{remark}")
    for filesystem in one.filesystems:
        out.print(f"  file system  {filesystem.mount}  {filesystem.fstype} on {filesystem.source}")
    for sentence in (*([one.problem] if one.problem else []), *one.remarks):
        out.print(f"  ! {sentence}")


def _older(theirs: str, ours: str) -> bool:
    """Whether the first three numbers of a version come before ours; what is no version does."""
    return _numbers(theirs) < _numbers(ours)


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")[:3]]
