"""`atoll-agent`: serve the director, or show what would be held."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atoll_agent import __version__, applications
from atoll_agent.application import Application
from atoll_agent.clock import Deadline
from atoll_agent.config import DEFAULT_PATH, Config, load_config
from atoll_agent.errors import AgentError, ApplicationError
from atoll_agent.freezing import thaw_leftovers
from atoll_agent.keeper import Keeper
from atoll_agent.mounts import Mount, freezable, freeze_order, read_mounts, select_mounts
from atoll_agent.server import AgentServer
from atoll_agent.strangers import Stranger
from atoll_agent.testify import find_port, give_testimony, serve_port

_RECOVER_SECONDS = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="atoll-agent", description="Atoll's agent in a guest.")
    parser.add_argument("--version", action="version", version=f"atoll-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "answer the director until stopped"),
        ("status", "show what would be held"),
        ("check", "say what is wrong with the configuration, if anything"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, default=DEFAULT_PATH)
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        if arguments.command == "check":
            return 0
        return _serve(config) if arguments.command == "serve" else _status(config)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"atoll-agent: {error}\n")
        return 1


def _serve(config: Config) -> int:
    # First of all: a crash of the agent and its watchdog together may have left the guest frozen.
    freed = thaw_leftovers([mount.mountpoint for mount in reversed(_find_mounts(config))])
    for mountpoint in freed:
        sys.stderr.write(f"atoll-agent: {mountpoint} was found frozen and was thawed\n")
    for application in applications.discover(config):
        try:
            application.recover(Deadline(_RECOVER_SECONDS))
        except ApplicationError as error:
            sys.stderr.write(f"atoll-agent: {application.kind} {application.name}: {error}\n")
    keeper = Keeper(lambda: applications.all_running(config), lambda: _find_mounts(config))
    server = AgentServer(config, keeper)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _start_witness(lambda: applications.discover(config), stop)
    sys.stderr.write(f"atoll-agent: {config.name} listens on {server.server_address[1]}\n")
    stop.wait()
    keeper.stop()
    server.shutdown()
    return 0


def _start_witness(find: Any, stop: threading.Event) -> None:
    port = find_port()
    if port is None:
        return
    descriptor = os.open(port, os.O_RDWR | os.O_CLOEXEC)
    threading.Thread(
        target=serve_port, args=(descriptor, lambda: give_testimony(find()), stop), daemon=True
    ).start()


def _status(config: Config) -> int:
    out = sys.stdout.write
    out(f"atoll-agent {__version__} for {config.name} ({config.instance_uuid})\n")
    for mount in _find_mounts(config):
        out(f"  file system  {mount.mountpoint}  {mount.fstype} on {mount.source}\n")
    found: Sequence[Application] = applications.all_running(config)
    for application in found:
        out(f"  application  {application.kind} {application.name}{_remark(application)}\n")
    return 0


def _remark(application: Application) -> str:
    return f": not held, {application.detail}" if isinstance(application, Stranger) else ""


def _find_mounts(config: Config) -> list[Mount]:
    mounts = read_mounts()
    chosen = select_mounts(freezable(mounts), config.freeze_only, config.freeze_never)
    return freeze_order(chosen, mounts)


if __name__ == "__main__":
    sys.exit(main())
