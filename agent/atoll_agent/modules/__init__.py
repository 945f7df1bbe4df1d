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

    `processes` are its servers' names in `/proc`, or patterns of how they were
    started (`servers.matches`); `keys` what an entry in
    `agent.json` may have beside `kind` and `name`. One with a `directory` is
    looked for where that exists, whatever runs.
    """

    kind: str
    processes: tuple[str, ...]
    keys: tuple[str, ...]
    directory: str = ""


class Discoverer(Protocol):
    """The module itself."""

    def discover(
        self, configured: Sequence[ApplicationConfig], look: bool
    ) -> Sequence[Application]:
        """The servers that can be held, in a fixed order; `configured` are of its kind."""
        ...


VSS = "vss"
"""What is not a server but all of Windows'."""

_TLS = ("tls_authority", "tls_certificate", "tls_key")

MODULES = (
    Module(
        "postgresql",
        ("postgres", "postmaster"),
        ("socket", "data_directory", "port", "owner", "database", "witness"),
    ),
    Module(
        "mariadb",
        ("mariadbd", "mysqld"),
        ("socket", "owner", "password_file", "database", "witness"),
    ),
    Module(
        "redis",
        ("redis-server", "valkey-server", "keydb-server"),
        ("socket", "port", "user", "password_file", *_TLS, "witness"),
    ),
    Module(
        "mongodb",
        ("mongod",),
        ("socket", "port", "user", "password_file", "auth_database", *_TLS, "database", "witness"),
    ),
    Module(
        "oracle",
        ("ora_pmon_*",),
        ("sid", "home", "owner", "method", "witness", "container"),
    ),
    Module(
        "mssql",
        ("sqlservr",),
        ("address", "user", "password_file", "owner", "metadata_directory", "database", "witness"),
    ),
    Module("db2", ("db2sysc",), ("owner", "home", "databases", "witness")),
    Module(
        "informix",
        ("oninit",),
        ("server", "home", "onconfig", "owner", "database", "witness"),
    ),
    Module("hana", ("hdbnameserver",), ("owner", "key", "witness_key", "witness")),
    Module(
        "ase",
        ("dataserver",),
        ("server", "home", "owner", "user", "password_file", "database", "witness"),
    ),
    Module("maxdb", ("*/pgm/kernel",), ("owner", "program", "key", "witness")),
    Module(VSS, (), ("volumes", "writers", "truncate")),
    Module("domino", ("*/notes/*/linux/server",), ("data_directory", "program", "owner")),
    Module("hooks", (), ("command", "seconds"), directory="/etc/atoll/hooks.d"),
)


def find_module(kind: str) -> Module | None:
    """The line of that kind."""
    return next((module for module in MODULES if module.kind == kind), None)


def load_module(kind: str) -> Discoverer:
    """Import the module of a kind that has a line."""
    loaded: Discoverer = importlib.import_module(f"{__name__}.{kind}")
    return loaded
