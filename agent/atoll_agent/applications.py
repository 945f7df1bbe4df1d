"""Every application found in this guest."""

from atoll_agent import mariadb, postgresql
from atoll_agent.application import Application
from atoll_agent.config import Config


def discover(config: Config) -> list[Application]:
    """The servers that run now, in a fixed order."""
    return [
        *postgresql.discover(config.applications, config.discover),
        *mariadb.discover(config.applications, config.discover),
    ]
