"""Enrolment by token: the agent's half against the director's endpoint, over real TLS."""

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import threading

import pytest

from agent_parts import UUID, serving
from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.invitation import Invitations, same_machine
from atoll.guests.reception import Reception
from atoll.guests.registry import AgentRegistry
from atoll_agent import enrolment
from atoll_agent.config import load_config
from atoll_agent.enrolment import enrol, parse_token, prove
from atoll_agent.errors import EnrolmentError
from atoll_agent.keeper import Keeper
from atoll_agent.keys import new_key

BIOS = "564d1234-5678-9abc-def0-123456789abc"
AS_THE_KERNEL_READS_IT = "34124d56-7856-bc9a-def0-123456789abc"


@pytest.fixture
def authority(tmp_path):
    return Authority.open(tmp_path / "agents")


@pytest.fixture
def arrivals():
    return []


@pytest.fixture
def reception(authority, arrivals):
    with Reception(authority, ("127.0.0.1", 0), arrivals.append) as reception:
        yield reception


@pytest.fixture
def machine(monkeypatch):
    """Which machine the guest says it is."""
    known = {"uuid": AS_THE_KERNEL_READS_IT}
    monkeypatch.setattr(enrolment, "product_uuid", lambda: known["uuid"])
    return known


@pytest.fixture
def invite(authority, reception, machine):
    def invite(valid_seconds=600.0, **changes):
        asked = {"vm_name": "db1", "instance_uuid": UUID, "bios_uuid": BIOS, "address": ""}
        asked |= {"port": 8443, "listen_port": 8443, "valid_seconds": valid_seconds}
        asked |= {"pin": authority.enrolment_identity()[1]}
        asked |= {"endpoint": ("127.0.0.1", reception.port), **changes}
        return Invitations(authority.directory).create(**asked)[1]

    return invite


def test_a_guest_enrols_and_serves_the_director(authority, arrivals, invite, tmp_path):
    guest = tmp_path / "guest"
    assert enrol(parse_token(invite()), guest) == "db1"
    [arrival] = arrivals
    assert (arrival.peer, arrival.remark) == ("127.0.0.1", "")
    [entry] = AgentRegistry(authority.directory).agents()
    assert arrival.enrolled == entry
    assert (entry.name, entry.address, entry.port) == ("db1", "127.0.0.1", 8443)
    config = load_config(guest / "agent.json")
    assert (config.name, config.instance_uuid, config.port) == ("db1", UUID, 8443)
    for private in (config.key, guest / "agent.json"):
        assert private.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in guest.iterdir()) == ["agent.json", "agent.pem", "ca.crt"]
    import dataclasses

    here = dataclasses.replace(config, address="127.0.0.1", port=0)
    with serving(here, Keeper(list, list)) as server:
        where = dataclasses.replace(entry, port=server.server_address[1])
        channel = AgentChannel(where, authority.credentials)
        assert channel.status().instance_uuid == UUID


def test_a_token_is_good_once(authority, arrivals, invite, tmp_path):
    token = parse_token(invite())
    enrol(token, tmp_path / "guest")
    before = AgentRegistry(authority.directory).agents()
    with pytest.raises(EnrolmentError, match="used already to enrol db1"):
        enrol(token, tmp_path / "thief")
    assert AgentRegistry(authority.directory).agents() == before
    assert arrivals[-1].enrolled is None
    assert not (tmp_path / "thief/agent.json").exists()


def test_a_lost_answer_is_asked_for_again_with_the_same_key(
    authority, invite, tmp_path, monkeypatch
):
    token = parse_token(invite())

    def lost(*_):
        raise EnrolmentError("The connection was lost.")

    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "_certificates", lost)
        with pytest.raises(EnrolmentError, match="lost"):
            enrol(token, tmp_path / "guest")
    [first] = AgentRegistry(authority.directory).agents()
    enrol(token, tmp_path / "guest")
    [second] = AgentRegistry(authority.directory).agents()
    assert first.fingerprint != second.fingerprint
    text = (tmp_path / "guest/agent.pem").read_text()
    der = ssl.PEM_cert_to_DER_cert(text[: text.index("-----BEGIN PRIVATE")])
    assert hashlib.sha256(der).hexdigest() == second.fingerprint


def test_it_expires_and_says_so(invite, tmp_path):
    with pytest.raises(EnrolmentError, match="has expired"):
        enrol(parse_token(invite(valid_seconds=-1)), tmp_path / "guest")


def test_inviting_again_voids_the_token_before(invite, tmp_path):
    first = invite()
    invite()
    with pytest.raises(EnrolmentError, match="not valid"):
        enrol(parse_token(first), tmp_path / "guest")


def test_a_wrong_secret_is_told_nothing_and_soon_ends_the_token(authority, invite, tmp_path):
    import dataclasses

    token = parse_token(invite())
    forged = dataclasses.replace(token, secret=b"x" * 20)
    unknown = dataclasses.replace(token, id=b"x" * 8)
    said = set()
    for attempt in (*[forged] * 5, unknown, token):
        with pytest.raises(EnrolmentError) as refusal:
            enrol(attempt, tmp_path / "guest")
        said.add(str(refusal.value))
    assert len(said) == 1
    assert AgentRegistry(authority.directory).agents() == ()


def test_a_good_proof_costs_no_attempt(authority, invite, machine, tmp_path):
    token = parse_token(invite())
    machine["uuid"] = "00000000-0000-0000-0000-000000000001"
    for _ in range(7):
        with pytest.raises(EnrolmentError, match=r"is for db1.*seems to be another VM"):
            enrol(token, tmp_path / "guest")
    machine["uuid"] = BIOS
    enrol(token, tmp_path / "guest")


@pytest.mark.parametrize(
    ("claimed", "known", "remark"),
    [("", BIOS, "could not tell its UUID"), ("11111111-0000-0000-0000-000000000001", "", "")],
)
def test_what_cannot_be_compared_is_let_in(
    invite, machine, arrivals, tmp_path, claimed, known, remark
):
    machine["uuid"] = claimed
    enrol(parse_token(invite(bios_uuid=known)), tmp_path / "guest")
    assert remark in arrivals[0].remark
    assert bool(arrivals[0].remark) == bool(remark)


def test_both_orders_of_a_machines_bytes_are_it():
    assert same_machine(BIOS, BIOS.upper())
    assert same_machine(AS_THE_KERNEL_READS_IT, BIOS)
    assert not same_machine(BIOS, BIOS.replace("9abc", "9abd"))
    assert not same_machine("", BIOS)


def test_the_admins_settings_outlive_enrolment(invite, tmp_path):
    guest = tmp_path / "guest"
    guest.mkdir()
    mine = {"freeze_never": ["/scratch"], "address": "127.0.0.1", "name": "old"}
    (guest / "agent.json").write_text(json.dumps(mine))
    enrol(parse_token(invite()), guest)
    config = load_config(guest / "agent.json")
    assert (config.name, config.address, config.freeze_never) == ("db1", "127.0.0.1", ("/scratch",))


def test_settings_that_do_not_do_are_said_before_the_token_is_spent(authority, invite, tmp_path):
    guest = tmp_path / "guest"
    guest.mkdir()
    (guest / "agent.json").write_text('{"freeze_nevr": []}')
    with pytest.raises(EnrolmentError, match="could not be used"):
        enrol(parse_token(invite()), guest)
    assert Invitations(authority.directory).all()[0].open
    assert (guest / "agent.json").read_text() == '{"freeze_nevr": []}'
    assert not (guest / "agent.pem").exists()


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: "x" + t, lambda t: t[:40] + "A" + t[41:], lambda t: ""]
)
def test_a_token_copied_badly_is_noticed(invite, damage):
    with pytest.raises(EnrolmentError, match="copy it again"):
        parse_token(damage(invite()))


def test_only_the_pinned_endpoint_hears_anything(authority, invite, tmp_path):
    """A stranger with a certificate of the same authority is not told so much as the token's id."""
    heard = []
    issued = authority.issue_agent("impostor", "other")
    (tmp_path / "stranger.pem").write_bytes(issued.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "stranger.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend():
            # The guest may hang up at any moment, which is what is asked of it.
            with (
                contextlib.suppress(OSError),
                listener.accept()[0] as plain,
                context.wrap_socket(plain, server_side=True) as tls,
            ):
                tls.sendall(b'{"atoll": 1, "nonce": "00"}\n')
                heard.append(tls.read(100))

        thread = threading.Thread(target=pretend)
        thread.start()
        host, port = listener.getsockname()
        with pytest.raises(EnrolmentError, match="not the director that made this token"):
            enrol(parse_token(invite()), tmp_path / "guest", f"{host}:{port}")
        thread.join()
    assert b"".join(heard) == b""


def test_an_endpoint_that_cannot_prove_itself_enrols_nobody(authority, invite, tmp_path):
    """Even one that has stolen the endpoint's key: it does not know the secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.enrolment_identity()[0])
    other = Authority.open(tmp_path / "other")
    public = []

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend():
            with (
                listener.accept()[0] as plain,
                context.wrap_socket(plain, server_side=True) as tls,
                tls.makefile("rwb") as stream,
            ):
                stream.write(b'{"atoll": 1, "nonce": "00"}\n')
                stream.flush()
                public.append(json.loads(json.loads(stream.readline())["request"])["public_key"])
                reply = {
                    "certificate": other.issue_agent("db1", UUID).certificate.decode(),
                    "authorities": other.trusted.decode(),
                    "name": "db1",
                    "instance_uuid": UUID,
                    "port": 8443,
                }
                answer = {"reply": json.dumps(reply), "proof": "00" * 32}
                stream.write(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(EnrolmentError, match="not the director's"):
            enrol(
                parse_token(invite()),
                tmp_path / "guest",
                f"127.0.0.1:{listener.getsockname()[1]}",
            )
        thread.join()
    assert public
    assert not (tmp_path / "guest/agent.pem").exists()


def converse(reception, answer):
    """Speak to the endpoint by hand: what it says to the line that `answer(nonce)` makes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", reception.port), timeout=30) as plain,
        context.wrap_socket(plain) as tls,
        tls.makefile("rwb") as stream,
    ):
        nonce = json.loads(stream.readline())["nonce"]
        stream.write(answer(nonce))
        stream.flush()
        return stream.readline()


def request_of(token, **changes):
    fields = {
        "token": token.id.hex(),
        "public_key": base64.b64encode(new_key()[1]).decode(),
        "product_uuid": "",
        "hostname": "h",
        **changes,
    }
    return json.dumps(fields)


def test_a_proof_is_of_no_use_with_another_nonce_or_another_key(authority, reception, invite):
    token = parse_token(invite())
    seen = []

    def listen(nonce):
        request = request_of(token)
        seen.append(
            {"request": request, "proof": prove(token.secret, (nonce + request).encode()).hex()}
        )
        return b"{}\n"

    converse(reception, listen)
    replay = json.dumps(seen[0]).encode() + b"\n"
    assert b"not valid" in converse(reception, lambda _: replay)
    altered = json.dumps({**seen[0], "request": request_of(token)}).encode() + b"\n"
    assert b"not valid" in converse(reception, lambda _: altered)
    assert AgentRegistry(authority.directory).agents() == ()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"[]\n",
        b"x" * 20000 + b"\n",
        b"[" * 8000 + b"\n",
        b'{"request": 1, "proof": "00"}\n',
        b'{"request": "{}", "proof": "' + b"00" * 32 + b'"}\n',
        b'{"request": "\\ud800", "proof": "' + b"00" * 32 + b'"}\n',
        b'{"request": "{\\"token\\": 1}", "proof": "' + b"0" * 64 + b'"}\n',
    ],
)
def test_nonsense_is_refused_and_the_next_guest_served(reception, invite, tmp_path, line):
    answer = converse(reception, lambda _: line) if line else b""
    assert answer == b"" or "error" in json.loads(answer)
    enrol(parse_token(invite()), tmp_path / "guest")


@pytest.mark.parametrize("key", ["", "AAAA", base64.b64encode(b"\x30\x03\x02\x01\x01").decode()])
def test_a_key_that_is_none_leaves_the_token(authority, reception, invite, tmp_path, key):
    token = parse_token(invite())

    def answer(nonce):
        request = request_of(token, public_key=key)
        proof = prove(token.secret, (nonce + request).encode()).hex()
        return json.dumps({"request": request, "proof": proof}).encode() + b"\n"

    assert b"makes no sense" in converse(reception, answer)
    enrol(token, tmp_path / "guest")


def test_older_protocols_are_refused(reception):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", reception.port), timeout=30) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain)


def test_the_secret_is_stored_nowhere(authority, invite):
    token = parse_token(invite())
    stored = (authority.directory / "invitations.json").read_text()
    assert token.id.hex() in stored
    for form in (token.secret.hex(), base64.b64encode(token.secret).decode()):
        assert form not in stored


def test_nobody_listening_is_said_with_the_way_out(invite, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(EnrolmentError, match=f"127.0.0.1:{port} does not answer.*--director"):
        enrol(parse_token(invite()), tmp_path / "guest", f"127.0.0.1:{port}")


@pytest.mark.parametrize("director", ["host:", "host:x", "host:0", "host:99999", "[::1]:"])
def test_a_director_that_is_no_address_is_said(invite, tmp_path, director):
    with pytest.raises(EnrolmentError, match="not HOST:PORT"):
        enrol(parse_token(invite()), tmp_path / "guest", director)


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ("h", ("h", 1)),
        ("h:2", ("h", 2)),
        ("[::1]:2", ("::1", 2)),
        ("[::1]", ("::1", 1)),
        ("::1", ("::1", 1)),
    ],
)
def test_a_directors_address_is_read(given, split):
    assert enrolment._split(given, 1) == split


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_write_leaves_a_token_that_is_used_once(
    authority, invite, tmp_path, monkeypatch, after
):
    """The guest asks again with the key it has; a thief with the same token gets nothing."""
    from atoll.guests import invitation, registry

    writes = {"count": 0, "fatal": -1}

    def deadly(act):
        def write(*arguments):
            number, writes["count"] = writes["count"], writes["count"] + 1
            if after:
                act(*arguments)
            if number == writes["fatal"]:
                raise OSError(5, "killed")
            if not after:
                act(*arguments)

        return write

    token = None
    for module in (invitation, registry):
        monkeypatch.setattr(module, "write_atomically", deadly(module.write_atomically))
    for fatal in range(10):
        writes["fatal"] = -1
        token = parse_token(invite())
        writes.update(count=0, fatal=fatal)
        try:
            enrol(token, tmp_path / f"guest{fatal}")
            break
        except EnrolmentError:
            spent = Invitations(authority.directory).all()[-1].used_by
            writes["fatal"] = -1
        enrol(token, tmp_path / f"guest{fatal}")
        config = load_config(tmp_path / f"guest{fatal}/agent.json")
        text = config.certificate.read_text()
        der = ssl.PEM_cert_to_DER_cert(text[: text.index("-----BEGIN PRIVATE")])
        [entry] = AgentRegistry(authority.directory).agents()
        assert entry.fingerprint == hashlib.sha256(der).hexdigest()
        assert not spent or spent == Invitations(authority.directory).all()[-1].used_by
        with pytest.raises(EnrolmentError, match="used already"):
            enrol(token, tmp_path / f"thief{fatal}")
    assert fatal == 4, "an attempt noted, given back, the token spent, the agent entered"


def test_many_guests_at_once_and_one_token_each(authority, invite, tmp_path):
    tokens = [parse_token(invite(instance_uuid=f"u-{n}", vm_name=f"vm{n}")) for n in range(6)]
    threads = [
        threading.Thread(target=enrol, args=(token, tmp_path / f"guest{n}"))
        for n, token in enumerate(tokens)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(AgentRegistry(authority.directory).agents()) == 6


def test_of_two_with_the_same_token_one_is_enrolled(authority, invite, tmp_path):
    token = parse_token(invite())
    outcomes = []

    def attempt(number):
        try:
            outcomes.append(enrol(token, tmp_path / f"guest{number}"))
        except EnrolmentError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("db1") == 1
    assert all("used already" in outcome for outcome in outcomes if outcome != "db1")
