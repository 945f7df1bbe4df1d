"""Every application found in this guest."""

from atoll_agent import mariadb, postgresql
from atoll_agent.application import Application
from atoll_agent.config import Config
from atoll_agent.strangers import find_strangers


def discover(config: Config) -> list[Application]:
    """The servers that run now and can be held, in a fixed order."""
    return [
        *postgresql.discover(config.applications, config.discover),
        *mariadb.discover(config.applications, config.discover),
    ]


def all_running(config: Config) -> list[Application]:
    """The same, and then those of which nothing is known but that they run."""
    known = discover(config)
    return [*known, *(find_strangers(known) if config.discover else ())]
