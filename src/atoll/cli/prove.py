"""`atoll prove`: boot a restore point where nothing can reach it, and ask its database."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, out, table
from atoll.cli.progress import LiveProgress
from atoll.model.errors import ProofFailedError
from atoll.model.progress import Progress, Silent
from atoll.service.proving import prove_point


def prove(
    reference: Annotated[str, typer.Argument(help="VM@latest, VM@RUN or the start of a run.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the database.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, no progress.")] = False,
) -> None:
    """Boot a restore point in a sandbox without network; keep what the database said as evidence."""
    site = context.site()
    if json:
        evidence = prove_point(site, reference, timeout, Silent())
        as_json(evidence)
    else:
        with LiveProgress() as progress:
            watched: Progress = progress
            evidence = prove_point(site, reference, timeout, watched)
        table(
            ["fact", "~value"],
            [(name, _said(value)) for name, value in sorted(evidence.facts.items())],
        )
        out.print(evidence.summary, soft_wrap=True)
    if not evidence.passed:
        raise ProofFailedError(f"The restore test of {reference} failed: {evidence.summary}")


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
