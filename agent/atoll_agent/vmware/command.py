"""Commands for VMware Tools: what its script runs, and what puts that script where it belongs."""

import argparse
import sys
from pathlib import Path
from typing import Any

from atoll_agent.config import DEFAULT_PATH
from atoll_agent.vmware.install import install_script, own_file, remove_script
from atoll_agent.vmware.ledger import DIRECTORY
from atoll_agent.vmware.script import hold_once, run_script

COMMANDS = ("vmware", "install-vmware-script")


def describe_vmware(commands: Any) -> None:
    """Add the commands to argparse's `commands`."""
    hold = commands.add_parser("vmware", help="what VMware Tools' script calls")
    # What VMware Tools may say besides: a newer one's word must not make the snapshot fail.
    hold.add_argument("operation", help="freeze, freezeFail or thaw")
    hold.add_argument("--config", type=Path, default=DEFAULT_PATH)
    hold.add_argument("--directory", type=Path, default=DIRECTORY, help=argparse.SUPPRESS)
    install = commands.add_parser(
        "install-vmware-script", help="let VMware Tools hold applications in quiesced snapshots"
    )
    install.add_argument("--root", type=Path, default=Path("/"), help="of the guest's files")
    install.add_argument("--agent", type=Path, help="the agent's file, if not this one")
    install.add_argument("--remove", action="store_true", help="take the script away again")


def run_vmware(arguments: argparse.Namespace) -> int:
    """Run one of COMMANDS; AgentError and OSError pass through from installing alone."""
    if arguments.command == "vmware":
        if arguments.operation == "hold":
            return hold_once(arguments.config, arguments.directory)
        return run_script(arguments.operation, arguments.config, arguments.directory)
    if arguments.remove:
        remove_script(arguments.root)
        return 0
    path = install_script(arguments.root, arguments.agent or own_file())
    sys.stdout.write(f"VMware Tools will run {path}.\n")
    return 0
