"""The command line's way to the site named by --config."""

import atexit
from pathlib import Path

from atoll.service.site import Site
from atoll.wiring import open_site

_chosen: list[Path | None] = [None]


def choose(config: Path | None) -> None:
    """Remember which settings file this command uses."""
    _chosen[0] = config


def chosen() -> Path | None:
    """The settings file of this command, None for the usual places."""
    return _chosen[0]


def site(*, accept_less: bool = False) -> Site:
    """The site of the chosen settings."""
    opened = open_site(_chosen[0], accept_less=accept_less)
    atexit.register(opened.close)
    return opened
