"""`atoll agent package`: what is installed in guests."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.output import out
from atoll.guests.debian import build_package, package_name
from atoll.guests.files import write_atomically
from atoll.guests.package import build_agent
from atoll.model.errors import ConfigurationError


def package(
    deb: Annotated[
        Path | None,
        typer.Option(help="The Debian package to write, or the directory for it."),
    ] = None,
    pyz: Annotated[
        Path | None, typer.Option(help="The agent alone, as one file that Python runs.")
    ] = None,
) -> None:
    """Write the agent for installation in guests: a Debian package, one file, or both."""
    if deb is None and pyz is None:
        deb = Path()
    if deb is not None:
        target = deb / package_name() if deb.is_dir() else deb
        _write(target, build_package(), 0o644)
        out.print(f"Wrote {target}. In a guest, as root: apt install ./{target.name}")
    if pyz is not None:
        _write(pyz, build_agent(), 0o755)
        out.print(f"Wrote {pyz}.")


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        write_atomically(path, data, mode)
    except OSError as error:
        raise ConfigurationError(f"Cannot write {path}: {error.strerror}.") from error
