"""The agent's endpoint under bytes, connections and certificates that mean it no good."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import ssl
import subprocess
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from private_guest import await_that

from agent_parts import served_agent
from atoll.guests.authority import Authority
from atoll.guests.package import build_agent
from atoll.model.errors import AtollError, HoldFailedError
from atoll_agent import handshake
from trust import client_certificate

EXAMPLES = int(os.environ.get("ATOLL_FUZZ_EXAMPLES", "150"))
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
NUMBERS = itertools.count()
ROUTES = ("status", "look", "prepare", "freeze", "thaw", "renew", "install", "run", "")


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    where = tmp_path_factory.mktemp("agent")
    with served_agent(where, Authority.open(where / "agents")) as agent:
        yield agent


@pytest.fixture(autouse=True)
def unharmed(agent):
    """Whatever a test did: the agent holds nothing and serves its director a whole hold."""
    yield
    assert agent.keeper.state().state == "idle"
    channel, run = agent.channel(), f"after-{next(NUMBERS)}"
    channel.prepare(run)
    channel.freeze(run, 60, 30)
    assert channel.thaw(run).held
    channel.close()


def director_context(agent):
    trust = agent.authority.credentials
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(trust.certificate, trust.key)
    context.load_verify_locations(trust.authority)
    return context


def exchange(agent, data, context=None):
    """Send bytes as the director, say that no more come, and read until the agent hangs up."""
    received = b""
    with (
        socket.create_connection(agent.address, timeout=30) as plain,
        (context or director_context(agent)).wrap_socket(plain) as tls,
    ):
        with contextlib.suppress(OSError):
            tls.sendall(data)
        # Without more to read the agent ends; TLS has no half-closed streams, the socket has.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(tls, socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while part := tls.recv(65536):
                received += part
    return received


def head(method, route, headers):
    lines = [f"{method} /v1/{route} HTTP/1.1", *(f"{key}: {value}" for key, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["Content-Length", "Transfer-Encoding", "Host", "Expect", "Connection", "X", ""]
        ),
        st.sampled_from(
            ["0", "2", "-1", "1e3", "9" * 5000, "chunked", "100-continue", "keep-alive", "\x00", ""]
        )
        | st.text(max_size=20),
    ),
    max_size=5,
)
REQUESTS = st.builds(
    lambda method, route, headers, body: head(method, route, headers) + body,
    st.sampled_from(["GET", "POST", "PUT", "get", "", "POST POST"]),
    st.sampled_from(ROUTES),
    HEADERS,
    st.binary(max_size=60) | st.sampled_from([b"{}", b'{"run": "x y"}', b'{"run": "' + b"a" * 90]),
)
STREAMS = st.binary(max_size=300) | st.lists(REQUESTS, min_size=1, max_size=4).map(b"".join)


def check(agent, data):
    for line in exchange(agent, data).split(b"\r\n"):
        # Never an answer that only a hold could give.
        assert b'"frozen_at"' not in line or b'"held": false' in line
    assert agent.keeper.state().state == "idle"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET)
@given(STREAMS)
def test_bytes_from_the_director_itself(agent, data):
    check(agent, data)


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None, suppress_health_check=QUIET)
@given(STREAMS)
def test_very_many_bytes(agent, data):
    check(agent, data)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=QUIET)
@given(st.binary(max_size=300), st.booleans())
def test_bytes_instead_of_tls(agent, data, as_record):
    # With a record's header in front, OpenSSL looks at more of it.
    sent = b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data if as_record else data
    with (
        socket.create_connection(agent.address, timeout=30) as plain,
        contextlib.suppress(OSError),
    ):
        plain.sendall(sent)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(4096):
            pass


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v1/status HTTP/1.1\r\n" + b"X: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"GET /v1/status HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (head("POST", "thaw", [("Content-Length", "9" * 5000)]), 400),
        (head("POST", "thaw", [("Content-Length", "4097")]), 400),
        (head("POST", "install", [("Content-Length", "32769")]), 400),
        (head("POST", "thaw", [("Transfer-Encoding", "chunked")]) + b"2\r\n{}\r\n0\r\n\r\n", 400),
        (head("DELETE", "status", []), 501),
    ],
)
def test_what_is_too_much_is_refused_and_hung_up_on(agent, data, status):
    answer = exchange(agent, data)
    assert re.match(rb"HTTP/1\.[01] (\d+)", answer)[1] == str(status).encode()
    assert answer.count(b"HTTP/1.") == 1


def test_pipelined_requests_are_answered_in_order(agent):
    thaw = json.dumps({"run": "p1"}).encode()
    one = head("POST", "thaw", [("Content-Length", str(len(thaw)))]) + thaw
    answer = exchange(agent, head("GET", "status", []) + one + head("GET", "none", []))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200", b"404"]


@pytest.mark.parametrize(
    "kind",
    ["none", "self-signed", "another authority's", "an agent's", "expired", "not yet valid"],
)
def test_nobody_else_gets_an_answer(agent, kind, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if kind != "none":
        context.load_cert_chain(client_certificate(kind, agent.authority, tmp_path))
    freeze = json.dumps({"run": "x", "lease_seconds": 60, "budget_seconds": 30}).encode()
    data = head("POST", "freeze", [("Content-Length", str(len(freeze)))]) + freeze
    answer = b""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        answer = exchange(agent, data, context)
    assert answer == b""


def test_older_tls_is_refused(agent):
    context = director_context(agent)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        exchange(agent, head("GET", "status", []), context)


def test_a_recorded_conversation_says_nothing_when_it_is_sent_again(agent):
    """All that went over the wire to freeze the guest, sent once more after it was thawed."""
    recorded = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay():
            near, _ = listener.accept()
            with near, socket.create_connection(agent.address) as far:
                back = threading.Thread(target=copy, args=(far, near, []))
                back.start()
                copy(near, far, recorded)
                back.join()

        def copy(source, target, kept):
            with contextlib.suppress(OSError):
                while part := source.recv(65536):
                    kept.append(part)
                    target.sendall(part)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=relay)
        thread.start()
        trust = director_context(agent)
        with (
            socket.create_connection(listener.getsockname()) as plain,
            trust.wrap_socket(plain) as tls,
        ):
            body = json.dumps({"run": "r1", "lease_seconds": 60, "budget_seconds": 30}).encode()
            tls.sendall(head("POST", "freeze", [("Content-Length", str(len(body)))]) + body)
            assert b"200 OK" in tls.recv(65536)
        thread.join()
    assert agent.channel().thaw("r1").held
    with pytest.raises(HoldFailedError, match="thawed before"):
        agent.channel().freeze("r1", 60, 30)
    with socket.create_connection(agent.address, timeout=30) as plain:
        with contextlib.suppress(OSError):
            for part in recorded:
                plain.sendall(part)
            plain.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while plain.recv(65536):
                pass
    assert agent.keeper.state().state == "idle"


def test_strangers_who_dawdle_are_cut_off_and_keep_nobody_out(agent, monkeypatch):
    monkeypatch.setattr(handshake, "_HANDSHAKE_SECONDS", 1.0)
    with contextlib.ExitStack() as stack:
        strangers = [
            stack.enter_context(
                socket.create_connection(agent.address, source_address=("127.0.0.2", 0))
            )
            for _ in range(60)
        ]
        for number, each in enumerate(strangers):
            # A record's header promises bytes that then come one by one, or never.
            with contextlib.suppress(OSError):
                each.sendall(b"\x16\x03\x01\x02\x00" if number % 2 else b"")
        assert agent.channel().status().state == "idle"

        def all_cut():
            return all(is_cut(each) for each in strangers)

        await_that(all_cut, "dripping strangers are cut off")


def is_cut(connection):
    """Drip one byte; whether the other side has hung up."""
    connection.setblocking(False)
    try:
        connection.send(b"\x00")
        return connection.recv(100) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_the_director_too_has_only_so_many_connections(agent):
    with contextlib.ExitStack() as stack:
        context = director_context(agent)
        opened = 0
        with contextlib.suppress(OSError):
            for _ in range(40):
                plain = stack.enter_context(socket.create_connection(agent.address, timeout=30))
                tls = stack.enter_context(context.wrap_socket(plain))
                tls.sendall(head("GET", "status", []))
                assert b"200 OK" in tls.recv(65536)
                opened += 1
        assert opened == 32
    await_that(lambda: agent.server._doorway._inside == 0, "their places are free again")


RECORDER = """
import sys
out = open({log!r}, "a", buffering=1)
def note(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
        out.write(event + " " + repr(arguments) + chr(10))
sys.addaudithook(note)
"""


def test_no_runs_name_ever_reaches_a_process(tmp_path):
    """Every program the shipped agent starts is noted by Python itself, with all its arguments."""
    log = tmp_path / "programs"
    log.touch()
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(RECORDER.format(log=str(log)))
    authority = Authority.open(tmp_path / "agents")
    with served_agent(tmp_path, authority) as agent:
        config = agent.config
    program = tmp_path / "atoll-agent.pyz"
    program.write_bytes(build_agent())
    said = tmp_path / "log"
    with said.open("wb") as stream:
        process = subprocess.Popen(
            [
                "/usr/bin/python3",
                program,
                "serve",
                "--config",
                config.certificate.with_name("agent.json"),
            ],
            env={**os.environ, "PYTHONPATH": str(tmp_path / "hook")},
            stdout=stream,
            stderr=stream,
            cwd="/",
        )
    try:
        await_that(lambda: "listens on" in said.read_text(), "the agent listens")
        port = int(re.search(r"listens on (\d+)", said.read_text())[1])
        agent.registry.put(dataclasses.replace(agent.entry, port=port))
        channel = agent.channel()
        names = ["rm.-rf._", "reboot", "0--help", "$(reboot)", "; reboot", "`reboot`", "../r"]
        for name in names:
            for call in (
                lambda name=name: channel.prepare(name),
                lambda name=name: channel.freeze(name, 60, 30),
                lambda name=name: channel.thaw(name),
            ):
                with contextlib.suppress(AtollError):
                    call()
        channel.look()
    finally:
        process.terminate()
        process.wait(30)
    started = log.read_text()
    assert "atoll_agent.watchdog" in started
    assert not [name for name in names if name in started]
