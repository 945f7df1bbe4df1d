"""The channel against the agent's own server: who may speak, and what strange answers become."""

import dataclasses
import gc
import http.client
import json
import select
import socket
import ssl
import struct

import pytest

from agent_parts import UUID, served_agent
from atoll.guests.authority import Authority, Credentials
from atoll.guests.certificates import CLIENT
from atoll.guests.channel import AgentChannel, open_channels
from atoll.model.errors import AgentUnavailableError, HoldFailedError
from atoll_agent.protocol import FreezeRequest


def write(directory, name, issued):
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.crt").write_bytes(issued.certificate)
    (directory / f"{name}.key").write_bytes(issued.key)
    return directory / f"{name}.crt", directory / f"{name}.key"


@pytest.fixture
def authority(tmp_path):
    return Authority.open(tmp_path / "agents")


@pytest.fixture
def agent(authority, tmp_path):
    with served_agent(tmp_path, authority) as agent:
        yield agent


@pytest.fixture
def keeper(agent):
    return agent.keeper


@pytest.fixture
def server(agent):
    return agent.server


@pytest.fixture
def entry(agent):
    return agent.entry


@pytest.fixture
def channel(entry, authority):
    return AgentChannel(entry, authority.credentials)


def test_a_whole_hold_over_the_wire(channel):
    channel.prepare("r1")
    frozen = channel.freeze("r1", 60, 30)
    assert (frozen.run, frozen.applications, frozen.filesystems) == ("r1", (), ())
    assert frozen.began_at <= frozen.frozen_at
    status = channel.status()
    assert (status.name, status.state, status.run) == ("db1", "held", "r1")
    assert abs(status.clock_offset_seconds) <= status.clock_error_seconds + 0.01
    thawed = channel.thaw("r1")
    assert (thawed.held, thawed.frozen_at) == (True, frozen.frozen_at)
    assert channel.thaw("r1") == thawed


@pytest.fixture
def connections(server, monkeypatch):
    """The addresses that connected, in order."""
    seen = []
    serve = server.process_request

    def note(request, address):
        seen.append(address)
        serve(request, address)

    monkeypatch.setattr(server, "process_request", note)
    return seen


def kept(channel):
    return channel._kept.connection._http.sock


def test_one_connection_serves_a_run_and_is_closed_with_it(channel, connections):
    channel.prepare("r1")
    connection = kept(channel)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    channel.freeze("r1", 60, 30)
    assert channel.thaw("r1").held
    assert len(connections) == 1
    assert (channel._kept, connection.fileno()) == (None, -1)


def test_without_prepare_the_freezes_connection_serves_the_thaw(channel, connections):
    channel.freeze("r1", 60, 30)
    assert channel.thaw("r1").held
    assert len(connections) == 1


def test_an_agent_that_goes_while_it_is_connected_to_is_said_to_be_away(channel, monkeypatch):
    """Reset between connect and handshake, which ssl then leaves out."""
    listener = socket.create_server(("127.0.0.1", 0))
    connect = socket.create_connection

    def reset(*arguments, **more):
        made = connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        waiting = select.poll()
        waiting.register(made)
        while not waiting.poll()[0][1] & select.POLLHUP:
            pass
        made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # told once, and somebody has heard it
        return made

    monkeypatch.setattr(socket, "create_connection", reset)
    for call in (lambda: channel.prepare("r1"), lambda: channel.thaw("r1"), channel.status):
        with pytest.raises(AgentUnavailableError, match=r"db1.* does not answer"):
            call()
    listener.close()


@pytest.mark.parametrize("at", ["freeze", "thaw"])
def test_a_kept_connection_that_died_is_replaced(channel, connections, at):
    channel.prepare("r1")
    if at == "freeze":
        kept(channel).shutdown(socket.SHUT_RDWR)
    channel.freeze("r1", 60, 30)
    if at == "thaw":
        kept(channel).shutdown(socket.SHUT_RDWR)
    assert channel.thaw("r1").held
    assert len(connections) == 2


def test_a_kept_connection_that_went_silent_delays_the_thaw_only_so_long(
    channel, connections, monkeypatch
):
    monkeypatch.setattr("atoll.guests.channel._KEPT_THAW_SECONDS", 0.3)
    channel.freeze("r1", 60, 30)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = socket.create_connection(mute.getsockname())
        # What the firewall between forgot: nothing comes back, nobody says so.
        connection = channel._kept.connection._http
        connection.sock.close()
        connection.sock = silent
        assert channel.thaw("r1").held
    assert len(connections) == 2


def test_a_refused_freeze_keeps_the_connection_for_its_thaw(channel, connections, keeper):
    channel.prepare("r2")
    keeper.freeze(FreezeRequest("r1", 60, 30))
    with pytest.raises(HoldFailedError, match="run r1 is held"):
        channel.freeze("r2", 60, 30)
    assert not channel.thaw("r2").held
    assert len(connections) == 1
    assert keeper.state().state == "held"


def test_other_runs_and_status_have_connections_of_their_own(channel, connections):
    channel.prepare("r1")
    assert channel.status().state == "idle"
    assert not channel.thaw("r2").held
    channel.freeze("r1", 60, 30)
    assert len(connections) == 3


def test_a_dropped_channel_hangs_up(entry, authority):
    channel = AgentChannel(entry, authority.credentials)
    channel.prepare("r1")
    connection = kept(channel)
    del channel
    gc.collect()
    assert connection.fileno() == -1


def test_refusals_are_errors_of_the_hold(channel):
    channel.freeze("r1", 60, 30)
    with pytest.raises(HoldFailedError, match=r"db1 could not be held.*run r1 is held"):
        channel.freeze("r2", 60, 30)
    with pytest.raises(AgentUnavailableError, match="lease_seconds must be"):
        channel.freeze("r1", 600, 30)


def stranger_credentials(kind, authority, tmp_path):
    if kind == "agent":
        certificate, key = write(tmp_path / "x", "c", authority.issue_agent("app1", "other"))
    else:
        other = Authority.open(tmp_path / "other")
        certificate, key = write(tmp_path / "x", "c", other.issue_director())
    return Credentials(certificate, key, authority.credentials.authority)


@pytest.mark.parametrize("kind", ["agent", "other authority"])
def test_nobody_but_the_director_gets_anything(kind, entry, authority, keeper, tmp_path):
    stranger = AgentChannel(entry, stranger_credentials(kind, authority, tmp_path))
    for call in (
        stranger.status,
        lambda: stranger.prepare("r"),
        lambda: stranger.freeze("r", 60, 9),
    ):
        with pytest.raises(AgentUnavailableError):
            call()
    assert keeper.state().state == "idle"


def test_a_clients_role_is_checked_beside_its_purpose(server, authority, tmp_path):
    """Even a client certificate of the same authority is refused when its SAN is another."""
    other = authority._signer.issue("backup", "urn:atoll:console", [CLIENT], 1)
    certificate, key = write(tmp_path / "x", "c", other)
    status, answer = raw_call(server, authority, certificate, key, "GET", "/v1/status", b"")
    assert status == 403
    assert set(answer) == {"code", "message"}


def raw_call(server, authority, certificate, key, method, path, body, headers=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority.credentials.authority)
    connection = http.client.HTTPSConnection(*server.server_address, context=context, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/freeze", b"{}", {}, 400),
        ("POST", "/v1/thaw", b'{"run": "a b"}', {}, 400),
        ("POST", "/v1/thaw", b" " * 5000, {}, 400),
        ("POST", "/v1/thaw", b"", {"Content-Length": "-1"}, 400),
        ("POST", "/v1/thaw", b"", {"Content-Length": "999999999999"}, 400),
        ("POST", "/v1/run", b'{"run": "a"}', {}, 404),
        ("GET", "/../etc/passwd", b"", {}, 404),
    ],
)
def test_wrong_requests_get_their_status(server, authority, method, path, body, headers, status):
    ours = authority.credentials
    got, answer = raw_call(
        server, authority, ours.certificate, ours.key, method, path, body, headers
    )
    assert got == status
    assert answer["message"].endswith(".")


def test_older_protocols_are_refused(server, authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(authority.credentials.authority)
    with (
        socket.create_connection(server.server_address, timeout=30) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain)


def test_the_director_knows_its_agents_apart(entry, authority):
    elsewhere = dataclasses.replace(entry, instance_uuid="another")
    with pytest.raises(AgentUnavailableError, match="is not the agent of db1"):
        AgentChannel(elsewhere, authority.credentials).status()
    replaced = dataclasses.replace(entry, fingerprint="00")
    with pytest.raises(AgentUnavailableError, match="was replaced"):
        AgentChannel(replaced, authority.credentials).thaw("r")


def test_silence_ends_with_the_deadline(entry, authority, monkeypatch):
    monkeypatch.setattr("atoll.guests.channel._STATUS_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = dataclasses.replace(entry, port=mute.getsockname()[1])
        with pytest.raises(AgentUnavailableError, match="does not answer"):
            AgentChannel(silent, authority.credentials).status()


def test_a_stranger_who_connects_and_waits_stops_nobody(server, channel):
    with (
        socket.create_connection(server.server_address),
        socket.create_connection(server.server_address),
    ):
        assert channel.status().state == "idle"


def test_nobody_listening_is_said_with_the_address(entry, authority):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    gone = dataclasses.replace(entry, port=port)
    channels = open_channels((gone,), authority.credentials)
    with pytest.raises(AgentUnavailableError, match=f"127.0.0.1:{port} does not answer"):
        channels[UUID].status()
