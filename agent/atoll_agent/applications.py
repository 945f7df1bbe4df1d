"""Every application found in this guest."""

from collections import Counter
from pathlib import Path

from atoll_agent.application import Application
from atoll_agent.config import Config
from atoll_agent.modules import MODULES, load_module
from atoll_agent.strangers import count_servers, find_strangers


def discover(config: Config) -> list[Application]:
    """The servers that run now and can be held, in a fixed order."""
    return _known(config, count_servers())


def all_running(config: Config) -> list[Application]:
    """The same, and then those of which nothing is known but that they run."""
    running = count_servers()
    known = _known(config, running)
    return [*known, *(find_strangers(known, running) if config.discover else ())]


def _known(config: Config, running: Counter[str]) -> list[Application]:
    found: list[Application] = []
    for module in MODULES:
        configured = [entry for entry in config.applications if entry.kind == module.kind]
        there = running[module.kind] or (module.directory and Path(module.directory).is_dir())
        if configured or (config.discover and there):
            found += load_module(module.kind).discover(configured, config.discover)
    return found
