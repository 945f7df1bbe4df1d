r"""`python -m atoll_agent.windows`: the agent on Windows, as a service or on a console.

service   run as the Windows service AtollAgent (what `sc create` names)
serve     the same on a console, until Ctrl+C
status    show what would be held
check     say what is wrong with the configuration, if anything
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from atoll_agent import __version__, applications
from atoll_agent.clock import Deadline
from atoll_agent.config import Config, load_config
from atoll_agent.errors import AgentError, ApplicationError
from atoll_agent.keeper import Keeper
from atoll_agent.server import AgentServer
from atoll_agent.windows.service import Service, advapi32

DEFAULT_PATH = Path("C:/ProgramData/Atoll/agent.json")

_RECOVER_SECONDS = 60.0
_REMARK_SECONDS = 30.0
# A thread in a wait without an end does not notice Ctrl+C on Windows.
_POLL_SECONDS = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="atoll-agent", description="Atoll's agent on Windows.")
    parser.add_argument("--version", action="version", version=f"atoll-agent {__version__}")
    parser.add_argument("command", choices=("service", "serve", "status", "check"))
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH)
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        if arguments.command == "service":
            if sys.stderr is None:
                # A service has no console, and the core speaks to nobody else.
                sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            Service(lambda stop: serve(config, stop), advapi32()).dispatch()
        elif arguments.command == "serve":
            return _serve_on_console(config)
        elif arguments.command == "status":
            _status(config)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"atoll-agent: {error}\n")
        return 1
    return 0


def serve(config: Config, stop: threading.Event) -> int:
    """Answer the director until `stop` is set."""
    for application in applications.discover(config):
        try:
            application.recover(Deadline(_RECOVER_SECONDS))
        except ApplicationError as error:
            sys.stderr.write(f"atoll-agent: {application.kind} {application.name}: {error}\n")
    # No file system is frozen from outside of VSS, so there is none to find.
    keeper = Keeper(lambda: applications.discover(config), list)
    server = AgentServer(config, keeper)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.wait(_POLL_SECONDS):
        pass
    keeper.stop()
    server.shutdown()
    server.server_close()
    return 0


def _serve_on_console(config: Config) -> int:
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    return serve(config, stop)


def _status(config: Config) -> None:
    sys.stdout.write(f"atoll-agent {__version__} for {config.name} ({config.instance_uuid})\n")
    for application in applications.discover(config):
        remark = application.remark(Deadline(_REMARK_SECONDS))
        sys.stdout.write(f"  application  {application.kind} {application.name}: {remark}\n")


if __name__ == "__main__":
    sys.exit(main())
