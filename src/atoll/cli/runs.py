"""`atoll runs`: which runs can be served straight from the storage's snapshots."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, moment, out, table
from atoll.island.runs import CapturedRun, captured_runs


def runs(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs whose snapshots the storage still has, oldest first."""
    found = captured_runs(context.site().engine())
    if json:
        as_json([_plain(run) for run in found])
        return
    if not found:
        out.print("The storage has no snapshots of a run; `atoll points` lists restore points.")
        return
    table(
        ["run", "taken", "~VMs", "~consistency", "~LUN groups"],
        [
            (
                run.name,
                moment(run.taken_at),
                ", ".join(vm.name for vm in run.certificate.vms),
                ", ".join(sorted({str(vm.consistency) for vm in run.certificate.vms})),
                ", ".join(run.certificate.groups),
            )
            for run in found
        ],
    )


def _plain(run: CapturedRun) -> dict[str, object]:
    return {
        "run": run.name,
        "taken_at": run.taken_at,
        "vms": [
            {
                "name": vm.name,
                "instance_uuid": vm.instance_uuid,
                "consistency": str(vm.consistency),
            }
            for vm in run.certificate.vms
        ],
        "groups": list(run.certificate.groups),
    }
