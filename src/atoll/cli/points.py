"""`atoll points` and `atoll point`: what can be restored, and how far it may be trusted."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from atoll.catalogue.contents import CatalogueVolume
from atoll.cli import context
from atoll.cli.files import one_line
from atoll.cli.holds import described
from atoll.cli.output import as_json, err, moment, out, seconds, size, table
from atoll.model.errors import RepositoryDamagedError
from atoll.model.points import Evidence, RestorePoint
from atoll.repository.repository import Repository
from atoll.service.cataloguing import catalogue_of

_FAULTS_SHOWN = 10


def points(
    vm: Annotated[str | None, typer.Argument(help="Only this VM's points.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List restore points, oldest first."""
    repository = context.site().repository()
    found = [point for point in repository.points() if vm in (None, point.vm, point.instance_uuid)]
    holds, now = repository.holds(), time.time()
    if lost := repository.lost_points:
        err.print(
            f"{len(lost)} objects with restore points are damaged and not shown; `atoll verify` says "
            "more.",
            style="red",
        )
    if json:
        as_json(
            [
                {
                    "point": point,
                    "evidence": repository.evidence(point.id),
                    "holds": holds.on(point.id, now),
                }
                for point in found
            ]
        )
        return
    if holds.damaged:
        err.print(
            f"{len(holds.damaged)} holds cannot be read, so every point counts as held.",
            style="red",
        )
    held = any(holds.on(point.id, now) for point in found)
    table(
        ["restore point", "taken", "consistency", "proven", ">size", ">read", ">added", "kind"]
        + (["on hold"] if held else []),
        [
            (
                f"{point.vm}@{point.run}",
                moment(point.created_at),
                str(point.proof.consistency),
                _proven(repository.evidence(point.id)),
                size(sum(disk.size_bytes for disk in point.disks)),
                size(sum(disk.read_bytes for disk in point.disks)),
                size(sum(disk.stored_bytes for disk in point.disks)),
                "incremental" if point.incremental else "full",
                *(["yes" if holds.on(point.id, now) else ""] if held else []),
            )
            for point in found
        ],
    )


def point(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one restore point: its disks, the proof of its hold, the evidence of its tests."""
    repository = context.site().repository()
    found = repository.find(reference)
    evidence = repository.evidence(found.id)
    volumes = _volumes(repository, found)
    holds = [each for each in repository.holds().found if each.point == found.id]
    if json:
        said = {"point": found, "evidence": evidence, "holds": holds, "volumes": volumes}
        as_json(said)
        return
    proof = found.proof
    out.print(f"{found.vm}@{found.run}, taken {moment(found.created_at)}", style="bold")
    out.print(f"Consistency: {proof.consistency}" + "".join(f"\n  {why}" for why in proof.reasons))
    out.print(f"Snapshot {proof.snapshot} of {', '.join(found.groups)}, host {proof.host_before}")
    for why in proof.fell_back:
        out.print(f"A better way to hold it failed: {why}")
    if proof.vmware:
        out.print(
            f"Held by VMware snapshot {proof.vmware.name}, "
            + ("quiesced" if proof.vmware.quiesced else "not quiesced")
        )
    if proof.hold:
        hold = proof.hold
        out.print(
            f"Held for {seconds(hold.seconds)} of a {hold.lease_seconds:.0f} s lease, "
            + ("unbroken" if hold.unbroken else f"broken: {hold.reason}")
            + f"; file systems frozen: {', '.join(hold.filesystems) or 'none'}"
        )
        table(
            ["application", "~held", "position", "~witness", ">flush"],
            [
                (
                    f"{state.kind} {state.name}",
                    "yes" if state.held else state.detail or "no",
                    state.position,
                    state.witness or "-",
                    seconds(state.flush_seconds),
                )
                for state in hold.applications
            ],
        )
    table(
        ["disk", ">size", ">read", ">added", "LUN", "~where"],
        [
            (
                disk.label,
                size(disk.size_bytes),
                size(disk.read_bytes),
                size(disk.stored_bytes),
                ", ".join(disk.luns),
                disk.path,
            )
            for disk in found.disks
        ],
    )
    for volume in volumes:
        mounted = ", ".join(volume.mounts) or "not mounted"
        out.print(f"{volume.address} ({volume.kind}, {mounted}): {volume.entries} files listed")
        if volume.fault:
            err.print(f"  {volume.fault}", style="yellow")
        for fault in volume.faults[:_FAULTS_SHOWN]:
            err.print(f"  {one_line(fault.path)}: {one_line(fault.reason)}", style="yellow")
        if volume.fault_count > _FAULTS_SHOWN:
            err.print(f"  and {volume.fault_count - _FAULTS_SHOWN} more", style="yellow")
    for each in holds:
        out.print(described(each))
    for item in evidence:
        out.print(
            f"{'Proven' if item.passed else 'FAILED its proof'} {moment(item.proven_at)}: "
            f"{item.summary}"
        )


def _volumes(repository: Repository, point: RestorePoint) -> Sequence[CatalogueVolume]:
    """What its catalogue says of its volumes; nothing, and why, if that is damaged."""
    try:
        return catalogue_of(repository, point).volumes if point.catalogue else ()
    except RepositoryDamagedError as error:
        err.print(str(error), style="red")
        return ()


def _proven(evidence: Sequence[Evidence]) -> str:
    if not evidence:
        return "-"
    return moment(evidence[-1].proven_at) if evidence[-1].passed else "failed"
