"""The applications the agent can hold: a module in this package and a line here for each.

A module has `discover(configured, look)`: its servers that can be held, those
that `agent.json` names and, with `look`, those it finds by itself. It is
imported only in guests that run or name its application.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from atoll_agent.application import Application, ApplicationConfig


@dataclass(frozen=True)
class Module:
    """What is known of an application without importing its module.

    `processes` are its servers' names in `/proc`; `keys` what an entry in
    `agent.json` may have beside `kind` and `name`.
    """

    kind: str
    processes: tuple[str, ...]
    keys: tuple[str, ...]


class Discoverer(Protocol):
    """The module itself."""

    def discover(
        self, configured: Sequence[ApplicationConfig], look: bool
    ) -> Sequence[Application]:
        """The servers that can be held, in a fixed order; `configured` are of its kind."""
        ...


MODULES = (
    Module(
        "postgresql",
        ("postgres", "postmaster"),
        ("socket", "data_directory", "port", "owner", "database", "witness"),
    ),
    Module("mariadb", ("mariadbd", "mysqld"), ("socket", "owner", "database", "witness")),
)


def find_module(kind: str) -> Module | None:
    """The line of that kind."""
    return next((module for module in MODULES if module.kind == kind), None)


def load_module(kind: str) -> Discoverer:
    """Import the module of a kind that has a line."""
    loaded: Discoverer = importlib.import_module(f"{__name__}.{kind}")
    return loaded
