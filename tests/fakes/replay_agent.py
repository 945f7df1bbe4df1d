"""The agent as it is, as a process whose requests, application and clock follow somebody else.

Arguments: the configuration, a UNIX socket on which the somebody listens, and a directory for what
would lie in /run/atoll-agent. Each request that
the agent's server hands to its keeper connects there, says what it is and waits for `go`; then
the keeper acts, and its answer waits for `go` again. So does each hold of the one application,
whose session is a process of its own; it is answered `holds` or `refuses`. A last connection
asks for the keeper's state: one line for each line.

The agent's package is a copy whose clock reads the time from a file beside it: `CLOCK`. What is
waited for in real time is waited for as long as it takes: that nobody answers in time is not in
the runs that are replayed, and a machine may be slow.
"""

import json
import select
import socket
import subprocess
import sys
import threading
from functools import wraps
from pathlib import Path

from atoll_agent import __main__ as agent
from atoll_agent import applications, arming, guard, protocol, server
from atoll_agent.application import HeldApplication
from atoll_agent.keeper import Keeper
from atoll_agent.server import AgentServer

CLOCK = """
import mmap, os, struct
_file = os.open(os.path.join(os.path.dirname(os.path.dirname(__file__)), "now"), os.O_RDONLY)
_now = mmap.mmap(_file, 8, prot=mmap.PROT_READ)
os.close(_file)


def boottime():
    return struct.unpack("d", _now[:8])[0]
"""
"""Replaces the boot time of atoll_agent/clock.py, for the agent and its watchdog."""


_PATIENCE_SECONDS = 600.0
_AGES = 1e9


class Gate:
    """One conversation with who decides."""

    def __init__(self, **said):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(sys.argv[2])
        self._stream = self._socket.makefile("rw")
        self.say(**said)

    def say(self, **said):
        self._stream.write(json.dumps(said) + "\n")
        self._stream.flush()

    def heard(self):
        return self._stream.readline().strip()

    def spoken(self, seconds):
        return bool(select.select([self._socket], [], [], seconds)[0])


def gated(call, run_of):
    name = call.__name__

    @wraps(call)
    def wait_act_wait(self, request, *rest, **named):
        gate = Gate(call=name, run=run_of(request))
        gate.heard()
        try:
            return call(self, request, *rest, **named)
        finally:
            gate.say(answered=True)
            gate.heard()

    return wait_act_wait


class Application:
    """Holds when it is told to; its locks live as long as its session."""

    kind, name = "stand-in", "main"

    def __init__(self):
        self._session = None

    def prepare(self, deadline):
        """There is nothing to flush."""

    flush_again = recover = prepare

    def open(self, deadline):
        self._session = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        return [self._session.pid]

    def still_ready(self, deadline):
        return self._session.poll() is None

    def hold(self, deadline):
        gate = Gate(call="hold", run="")
        while self._session.poll() is None:
            if gate.spoken(0.02):
                held = gate.heard() == "holds"
                return HeldApplication(self.kind, self.name, held, "", None, 0.0, "refused")
        return HeldApplication(self.kind, self.name, False, "", None, 0.0, "its session is gone")

    def still_held(self, deadline):
        return "" if self._session.poll() is None else "the application lost its session"

    def close(self):
        if self._session is not None:
            self._session.kill()
            self._session.wait()
            self._session.stdin.close()


def tell_state(keeper):
    gate = Gate(call="state", run="")
    while gate.heard():
        state = keeper.state()
        gate.say(state=state.state, run=state.run)


def main():
    made = AgentServer.__init__

    @wraps(made)
    def told(self, config, keeper, *rest):
        made(self, config, keeper, *rest)
        keeper._armed_seconds = _PATIENCE_SECONDS
        threading.Thread(target=tell_state, args=(keeper,), daemon=True).start()

    AgentServer.__init__ = told
    Keeper.prepare = gated(Keeper.prepare, lambda run: run)
    Keeper.freeze = gated(Keeper.freeze, lambda request: request.run)
    Keeper.thaw = gated(Keeper.thaw, lambda run: run)
    applications.all_running = lambda config: [Application()]
    applications.discover = lambda config: []
    agent.DIRECTORY = Path(sys.argv[3])
    guard._START_SECONDS = guard._BEGIN_SECONDS = guard._THAW_SECONDS = _PATIENCE_SECONDS
    server._IDLE_SECONDS = _PATIENCE_SECONDS
    # By the replay's clock, in which one tick is longer than any lease may be.
    protocol.MAX_LEASE_SECONDS = protocol.MAX_BUDGET_SECONDS = _AGES
    arming.ARMED_SECONDS = arming._WATCHDOG_SECONDS = _AGES
    return agent.main(["serve", "--config", sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())
