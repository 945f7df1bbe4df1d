"""`atoll-agent`: enrol this guest, serve the director, or show what would be held."""

import argparse
import getpass
import os
import signal
import subprocess
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
from atoll_agent.identity import sweep
from atoll_agent.keeper import Keeper
from atoll_agent.mounts import Mount, freezable, freeze_order, read_mounts, select_mounts
from atoll_agent.server import AgentServer, remark_on
from atoll_agent.testify import find_port, give_testimony, serve_port
from atoll_agent.vmware.command import COMMANDS as VMWARE_COMMANDS
from atoll_agent.vmware.command import describe_vmware, run_vmware
from atoll_agent.vmware.ledger import DIRECTORY
from atoll_agent.vmware.script import make_holding, serve_tools

_RECOVER_SECONDS = 30.0
_UNIT = "atoll-agent.service"
_SYSTEMD = Path("/run/systemd/system")
# Between two looks whether to go on listening, which the signal's handler answers anyway.
_POLL_SECONDS = 86400.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="atoll-agent", description="Atoll's agent in a guest.")
    parser.add_argument("--version", action="version", version=f"atoll-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "answer the director until stopped"),
        ("status", "show what would be held"),
        ("check", "say what is wrong with the configuration, if anything"),
        ("thaw", "thaw what an agent that was killed may have left frozen"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config", type=Path, default=DEFAULT_PATH)
    _describe_enrol(commands.add_parser("enrol", help="enrol this guest with a one-time token"))
    describe_vmware(commands)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "enrol":
            return _enrol(arguments)
        if arguments.command in VMWARE_COMMANDS:
            return run_vmware(arguments)
        config = load_config(arguments.config)
        if arguments.command == "check":
            return 0
        if arguments.command == "thaw":
            _thaw_leftovers(config)
            return 0
        return _serve(config) if arguments.command == "serve" else _status(config)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"atoll-agent: {error}\n")
        return 1


def _describe_enrol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "token",
        nargs="?",
        help="what `atoll agent invite` printed; asked for when left out, which keeps it from "
        "the shell's history and the list of processes",
    )
    parser.add_argument("--director", help="HOST:PORT, when the token's do not lead there")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH)
    parser.add_argument(
        "--no-start", action="store_true", help="leave the service as it is; start it yourself"
    )


def _enrol(arguments: argparse.Namespace) -> int:
    # Only here: a serving agent has no need for it.
    from atoll_agent.enrolment import enrol, parse_token

    text = arguments.token
    if text is None:
        text = getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()
    name = enrol(parse_token(text), arguments.config.parent, arguments.director)
    sys.stdout.write(f"This guest is enrolled as {name}.\n")
    if arguments.no_start or not _SYSTEMD.is_dir():
        sys.stdout.write("Start or restart the agent now.\n")
        return 0
    return subprocess.run(["systemctl", "restart", _UNIT], check=False).returncode


def _serve(config: Config) -> int:
    # First of all: a crash of the agent and its watchdog together may have left the guest frozen.
    vmware = make_holding(config, DIRECTORY)
    # Unless it is VMware Tools that holds them now, which an agent that is gone was to watch.
    if not vmware.resume():
        _thaw_leftovers(config)
    sweep(config.certificate.parent)
    for application in applications.discover(config):
        try:
            application.recover(Deadline(_RECOVER_SECONDS))
        except ApplicationError as error:
            sys.stderr.write(f"atoll-agent: {application.kind} {application.name}: {error}\n")
    keeper = Keeper(lambda: applications.all_running(config), lambda: _find_mounts(config))
    server = AgentServer(config, keeper, vmware)
    tools = serve_tools(vmware, DIRECTORY)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Nothing happens in an idle agent: every thread waits for a peer or a signal.
    threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), daemon=True).start()
    _start_witness(lambda: applications.discover(config), stop)
    sys.stderr.write(f"atoll-agent: {config.name} listens on {server.server_address[1]}\n")
    stop.wait()
    tools.stop()
    vmware.stop()
    keeper.stop()
    server.server_close()
    return 0


def _thaw_leftovers(config: Config) -> None:
    for mountpoint in thaw_leftovers([m.mountpoint for m in reversed(_find_mounts(config))]):
        sys.stderr.write(f"atoll-agent: {mountpoint} was found frozen and was thawed\n")


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
        remark = remark_on(application)
        out(f"  application  {application.kind} {application.name}: {remark}\n")
    return 0


def _find_mounts(config: Config) -> list[Mount]:
    mounts = read_mounts()
    chosen = select_mounts(freezable(mounts), config.freeze_only, config.freeze_never)
    return freeze_order(chosen, mounts)


if __name__ == "__main__":
    sys.exit(main())
