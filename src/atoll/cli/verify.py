"""`atoll verify`: read the whole repository and name what damage touches."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out
from atoll.cli.progress import LiveProgress
from atoll.model.errors import RepositoryDamagedError


def verify(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read every byte of the repository and check it; damage names the restore points it touches."""
    repository = context.site().repository()
    with LiveProgress() as progress:
        progress.stage("", "verify", repository.stats().stored_bytes)
        report = repository.verify(lambda done: progress.advance("", done))
    if json:
        as_json(report)
    elif not report.damaged:
        out.print(f"All {report.checked_chunks} chunks are what was written.")
    else:
        names = {point.id: f"{point.vm}@{point.run}" for point in repository.points()}
        for damage in report.damaged:
            touched = (
                ", ".join(names.get(each, each) for each in damage.points) or "no restore point"
            )
            err.print(f"{damage.object}: {damage.detail}; touches {touched}", style="red")
    if report.damaged:
        raise RepositoryDamagedError(
            f"{len(report.damaged)} objects of the repository are damaged; "
            "restore points not named above are whole."
        )
