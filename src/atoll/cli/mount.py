"""`atoll mount` and `atoll unmount`: a run's VMs as files for any backup software."""

import os
import signal
import sys
import syslog
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, moment, out, table
from atoll.fuse import device
from atoll.model.errors import AtollError
from atoll.service.mounting import Mounted, mounted

_WAIT_SECONDS = 3600
_MAX_TOLD = 100


def mount(
    reference: Annotated[
        str, typer.Argument(help="A run, the beginning of one, latest, or VM@RUN for one VM.")
    ],
    directory: Annotated[Path, typer.Argument(help="An empty directory of your own.")],
    background: Annotated[
        bool, typer.Option("--background", help="Return when the tree can be read.")
    ] = False,
    allow_other: Annotated[
        bool,
        typer.Option(
            "--allow-other", help="Let other users of this machine in, by the guests' modes."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Mount the disks and files of a run's VMs, read-only, until Ctrl-C or `atoll unmount`."""
    if background:
        _in_background(lambda ready: _serve(reference, directory, allow_other, json, ready))
    else:
        _serve(reference, directory, allow_other, json, None)


def unmount(
    directory: Annotated[Path, typer.Argument(help="Where a tree is mounted.")],
) -> None:
    """Unmount a tree that nobody reads any more; a dead one goes in any case."""
    device.unmount(directory.resolve())


def _serve(
    reference: str,
    directory: Path,
    allow_other: bool,
    json: bool,
    ready: Callable[[], None] | None,
) -> None:
    """Serve until the end; in the background `ready` says when it began."""
    told = _Told(background=ready is not None)
    with mounted(
        context.site(), reference, directory, allow_other=allow_other, on_failure=told
    ) as tree:
        _announce(tree, json=json)
        if ready is not None:
            ready()
        elif not json:
            out.print("Mounted until Ctrl-C or `atoll unmount`.")
            sys.stdout.flush()
        try:
            while not tree.server.wait(_WAIT_SECONDS):
                pass
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # tidying up is not to be cut short
    if tree.server.was_in_use:
        told.say(f"{tree.directory} was still in use; its readers were cut off.")


def _announce(tree: Mounted, *, json: bool) -> None:
    rows = list(zip(tree.vms, tree.names, strict=True))
    if json:
        as_json(
            [
                {
                    "vm": vm.name,
                    "directory": str(tree.directory / os.fsdecode(name)),
                    "run": vm.run,
                    "taken_at": vm.taken_at,
                    "consistency": str(vm.consistency),
                }
                for vm, name in rows
            ]
        )
    else:
        table(
            ["VM", "run", "taken", "consistency", "~directory"],
            [
                (
                    vm.name,
                    vm.run,
                    moment(vm.taken_at),
                    str(vm.consistency),
                    str(tree.directory / os.fsdecode(name)),
                )
                for vm, name in rows
            ],
        )
    sys.stdout.flush()


class _Told:
    """Says once what cannot be read: to the terminal, or to the system's log."""

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def __call__(self, error: AtollError) -> None:
        text = str(error)
        with self._lock:
            if text in self._said or len(self._said) >= _MAX_TOLD:
                return
            self._said.add(text)
        self.say(f"unreadable: {text}")

    def say(self, text: str) -> None:
        if self.background:
            syslog.syslog(syslog.LOG_WARNING, text)
        else:
            err.print(text, style="red", soft_wrap=True)


def _in_background(serve: Callable[[Callable[[], None]], None]) -> None:
    """Serve in a process of its own; return when it is ready, or end as it ended.

    Until then it has our terminal, so what it says and its errors are seen as ever.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        try:
            with os.fdopen(reading, "rb") as pipe:
                if pipe.read(1):
                    return
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)
            raise
        _, status = os.waitpid(child, 0)
        raise typer.Exit(os.waitstatus_to_exitcode(status) or 1)
    os.close(reading)
    os.setsid()
    syslog.openlog("atoll mount", syslog.LOG_PID)

    def ready() -> None:
        with Path(os.devnull).open("r+b") as nothing:
            for descriptor in (0, 1, 2):
                os.dup2(nothing.fileno(), descriptor)
        os.chdir("/")
        os.write(writing, b"1")
        os.close(writing)

    serve(ready)
