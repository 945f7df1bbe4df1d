"""The `atoll` command: its groups, its errors, its exit statuses."""

import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from atoll import __version__
from atoll.cli import (
    agent,
    backup,
    capture,
    context,
    export,
    files,
    find,
    holds,
    inventory,
    island,
    mount,
    points,
    prove,
    recover,
    repo,
    restore,
    runs,
    storage,
    verify,
)
from atoll.cli.output import err
from atoll.cli.programs import find_programs
from atoll.model.errors import AtollError

app = typer.Typer(
    name="atoll",
    help="Backup for VMware farms from storage snapshots.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atoll {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings file; else $ATOLL_CONFIG, ./atoll.toml, /etc/atoll/atoll.toml."
        ),
    ] = None,
    copy: Annotated[
        str | None,
        typer.Option(
            envvar="ATOLL_COPY",
            help="Work with this copy of the settings instead of the repository.",
        ),
    ] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.choose(config, copy)


app.command("inventory")(inventory.inventory)
app.command("backup")(backup.backup)
app.command("capture")(capture.capture)
app.command("resume")(backup.resume)
app.command("cleanup")(backup.cleanup)
app.command("points")(points.points)
app.command("point")(points.point)
app.command("hold")(holds.hold)
app.command("release")(holds.release)
app.command("files")(files.files)
app.command("find")(find.find)
app.command("versions")(find.versions)
app.command("diff")(find.diff)
app.command("export")(export.export)
app.command("runs")(runs.runs)
app.command("mount")(mount.mount)
app.command("unmount")(mount.unmount)
app.command("verify")(verify.verify)
app.command("prove")(prove.prove)
app.add_typer(restore.app, name="restore")
app.add_typer(recover.app, name="recover")
app.add_typer(agent.app, name="agent")
app.add_typer(repo.app, name="repo")
app.add_typer(island.app, name="island")
app.add_typer(storage.app, name="storage")


def _add_plugins() -> None:
    for plugin in entry_points(group="atoll.commands"):
        app.add_typer(plugin.load(), name=plugin.name)


def run() -> None:
    """Entry point. An AtollError becomes one sentence on standard error and its exit status."""
    find_programs()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Like Ctrl-C: guests are let go at once, not when their lease ends.
        signal.signal(number, _interrupt)
    _add_plugins()
    try:
        app()
    except AtollError as error:
        said = " ".join([str(error), *getattr(error, "__notes__", ())])
        err.print(f"atoll: {said}", soft_wrap=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        err.print("atoll: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if os.environ.get("ATOLL_TRACE"):
            raise
        err.print(
            f"atoll: {type(error).__name__}: {error}. This is a defect of Atoll; run it again with "
            "ATOLL_TRACE=1 to see where.",
            soft_wrap=True,
        )
        sys.exit(AtollError.exit_status)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
