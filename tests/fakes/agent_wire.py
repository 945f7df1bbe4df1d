"""The network between the director and one agent: passes all, or fails in a way that is chosen."""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum


class Wire(Enum):
    """What becomes of what is sent."""

    PASSES = "passes"
    SWALLOWS_ANSWERS = "the agent hears the director, who hears nothing"
    IS_SILENT = "nobody hears anything and no connection ends, as behind a switch without power"
    IS_CUT = "every connection is reset and no new one comes about"


class AgentWire:
    """Listens on a port of its own and passes connections on to an agent's `port`, as `state` says."""

    def __init__(self, port: int) -> None:
        self.agent_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.state = Wire.PASSES
        self._before_answer: Callable[[], object] | None = None
        self._before_request: Callable[[], object] | None = None
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset what is connected and whatever connects from now on."""
        self.state = Wire.IS_CUT
        self.reset()

    def reset(self) -> None:
        """Reset what is connected; a new connection works."""
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            _reset(end)

    def before_the_next_answer(self, act: Callable[[], object]) -> None:
        """Do something when the agent answers next, before the director hears it."""
        self._before_answer = act

    def before_the_next_request(self, act: Callable[[], object]) -> None:
        """Do something when the director asks the agent next, before the agent hears it."""
        self._before_request = act

    def mend(self) -> None:
        """Pass everything again; connections that something was lost of are reset."""
        self._before_answer = self._before_request = None
        if self.state is not Wire.PASSES:
            self.reset()
            self.state = Wire.PASSES

    def close(self) -> None:
        """End."""
        # Closing alone would leave the thread waiting in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                here = self._listener.accept()[0]
            except OSError:
                return
            if self.state is Wire.IS_CUT:
                _reset(here)
                continue
            try:
                there = socket.create_connection(("127.0.0.1", self.agent_port))
            except OSError:
                _reset(here)
                continue
            for end in (here, there):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._ends |= {here, there}
            threading.Thread(target=self._pass, args=(here, there), daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket) -> None:
        """Carry one connection, until both sides have hung up or it is reset."""
        sinks = {here: there, there: here}
        # A reset from another thread closes the sockets under our hands.
        with contextlib.suppress(OSError, ValueError):
            while sinks:
                for source in select.select(list(sinks), [], [])[0]:
                    data = source.recv(1 << 16)
                    if data:
                        self._carry(data, sinks[source], answer=source is there)
                        continue
                    sink = sinks.pop(source)
                    # A silent wire does not tell that somebody hung up either.
                    if self.state is not Wire.IS_SILENT:
                        sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._ends -= {here, there}
        for end in (here, there):
            _reset(end)

    def _carry(self, data: bytes, sink: socket.socket, *, answer: bool) -> None:
        if answer and self._before_answer:
            act, self._before_answer = self._before_answer, None
            act()
        if not answer and self._before_request:
            act, self._before_request = self._before_request, None
            act()
        swallowed = self.state is Wire.IS_SILENT or (answer and self.state is Wire.SWALLOWS_ANSWERS)
        if not swallowed:
            sink.sendall(data)


def _reset(end: socket.socket) -> None:
    """End it with a reset; whoever waits in it wakes up."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()
