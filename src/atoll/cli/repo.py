"""`atoll repo`: make a repository and see what it holds."""

import sys
from typing import Annotated

import typer

from atoll.cli import context, repo_copy, repo_keys, retention, verify
from atoll.cli.output import as_json, out, size, table
from atoll.wiring import create_repository

app = typer.Typer(help="Make, look at and tidy the repository.", no_args_is_help=True)
app.add_typer(repo_keys.app, name="key")
app.command("copy")(repo_copy.copy)
app.command("prune")(retention.prune)
app.command("forget")(retention.forget)
app.command("verify")(verify.verify)
app.command("repair")(verify.repair)


@app.command("init")
def init(
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help="Ask for a passphrase instead of what the settings name."
        ),
    ] = False,
    recovery_key: Annotated[
        bool | None,
        typer.Option(
            "--recovery-key/--no-recovery-key",
            help="Make a recovery key too and print it; else it is asked on a terminal.",
        ),
    ] = None,
    label: repo_keys.Label = "",
) -> None:
    """Make the repository the settings name, and its key file if there is none."""
    text = repo_keys.new_passphrase() if passphrase else None
    with create_repository(context.chosen(), text, label, context.chosen_copy()) as repository:
        out.print(f"Made {repository.stats().location}.")
        if recovery_key is None and sys.stdin.isatty():
            recovery_key = typer.confirm("Make a recovery key to write down too?", default=True)
        if recovery_key:
            repo_keys.print_recovery_key(repository)
    out.print(
        "Keep a copy of the key file or passphrase elsewhere: without any key nothing can be restored."
    )


@app.command("stats")
def stats(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show how much is kept and what it takes."""
    found = context.site().repository().stats()
    if json:
        as_json(found)
        return
    table(
        ["repository", ">points", ">their disks", ">chunks", ">stored", ">ratio"],
        [
            (
                found.location,
                str(found.points),
                size(found.logical_bytes),
                str(found.chunks),
                size(found.stored_bytes),
                f"{found.logical_bytes / found.stored_bytes:.1f}" if found.stored_bytes else "-",
            )
        ],
    )


@app.command("rebuild-index")
def rebuild_index() -> None:
    """Write the index anew from the packs, after `atoll verify` found it damaged."""
    written = context.site().repository().rebuild_index()
    out.print(f"Wrote {len(written)} index segments.")
