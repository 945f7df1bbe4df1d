"""The command line's way to the site named by --config."""

import atexit
from pathlib import Path

from atoll.service.site import Site
from atoll.wiring import open_site

_chosen: list[Path | None] = [None]
_copy: list[str | None] = [None]


def choose(config: Path | None, copy: str | None = None) -> None:
    """Remember which settings file this command uses, and which copy instead of the repository."""
    _chosen[0] = config
    _copy[0] = copy


def chosen() -> Path | None:
    """The settings file of this command, None for the usual places."""
    return _chosen[0]


def chosen_copy() -> str | None:
    """The copy that this command takes for the repository, None for the repository itself."""
    return _copy[0]


def site(*, accept_less: bool = False) -> Site:
    """The site of the chosen settings."""
    opened = open_site(_chosen[0], accept_less=accept_less, copy=_copy[0])
    atexit.register(opened.close)
    return opened
