"""Disks of a pool, which come and go while it is in use."""

import threading
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from atoll.cli.output import as_json, err, out, size, table
from atoll.cli.storage.arguments import Json, System, engine
from atoll.storage.interface import StorageEngine

app = typer.Typer(help="Disks of the pool.", no_args_is_help=True)

_POLL_SECONDS = 1.0

Device = Annotated[str, typer.Argument(metavar="DISK", help="For example /dev/sdc.")]


@app.command("list")
def list_devices(json: Json = False, system: System = None) -> None:
    """List the pool's disks, how full each is and what errors it had."""
    found = engine(system).devices()
    if json:
        as_json(list(found))
        return
    table(
        ["disk", ">size", ">used", ">errors", "state"],
        [
            (
                device.path,
                size(device.size_bytes),
                f"{size(device.used_bytes)} "
                f"({device.used_bytes / device.size_bytes if device.size_bytes else 0:.0%})",
                str(device.errors),
                "missing" if device.missing else "errors seen" if device.errors else "good",
            )
            for device in found
        ],
    )


@app.command("add")
def add_device(disk: Device, system: System = None) -> None:
    """Give the pool another empty disk, while it is in use."""
    engine(system).add_device(disk)
    out.print(f"{disk} belongs to the pool now.")


@app.command("remove")
def remove_device(disk: Device, system: System = None) -> None:
    """Move everything off a disk and let it go, while the pool is in use.

    May take hours. If it is cut short, what was moved stays moved: run it again.
    """
    chosen = engine(system)
    with _draining(chosen, disk):
        chosen.remove_device(disk)
    out.print(f"{disk} is out of the pool and empty.")


class _draining:
    """Shows how much of a disk is still to be moved, on a terminal."""

    def __init__(self, chosen: StorageEngine, disk: str) -> None:
        self._chosen = chosen
        self._disk = disk
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> None:
        if err.is_terminal:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _left(self) -> int:
        return sum(
            device.used_bytes for device in self._chosen.devices() if device.path == self._disk
        )

    def _show(self) -> None:
        whole = self._left()
        with Progress(
            TextColumn("moving off {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]} left"),
            TimeElapsedColumn(),
            console=err,
        ) as bar:
            task = bar.add_task(self._disk, total=whole or 1, left=size(whole))
            while not self._over.wait(_POLL_SECONDS):
                left = self._left()
                bar.update(task, completed=max(0, whole - left), left=size(left))
