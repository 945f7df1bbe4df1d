"""What the storage commands take, and how it is written."""

import re
import sys
import time
from dataclasses import dataclass
from typing import Annotated

import typer

from atoll.cli import context
from atoll.model.errors import ConfigurationError
from atoll.storage.federation import systems_of
from atoll.storage.interface import StorageEngine

_SIZE = re.compile(r"(\d+)\s*([KMGTP]?)(?:iB|B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_TIME = re.compile(r"(\d+)\s*([hdwmy])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "m": 30 * 24, "y": 365 * 24}


@dataclass(frozen=True, slots=True)
class LunAddress:
    """A LUN as the command line names it: `GROUP/LUN`."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


def _lun(text: str) -> LunAddress:
    group, _, name = text.partition("/")
    if not group or not name:
        raise typer.BadParameter(f"{text} is not GROUP/LUN")
    return LunAddress(group, name)


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text} is no size; write it like 500G or 2T")
    return int(found[1]) << 10 * _POWERS[found[2].upper()]


def ask(question: str, *, yes: bool) -> None:
    """Go on only if somebody says yes; where nobody can, `--yes` must have been given."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("this asks first and nobody can answer here; give --yes")
    typer.confirm(question, abort=True)


def expiry(text: str | None) -> float | None:
    """When something kept for so long may go (seconds since the epoch); None is never."""
    if text is None or text == "forever":
        return None
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text} is no time; write it like 12h, 7d, 4w or forever")
    return time.time() + int(found[1]) * _HOURS[found[2]] * 3600


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Group = Annotated[str, typer.Argument(help="The LUN group.")]
Snapshot = Annotated[str, typer.Argument(help="The snapshot's name.")]
Lun = Annotated[LunAddress, typer.Argument(parser=_lun, metavar="GROUP/LUN")]
Size = Annotated[int, typer.Argument(parser=_bytes, metavar="SIZE", help="For example 500G or 2T.")]
Force = Annotated[bool, typer.Option("--force", help="Also what is in use.")]
System = Annotated[
    str | None, typer.Option(help="Which storage system, where the settings have several.")
]


def engine(system: str | None = None) -> StorageEngine:
    """The site's storage, or the one system of it that was named."""
    whole = context.site().engine()
    if system is None:
        return whole
    for one in systems_of(whole):
        if one.name == system:
            return one
    raise ConfigurationError(
        f"The settings have no storage system {system}, only "
        f"{', '.join(one.name for one in systems_of(whole))}."
    )
