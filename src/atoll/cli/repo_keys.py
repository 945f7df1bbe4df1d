"""`atoll repo key`: which keys open the repository, more of them, fewer of them."""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, table
from atoll.cli.storage.arguments import ask
from atoll.model.errors import ConfigurationError
from atoll.repository.repository import Repository
from atoll.service.keys import add_key_file, add_passphrase, add_recovery_key, check_passphrase
from atoll.settings import read_secret

app = typer.Typer(help="Keys that open the repository.", no_args_is_help=True)

NEW_PASSPHRASE = "ATOLL_NEW_PASSPHRASE"  # noqa: S105 - the name of a variable
Label = Annotated[str, typer.Option("--label", help="What it is for; can be read without the key.")]


@app.command("list")
def list_keys(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the keys that open the repository; `*` marks the one in use now."""
    slots = context.site().repository().keyring.slots()
    if json:
        as_json(slots)
        return
    table(
        ["slot", "kind", "made", "in use", "~label"],
        [
            (
                slot.name[:8],
                slot.kind,
                "-" if slot.created_at is None else _day(slot.created_at),
                "*" if slot.own else "",
                slot.label or "-",
            )
            for slot in slots
        ],
    )
    if any(slot.kind == "damaged" for slot in slots):
        err.print("Damaged slots open nothing; remove them when the others are safe.", style="red")


@app.command("add")
def add(
    passphrase_file: Annotated[
        Path | None, typer.Option(help="A file whose first line is the new passphrase.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="A key file instead; made if there is none.")
    ] = None,
    label: Label = "",
) -> None:
    """Let one more passphrase or key file open the repository.

    Without a file the passphrase is that of $ATOLL_NEW_PASSPHRASE, or it is asked for.
    """
    if key_file and passphrase_file:
        raise typer.BadParameter("give --key-file or --passphrase-file, not both")
    repository = context.site().repository()
    if key_file:
        slot, made = add_key_file(repository, key_file, label)
        if made:
            out.print(f"Made the key file {key_file}. Keep a copy elsewhere.")
    else:
        text = read_secret(passphrase_file) if passphrase_file else new_passphrase()
        slot = add_passphrase(repository, text, label)
    out.print(f"Slot {slot.name[:8]} opens the repository too.")


@app.command("remove")
def remove(
    slot: Annotated[str, typer.Argument(help="The slot, or the beginning of its name.")],
    even_own: Annotated[
        bool, typer.Option("--even-own", help="Also the one that opens the repository now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Let a key open the repository no longer. The last one cannot be removed."""
    keyring = context.site().repository().keyring
    ask(f"Remove key slot {slot}? What it was made for opens nothing any more.", yes=yes)
    removed = keyring.remove(slot, even_own=even_own)
    out.print(
        f"Removed slot {removed.name[:8]} ({removed.kind}). Whoever has its secret and an old copy of "
        "the repository can still read both; docs/operations/keys.md says what to do."
    )


@app.command("recovery")
def recovery(label: Label = "") -> None:
    """Make a recovery key, to be written down, and print it once."""
    print_recovery_key(context.site().repository(), label)


def print_recovery_key(repository: Repository, label: str = "") -> None:
    """Make a recovery key and show it, this once."""
    slot, text = add_recovery_key(repository, label)
    groups = text.split("-")
    out.print(f"Recovery key (slot {slot.name[:8]}), shown this once and kept nowhere:")
    out.print()
    for first in range(0, len(groups), 4):
        out.print(f"    {'-'.join(groups[first : first + 4])}{'-' if first == 0 else ''}")
    out.print()
    out.print(
        "Write it down and keep it where neither this machine nor the repository is. "
        "ATOLL_RECOVERY_KEY opens the repository with it."
    )


def new_passphrase() -> str:
    """A passphrase from $ATOLL_NEW_PASSPHRASE, or asked for twice; ConfigurationError without either."""
    if text := os.environ.get(NEW_PASSPHRASE):
        return check_passphrase(text)
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"A new passphrase is asked for and nobody can answer here; set {NEW_PASSPHRASE} or give "
            "--passphrase-file."
        )
    asked: str = typer.prompt("New passphrase", hide_input=True, confirmation_prompt="Once more")
    return check_passphrase(asked)


def _day(at: int) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d")
