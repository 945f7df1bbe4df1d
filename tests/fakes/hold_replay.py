"""Runs of the hold's model, done on the real agent and the real director, and compared at every step.

What the model prints is read line by line. A line is something to bring about (a request arrives,
an answer is lost, a process is killed, a lease ends) or to see (what the agent is at, whether the
file system is frozen, what the director calls the point). Real are the agent's process and its
watchdog, TLS, a file system on a loop device, the director's capture in a process of its own.
Stood in for are the application, storage and vCenter, and the clock by which leases end.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import atoll_agent
from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.connection import AgentConnection
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import AtollError
from replay_agent import CLOCK
from replay_director import BUDGET_SECONDS, LEASE_SECONDS, Director, fake_path

_UUID = "50123456-789a-bcde-f012-3456789abcde"
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
# The model's lease is two ticks and its budget one.
_TICK_SECONDS = BUDGET_SECONDS
assert LEASE_SECONDS == 2 * _TICK_SECONDS
# Only keeps a failed replay from hanging.
_LIMIT_SECONDS = 120.0


def await_that(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < limit, f"never came true: {what}"
        time.sleep(0.01)


class Relay:
    """The way from director to agent. Cut, the director knows at once; the agent goes on."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent_bytes = 0
        self._lock = threading.Lock()
        self._here: set[socket.socket] = set()
        self._there: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End what is connected, for the director."""
        with self._lock:
            for end in self._here:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """End what is connected, for both."""
        self.cut()
        with self._lock:
            for end in self._there:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
            self._there.clear()

    def close(self) -> None:
        self._listener.close()
        self.forget()

    def _accept(self) -> None:
        while True:
            try:
                here = self._listener.accept()[0]
            except OSError:
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                here.close()
                continue
            with self._lock:
                self._here.add(here)
                self._there.add(there)
            threading.Thread(target=self._up, args=(here, there), daemon=True).start()
            threading.Thread(target=self._down, args=(here, there), daemon=True).start()

    def _up(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                there.sendall(data)
                self.sent_bytes += len(data)

    def _down(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := there.recv(65536):
                here.sendall(data)
        with contextlib.suppress(OSError):
            here.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._here.discard(here)
        here.close()


class Request:
    """One that waits in the agent's process, to be acted on and then to be answered."""

    def __init__(self, call: str, run: str, stream: "socket.socket") -> None:
        self.call, self.run = call, run
        self._stream = stream.makefile("rw")
        self._answered = threading.Event()
        self._lock = threading.Lock()
        self._abandoned = self._passed = False

    def say(self, word: str) -> None:
        """To an agent that may be gone."""
        with contextlib.suppress(OSError):
            self._stream.write(word + "\n")
            self._stream.flush()

    def follow(self) -> None:
        """Note when it was answered; returns when the agent has nothing more to say."""
        with contextlib.suppress(OSError, ValueError):
            while self._stream.readline():
                with self._lock:
                    self._answered.set()
                    self._pass_if(self._abandoned)

    @property
    def answered(self) -> bool:
        """Whether the keeper is through with it."""
        return self._answered.is_set()

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        with self._lock:
            self._abandoned = True
            self._pass_if(self._answered.is_set())

    def answer(self) -> None:
        """Let the answer go to the director."""
        assert self._answered.wait(_LIMIT_SECONDS), f"the agent does not answer {self.call}"
        with self._lock:
            self._pass_if(True)

    def state(self) -> tuple[str, str]:
        """What the agent is at, by the conversation that is about that."""
        self.say("?")
        said = json.loads(self._stream.readline() or "{}")
        return said.get("state", ""), said.get("run", "")

    def _pass_if(self, condition: bool) -> None:
        if condition and not self._passed:
            self._passed = True
            self.say("go")


class Gates:
    """Takes the agent's conversations."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._waiting: list[Request] = []
        self._under_way: list[Request] = []
        self.open = False
        self.teller: Request | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self, call: str, run: str) -> Request:
        """The oldest of these that has arrived, waited for."""
        found: list[Request] = []

        def arrived() -> bool:
            found[:] = [one for one in self._waiting if (one.call, one.run) == (call, run)]
            return bool(found)

        await_that(arrived, f"{call} of {run} arrives at the agent")
        self._waiting.remove(found[0])
        return found[0]

    def waits(self, call: str) -> bool:
        """Whether one of these has arrived."""
        return any(one.call == call for one in self._waiting)

    def release(self) -> None:
        """Let everything pass from now on, at once."""
        self.open = True
        for request in [*self._under_way]:
            self._let_pass(request)
        self._waiting.clear()

    def end(self) -> None:
        """Wait until the agent has nothing more to do for anybody."""
        await_that(lambda: not self._under_way, "the agent is done with all requests")

    def close(self) -> None:
        self._listener.close()

    def _let_pass(self, request: Request) -> None:
        request.abandon()
        request.say("refuses" if request.call == "hold" else "go")

    def _accept(self) -> None:
        while True:
            try:
                stream = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._take_up, args=(stream,), daemon=True).start()

    def _take_up(self, stream: socket.socket) -> None:
        received = b""
        while not received.endswith(b"\n"):
            part = stream.recv(1)
            if not part:
                return
            received += part
        request = Request(stream=stream, **json.loads(received))
        if request.call == "state":
            self.teller = request
            return
        self._under_way.append(request)
        if self.open:
            self._let_pass(request)
        else:
            self._waiting.append(request)
        request.follow()
        self._under_way.remove(request)
        if request in self._waiting:
            self._waiting.remove(request)


class Site:
    """One guest with a file system to freeze, the agent in it and the way to it."""

    def __init__(self, base: Path, mount: Path) -> None:
        self._base, self.mount = base, mount
        self._file_system = os.open(mount, os.O_RDONLY)
        package = base / "package"
        shutil.copytree(Path(atoll_agent.__file__).parent, package / "atoll_agent")
        self._package = package
        self._make_clock(package)
        (base / "run").mkdir()
        self.gates = Gates(base / "gates")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        authority = Authority.open(base / "agents")
        self.credentials = authority.credentials
        tar = enrol(authority, "a", _UUID, base / "a.tar", address="127.0.0.1", port=port)
        with tarfile.open(tar) as archive:
            archive.extractall(base / "root", filter="data")
        self._config = base / "root/etc/atoll/agent.json"
        # Nothing of this machine but the test's own disk may ever be frozen.
        only = {"freeze_only": [str(mount)], "discover": False}
        self._config.write_text(json.dumps({**json.loads(self._config.read_text()), **only}))
        found = AgentRegistry(authority.directory).get(_UUID)
        assert found is not None
        self.agent: EnrolledAgent = found
        self.relay = Relay(port)
        self.stopped = False
        self.start_agent()

    @property
    def director_way(self) -> EnrolledAgent:
        """The agent as the director reaches it."""
        return replace(self.agent, port=self.relay.port)

    @property
    def up(self) -> bool:
        return self._process.poll() is None

    def start_agent(self) -> None:
        self.gates.teller = None
        with (self._base / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-B", str(Path(fake_path()) / "replay_agent.py")),
                    *(str(self._config), str(self._base / "gates"), str(self._base / "run")),
                ],
                env={**os.environ, "PYTHONPATH": str(self._package)},
                stdout=log,
                stderr=log,
                cwd="/",
            )
        await_that(self._listens, "the agent listens")
        self.stopped = False

    def kill_agent(self) -> None:
        self._process.kill()
        self._process.wait()
        self.stopped = False

    def stop_agent(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def continue_agent(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self.stopped = False

    def tick(self) -> None:
        [now] = struct.unpack("d", self._now[:8])
        self._now[:8] = struct.pack("d", now + _TICK_SECONDS)

    def state(self) -> tuple[str, str]:
        """What the agent is at and for which run."""
        assert self.gates.teller is not None
        return self.gates.teller.state()

    def frozen(self) -> bool:
        """Whether the file system is frozen; not to be asked while somebody may freeze it."""
        try:
            fcntl.ioctl(self._file_system, _FIFREEZE, 0)
        except OSError as error:
            assert error.errno == errno.EBUSY, error
            return True
        fcntl.ioctl(self._file_system, _FITHAW, 0)
        return False

    def thaw(self) -> None:
        """As `fsfreeze -u` does."""
        fcntl.ioctl(self._file_system, _FITHAW, 0)

    def watchdogs(self) -> list[int]:
        """The process ids of those that live."""
        return [pid for pid, words in self._processes() if "atoll_agent.watchdog" in words]

    def sessions(self) -> list[int]:
        """The same of the application's sessions."""
        return [pid for pid, words in self._processes() if words == "cat"]

    def settle(self) -> None:
        """Let everything run out, and the guest be idle with nothing armed."""
        self.gates.release()
        if self.stopped:
            self.continue_agent()
        if not self.up:
            self.start_agent()
        self.relay.forget()
        self.gates.end()

    def disarm(self, runs: Sequence[str]) -> None:
        channel = AgentChannel(self.agent, self.credentials)
        for run in runs:
            channel.thaw(run)
        await_that(lambda: not self.watchdogs(), "the watchdogs end")
        assert self.state()[0] == "idle"
        assert not self.frozen()
        self.gates.open = False

    def close(self) -> None:
        self.gates.release()
        self.kill_agent()
        await_that(lambda: not self.watchdogs(), "the watchdogs end")
        self.relay.close()
        self.gates.close()
        os.close(self._file_system)

    def _listens(self) -> bool:
        assert self.up, (self._base / "agent.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.agent.port)).close()
        except OSError:
            return False
        return self.gates.teller is not None

    def _make_clock(self, package: Path) -> None:
        (package / "now").write_bytes(struct.pack("d", 1000.0))
        with (package / "now").open("r+b") as file:
            self._now = mmap.mmap(file.fileno(), 8)
        clock = package / "atoll_agent/clock.py"
        before, rest = clock.read_text().split("class Deadline:")
        assert "def boottime" in before
        clock.write_text(f"{CLOCK}\n\nclass Deadline:{rest}")

    def _processes(self) -> Iterator[tuple[int, str]]:
        """Ours that are not ended: the agent's children, and those of an agent that was killed."""
        ours = f"PYTHONPATH={self._package}".encode()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if words != "cat" and "atoll_agent.watchdog" not in words:
                    continue
                if ours in (place / "environ").read_bytes().split(b"\0"):
                    yield int(place.name), words


class Replay:
    """One run of the model. Raises AssertionError where reality differs."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self._runs = {"1": f"{name}-ours", "2": f"{name}-other"}
        self._requests: dict[tuple[str, str], Request] = {}
        self._delivered: list[Request] = []
        self._director: Director | None = None
        self._threads: list[threading.Thread] = []
        self._sent_bytes = 0

    def run(self, lines: Sequence[str]) -> None:
        """Do and see what the model's lines say, then leave the guest idle."""
        done: list[str] = []
        try:
            for line in lines:
                done.append(line)
                self._do(*line.split())
        except (AssertionError, AtollError) as error:
            error.add_note("after\n" + "\n".join(done))
            raise
        finally:
            if self._director is not None:
                self._director.kill()
            self._site.settle()
            for thread in self._threads:
                thread.join(_LIMIT_SECONDS)
            self._site.disarm([*self._runs.values()])

    def _do(self, what: str, *words: str) -> None:
        # What the director asks next must have left before an agent that is stopped goes on.
        if what != "ask" and what != "state":
            self._sent_bytes = self._site.relay.sent_bytes
        getattr(self, f"_do_{what}")(*words)

    def _do_state(self, state: str, frozen: str, up: str, stopped: str, watchdogs: str) -> None:
        site = self._site
        if up == "1" and stopped == "0":
            await_that(lambda: site.state()[0] == state.lower(), f"the agent is {state}")
            if state == "FREEZING":
                await_that(lambda: site.gates.waits("hold"), "the application is asked to hold")
            # Those that wait for a freeze under way are answered when it is over.
            await_that(
                lambda: all(
                    request.answered or (state == "FREEZING" and request.call != "prepare")
                    for request in self._delivered
                ),
                "the agent has answered",
            )
        await_that(
            lambda: len(site.watchdogs()) == int(watchdogs), f"{watchdogs} watchdogs are there"
        )
        if frozen == "1":
            assert site.frozen(), "the file system is not frozen"
        else:
            await_that(lambda: not site.frozen(), "the file system thaws")

    def _do_ask(self, call: str, attempt: str, sent: str, stopped: str) -> None:
        site = self._site
        if call == "PREPARE":
            self._director = Director(site.director_way, site.credentials, self._runs["1"])
        if sent == "0":
            return
        if stopped == "1":
            await_that(
                lambda: site.relay.sent_bytes > self._sent_bytes, f"the director asks to {call}"
            )
        else:
            self._request(call, attempt)

    def _do_deliver(self, call: str, hold: str, attempt: str) -> None:
        if hold == "1":
            self._deliver(self._request(call, attempt))
            return
        run = self._runs[hold]
        thread = threading.Thread(target=self._ask_for_another, args=(call, run), daemon=True)
        thread.start()
        self._threads.append(thread)
        request = self._site.gates.take(call.lower(), run)
        request.abandon()
        self._deliver(request)

    def _do_pass(self, call: str, attempt: str) -> None:
        self._request(call, attempt).answer()

    def _do_cut(self, call: str, attempt: str) -> None:
        self._site.relay.cut()
        self._request(call, attempt).abandon()

    def _do_lost(self, call: str, attempt: str) -> None:
        """The director finds out by itself that there is no connection."""

    def _do_placement(self, answer: str) -> None:
        self._director_asks("placement")
        self._answer_director(answer)

    def _do_instant(self, frozen: str) -> None:
        if self._director is not None:
            self._director_asks("snapshot")
        assert self._site.frozen() == (frozen == "1")

    def _do_snapshot(self, answer: str) -> None:
        # The storage finishes what a director asked for that is dead by now.
        if self._director is not None:
            self._answer_director(answer)

    def _do_end(self, claimed: str, application: str = "0") -> None:
        assert self._director is not None
        what, consistency, reason = self._director.asks(_LIMIT_SECONDS)
        assert what == "end"
        expected = {"unprepared": [""], "0": ["", "crash"]}.get(claimed)
        if expected is None:
            expected = ["app" if application == "1" else "filesystem"]
        assert consistency in expected, f"{consistency}: {reason}"

    def _do_application(self, answer: str) -> None:
        self._site.gates.take("hold", "").say(answer)

    def _do_director(self, _: str) -> None:
        assert self._director is not None
        self._director.kill()
        self._director = None
        for request in self._requests.values():
            request.abandon()

    def _do_agent(self, what: str) -> None:
        site = self._site
        act = {
            "killed": site.kill_agent,
            "started": site.start_agent,
            "stopped": site.stop_agent,
            "continued": site.continue_agent,
        }
        act[what]()
        if what == "killed":
            self._delivered.clear()

    def _do_watchdog(self, _: str) -> None:
        [pid] = self._site.watchdogs()
        os.kill(pid, signal.SIGKILL)

    def _do_session(self, _: str) -> None:
        [pid] = self._site.sessions()
        os.kill(pid, signal.SIGKILL)
        await_that(lambda: not self._site.sessions(), "the session ends")

    def _do_thawed(self, *_: str) -> None:
        self._site.thaw()

    def _do_tick(self) -> None:
        self._site.tick()

    def _deliver(self, request: Request) -> None:
        self._delivered.append(request)
        request.say("go")

    def _request(self, call: str, attempt: str) -> Request:
        """The director's, by call and attempt; waited for."""
        key = (call, attempt)
        if key not in self._requests:
            self._requests[key] = self._site.gates.take(call.lower(), self._runs["1"])
        return self._requests[key]

    def _ask_for_another(self, call: str, run: str) -> None:
        order: dict[str, object] = {"run": run}
        if call == "FREEZE":
            order |= {"lease_seconds": LEASE_SECONDS, "budget_seconds": BUDGET_SECONDS}
        # Refused or broken off, it was heard all the same.
        with contextlib.suppress(AtollError):
            connection = AgentConnection(self._site.agent, self._site.credentials, 100.0)
            try:
                connection.call("POST", f"/v1/{call.lower()}", order, 100.0)
            finally:
                connection.close()

    def _director_asks(self, what: str) -> None:
        assert self._director is not None
        said = self._director.asks(_LIMIT_SECONDS)
        assert said == (what,), said

    def _answer_director(self, answer: str) -> None:
        assert self._director is not None
        self._director.answer(answer)
