"""What VMware Tools runs in the guest around a quiesced snapshot; never in its way.

The agent that serves is asked to hold. Where none does, a process of its own
holds, detached from the script that started it, until the thaw or the dead
man's time ends it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from atoll_agent import applications
from atoll_agent.clock import Deadline
from atoll_agent.config import Config, load_unenrolled
from atoll_agent.errors import AgentError, ApplicationError
from atoll_agent.keeper import Keeper
from atoll_agent.mounts import Mount, freezable, freeze_order, read_mounts
from atoll_agent.vmware.account import Account
from atoll_agent.vmware.guestinfo import publish
from atoll_agent.vmware.holding import VmwareHolding
from atoll_agent.vmware.ledger import Ledger, boot_id
from atoll_agent.vmware.local import HOLDER, OPERATIONS, SERVICE, LocalServer, ask

_START_SECONDS = 20.0
_START_POLL_SECONDS = 0.05
_THAW_SECONDS = 30.0
_RECOVER_SECONDS = 10.0


def run_script(operation: str, config_path: Path, directory: Path) -> int:
    """Act on one call of VMware Tools; always 0, since a script's failure would fail the snapshot.

    What went wrong is told on standard error, which VMware Tools logs, and in the account.
    """
    try:
        if operation == "freeze":
            _freeze(config_path, directory)
        elif operation in OPERATIONS:
            _thaw(operation, directory)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"atoll-agent: {operation}: {error}\n")
        # Who did not answer in time tells of it in an account of its own, when it does.
        if operation == "freeze" and not isinstance(error, TimeoutError):
            _give_up(directory, str(error))
    return 0


def make_holding(
    config: Config, directory: Path, on_dead_man: Callable[[], None] = lambda: None
) -> VmwareHolding:
    """Holds what runs here, with the times of the configuration."""
    keeper = Keeper(lambda: applications.all_running(config), tuple)
    return VmwareHolding(
        keeper, _all_mounts, config.vmware, Ledger(directory), publish, on_dead_man
    )


def serve_tools(holding: VmwareHolding, directory: Path, name: str = SERVICE) -> LocalServer:
    """Answer VMware Tools' script from now on."""
    server = LocalServer(directory, name, lambda operation: act(holding, operation))
    server.start()
    return server


def act(holding: VmwareHolding, operation: str) -> str | None:
    """Do what VMware Tools' script was called for; returns the account."""
    if operation == "freeze":
        return holding.freeze()
    return holding.thaw(failed=operation == "freezeFail")


def hold_once(config_path: Path, directory: Path) -> int:
    """Be the process that holds where no agent serves: answers one freeze and one thaw."""
    config = load_unenrolled(config_path)
    ended = threading.Event()
    holding = make_holding(config, directory, ended.set)

    def answer(operation: str) -> str | None:
        account = act(holding, operation)
        if operation != "freeze":
            ended.set()
        return account

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    for application in applications.discover(config):
        with suppress(ApplicationError):
            application.recover(Deadline(_RECOVER_SECONDS))
    server = LocalServer(directory, HOLDER, answer)
    server.start()
    # Longer than any hold: one that was never asked for ends too.
    ended.wait(config.vmware.script_seconds + config.vmware.dead_man_seconds + 60.0)
    server.stop()
    holding.stop()
    return 0


def _freeze(config_path: Path, directory: Path) -> None:
    seconds = load_unenrolled(config_path).vmware.script_seconds
    for name in (SERVICE, HOLDER):
        with suppress(FileNotFoundError, ConnectionRefusedError):
            ask(directory, name, "freeze", seconds)
            return
    _start_holder(config_path, directory)
    ask(directory, HOLDER, "freeze", seconds)


def _thaw(operation: str, directory: Path) -> None:
    """Ask whoever may hold: an agent may have been started or ended since the freeze."""
    for name in (HOLDER, SERVICE):
        with suppress(FileNotFoundError, ConnectionRefusedError):
            ask(directory, name, operation, _THAW_SECONDS)


def _give_up(directory: Path, reason: str) -> None:
    """Nobody holds: say so to vCenter, in an account of its own."""
    now = time.time()
    ledger = Ledger(directory)
    try:
        number = ledger.begin(now, 0.0).number
        account = Account(boot_id(), number, False, reason, now, None, now, 0.0, False, ())
        ledger.end(account.text())
    except OSError as error:
        sys.stderr.write(f"atoll-agent: {error}\n")
        return
    publish(account.text())


def _start_holder(config_path: Path, directory: Path) -> None:
    """Start the process that holds, and wait until it can be asked."""
    # What is left of one that was killed; nobody answered there.
    (directory / HOLDER).unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-B", "-s", "-m", "atoll_agent"),
            *("vmware", "hold", "--config", str(config_path), "--directory", str(directory)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        # The package lies in a directory or in the zipapp; both are importable like this.
        env={
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PATH": os.environ.get("PATH", os.defpath),
        },
        # VMware Tools ends the script's group when it has waited long enough.
        start_new_session=True,
    )
    limit = Deadline(_START_SECONDS)
    while not (directory / HOLDER).exists():
        if process.poll() is not None:
            raise ChildProcessError(f"the process that holds ended ({process.returncode})")
        if limit.passed:
            process.kill()
            raise ChildProcessError("the process that holds did not start")
        time.sleep(_START_POLL_SECONDS)


def _all_mounts() -> list[Mount]:
    mounts = read_mounts()
    return freeze_order(freezable(mounts), mounts)
