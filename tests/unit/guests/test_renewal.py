"""Certificates are renewed over the agent's own channel, and no death on the way locks anyone out."""

import dataclasses
import hashlib
import ssl

import pytest

from agent_parts import served_agent, serving
from atoll.guests import connection, registry, renewal
from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.registry import AgentRegistry, EnrolledAgent, ExpectedCertificate
from atoll.guests.renewal import due, renew, renew_agent, renew_due
from atoll.model.errors import AgentUnavailableError
from atoll_agent import identity
from atoll_agent.keeper import Keeper
from atoll_agent.protocol import FreezeRequest


class Killed(Exception):
    """Stands for a kill -9: nothing that follows in that process happens."""


@pytest.fixture
def authority(tmp_path):
    return Authority.open(tmp_path / "agents")


@pytest.fixture
def agent(authority, tmp_path):
    with served_agent(tmp_path, authority) as agent:
        yield agent


def certificate_on_disk(config):
    text = config.certificate.read_text()
    der = ssl.PEM_cert_to_DER_cert(text[: text.index("-----BEGIN PRIVATE")])
    return hashlib.sha256(der).hexdigest()


def test_a_renewal_replaces_key_and_certificate(authority, agent):
    before, files = agent.entry, agent.config.key.read_bytes()
    after = renew_agent(authority, before)
    assert after.fingerprint == certificate_on_disk(agent.config) != before.fingerprint
    assert (after.pending, after.trusts) == ((), authority.trusted_fingerprints)
    assert after.expires_at >= before.expires_at
    assert agent.config.key.read_bytes() != files
    assert sorted(path.name for path in agent.config.key.parent.iterdir()) == [
        "agent.json",
        "agent.pem",
        "ca.crt",
    ]
    old = AgentChannel(before, authority.credentials)
    with pytest.raises(AgentUnavailableError, match="was replaced"):
        old.status()


def test_a_renewal_needs_nothing_that_windows_lacks(authority, agent, monkeypatch):
    """Of the files, that is; this was not run on Windows."""
    before = agent.entry
    with monkeypatch.context() as patch:
        patch.delattr("os.memfd_create")
        assert renew_agent(authority, before).fingerprint == certificate_on_disk(agent.config)


def test_a_channel_outlives_the_renewal(authority, agent):
    channel = agent.channel()
    renew_agent(authority, agent.entry)
    assert channel.status().state == "idle"


def test_a_hold_is_not_disturbed_and_the_renewal_is_asked_for_again(authority, agent):
    channel = agent.channel()
    channel.freeze("r1", 60, 30)
    [outcome] = renew(authority, [agent.entry])
    assert "Run r1 holds this guest" in outcome.problem
    with pytest.raises(AgentUnavailableError, match="Run r1 holds"):
        channel.look()
    assert channel.thaw("r1").held
    [outcome] = renew(authority, [agent.entry])
    assert outcome.problem == ""


def test_a_kept_connection_goes_on_through_a_renewal(authority, agent):
    channel = agent.channel()
    channel.prepare("r1")
    renew_agent(authority, agent.entry)
    channel.freeze("r1", 60, 30)
    assert channel.thaw("r1").held


def test_a_hold_by_vmware_tools_is_not_disturbed_either(authority, agent, monkeypatch):
    class Tools:
        under_way = True

    monkeypatch.setattr(agent.server, "vmware", Tools())
    [outcome] = renew(authority, [agent.entry])
    assert "VMware Tools holds this guest" in outcome.problem
    with pytest.raises(AgentUnavailableError, match="VMware Tools holds"):
        agent.channel().look()


def test_a_list_damaged_during_a_hold_keeps_nobody_from_thawing(authority, agent):
    channel = agent.channel()
    channel.freeze("r1", 60, 30)
    path = authority.directory / "agents.json"
    whole = path.read_bytes()
    path.write_bytes(b"[{")
    channel.close()
    assert channel.thaw("r1").held
    path.write_bytes(whole)


class Reaper:
    """Counts the steps of both sides and ends whoever takes the chosen one, before or after it."""

    def __init__(self, monkeypatch):
        self.steps, self.fatal, self.after = 0, -1, False
        for module, name in (
            (registry, "write_atomically"),
            (identity, "write_private"),
            (connection.AgentConnection, "call"),
        ):
            monkeypatch.setattr(module, name, self._deadly(getattr(module, name)))

    def _deadly(self, act):
        def step(*arguments, **named):
            number, self.steps = self.steps, self.steps + 1
            if number == self.fatal and not self.after:
                raise Killed
            result = act(*arguments, **named)
            if number == self.fatal:
                raise Killed
            return result

        return step


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_leaves_a_pair_that_works(authority, tmp_path, monkeypatch, after):
    with served_agent(tmp_path, authority) as agent:
        config, entry = agent.config, agent.entry
    places = AgentRegistry(authority.directory)
    reaper = Reaper(monkeypatch)
    survived = False
    for fatal in range(40):
        with serving(config, Keeper(list, list)) as server:
            places.put(dataclasses.replace(entry, port=server.server_address[1]))
            reaper.steps, reaper.fatal, reaper.after = 0, fatal, after
            try:
                renew_agent(authority, places.agents()[0])
                survived = True
            except (Killed, AgentUnavailableError):
                survived = False
            reaper.fatal = -1
        # Both start again, from what lies on their disks.
        with serving(config, Keeper(list, list)) as server:
            [entry] = places.agents()
            entry = dataclasses.replace(entry, port=server.server_address[1])
            places.put(entry)
            channel = AgentChannel(entry, authority.credentials, places)
            assert channel.status().state == "idle", f"locked out by a kill at step {fatal}"
            [entry] = places.agents()
            assert entry.fingerprint == certificate_on_disk(config)
            entry = renew_agent(authority, entry)
            assert entry.pending == ()
        if survived:
            break
    assert survived
    assert fatal >= 9, "two calls and a look, three writes here, four there"


def test_renewals_cut_short_again_and_again_keep_every_way_open(authority, agent, monkeypatch):
    """The director dies before sending, many times: the agent shows its first certificate still."""
    send = connection.AgentConnection.call

    def die(self, method, path, *rest):
        if path == "/v1/install":
            raise Killed
        return send(self, method, path, *rest)

    first = agent.entry.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(connection.AgentConnection, "call", die)
        for _ in range(12):
            with pytest.raises(Killed):
                renew_agent(authority, agent.entry)
    assert agent.entry.fingerprint == first
    assert 0 < len(agent.entry.pending) <= 8
    assert agent.channel().status().state == "idle"
    assert renew_agent(authority, agent.entry).pending == ()


def test_of_several_pending_the_one_shown_voids_those_before_it():
    certificates = [ExpectedCertificate(name, 1.0, "ca") for name in ("b", "c", "d")]
    agent = EnrolledAgent("u", "db1", "h", 1, "a", 0.0, "ca", (), tuple(certificates))
    assert agent.accepted == ("a", "b", "c", "d")
    assert agent.showing("c").accepted == ("c", "d")
    assert agent.showing("a") == agent.showing("x") == agent


@pytest.mark.parametrize(
    ("days_left", "is_due"), [(80, False), (31, False), (29, True), (0, True), (None, False)]
)
def test_what_is_due(authority, agent, days_left, is_due):
    import time

    at = None if days_left is None else time.time() + days_left * 86400
    entry = dataclasses.replace(agent.entry, expires_at=at)
    assert due(authority, [entry]) == ([entry] if is_due else [])


def test_only_what_is_due_is_renewed(authority, agent):
    assert renew_due(authority) == []
    agent.registry.put(dataclasses.replace(agent.entry, expires_at=0.0))
    [outcome] = renew_due(authority)
    assert (outcome.name, outcome.problem) == ("db1", "")
    assert renew_due(authority) == []


def test_an_agent_that_is_away_stays_due(authority, agent):
    away = dataclasses.replace(agent.entry, instance_uuid="gone", name="app1", port=1)
    agent.registry.put(dataclasses.replace(away, expires_at=0.0))
    for _ in range(2):
        [outcome] = renew_due(authority)
        assert "does not answer" in outcome.problem


def test_an_authority_is_succeeded_with_all_its_agents(authority, agent):
    first = authority.trusted_fingerprints
    renew_due(authority.prepare_successor())
    now = Authority.open(authority.directory)
    assert (now.signing_fingerprint,) == now.trusted_fingerprints != first
    assert agent.entry.authority == now.signing_fingerprint
    assert agent.entry.trusts == now.trusted_fingerprints
    assert agent.config.authority.read_bytes() == now.trusted
    assert AgentChannel(agent.entry, now.credentials).status().state == "idle"


def test_a_succession_waits_for_the_last_agent(authority, agent, tmp_path):
    with served_agent(tmp_path, authority, name="app1", instance_uuid="u-2") as other:
        agent.registry.put(dataclasses.replace(other.entry, port=1))
        renew_due(authority.prepare_successor())
        now = Authority.open(authority.directory)
        assert now.signing_fingerprint == authority.signing_fingerprint
        assert len(now.trusted_fingerprints) == 2
        for each in (agent.entry, dataclasses.replace(agent.entry, **vars_of(other))):
            assert AgentChannel(each, now.credentials).status().state == "idle"

        agent.registry.put(dataclasses.replace(other.entry, port=other.address[1]))
        assert [outcome.problem for outcome in renew_due(now)] == ["", ""]
        now = Authority.open(authority.directory)
        assert len(now.trusted_fingerprints) == 1
        assert now.signing_fingerprint != authority.signing_fingerprint
        for each in agent.registry.agents():
            assert AgentChannel(each, now.credentials).status().state == "idle"


def vars_of(agent):
    entry = agent.entry
    return {
        "instance_uuid": entry.instance_uuid,
        "fingerprint": entry.fingerprint,
        "port": agent.address[1],
    }


def test_an_agent_forgotten_lets_a_succession_go_on(authority, agent):
    away = dataclasses.replace(agent.entry, instance_uuid="gone", name="app1", port=1)
    agent.registry.put(away)
    both = authority.prepare_successor()
    renew_due(both)
    agent.registry.remove("gone")
    renew_due(both)
    assert len(Authority.open(authority.directory).trusted_fingerprints) == 1


def install(agent, **changes):
    channel = agent.channel()
    public = channel.ask("POST", "/v1/renew", {}, 30)["public_key"]
    import base64

    from atoll.guests.certificates import parse_public_key

    key = parse_public_key(base64.b64decode(public))
    order = {
        "certificate": agent.authority.sign_agent(
            "db1", agent.config.instance_uuid, key
        ).certificate.decode(),
        "authorities": agent.authority.trusted.decode(),
    }
    return channel.ask("POST", "/v1/install", {**order, **changes}, 30)


def test_an_agent_takes_nothing_that_would_lock_it_out(authority, agent, tmp_path):
    other = Authority.open(tmp_path / "other")
    before = agent.config.certificate.read_bytes(), agent.config.authority.read_bytes()
    expired = Authority.open(authority.directory, -0.5).issue_agent(
        "db1", agent.entry.instance_uuid
    )
    for wrong in (
        {"authorities": other.trusted.decode()},
        {
            "certificate": authority.issue_agent(
                "db1", agent.entry.instance_uuid
            ).certificate.decode()
        },
        {"certificate": expired.certificate.decode()},
        {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"certificate": authority.issue_director().pem.decode()},
    ):
        with pytest.raises(AgentUnavailableError, match=r"does not do|certificates alone"):
            install(agent, **wrong)
    assert (agent.config.certificate.read_bytes(), agent.config.authority.read_bytes()) == before
    assert agent.channel().status().state == "idle"


def test_an_agent_takes_no_other_guests_certificate(authority, agent):
    import base64

    from atoll.guests.certificates import parse_public_key

    channel = agent.channel()
    key = base64.b64decode(channel.ask("POST", "/v1/renew", {}, 30)["public_key"])
    foreign = authority.sign_agent("app1", "u-2", parse_public_key(key)).certificate.decode()
    order = {"certificate": foreign, "authorities": authority.trusted.decode()}
    with pytest.raises(AgentUnavailableError, match="another guest's"):
        channel.ask("POST", "/v1/install", order, 30)


def test_a_certificate_without_a_key_that_waits_is_refused(authority, agent):
    order = {
        "certificate": authority.issue_agent("db1", "u").certificate.decode(),
        "authorities": authority.trusted.decode(),
    }
    with pytest.raises(AgentUnavailableError, match="No key waits"):
        agent.channel().ask("POST", "/v1/install", order, 30)


def test_while_a_file_is_written_no_hold_begins(agent):
    """The agent writes no file while frozen: the freeze comes after the write."""
    import threading

    order = []

    def freeze():
        agent.keeper.freeze(FreezeRequest("r1", 60, 30))
        order.append("frozen")

    with agent.keeper.undisturbed():
        thread = threading.Thread(target=freeze)
        thread.start()
        thread.join(0.2)
        order.append("written")
    thread.join()
    assert order == ["written", "frozen"]


def test_what_a_killed_write_left_is_swept(agent):
    directory = agent.config.certificate.parent
    (directory / ".agent.pem.abcd1234").write_bytes(b"half a key")
    identity.sweep(directory)
    assert sorted(path.name for path in directory.iterdir()) == [
        "agent.json",
        "agent.pem",
        "ca.crt",
    ]


def test_an_agent_from_before_says_what_to_do(authority, agent, monkeypatch):
    apart = dataclasses.replace(agent.config, key=agent.config.key.with_name("agent.key"))
    monkeypatch.setattr(agent.server.identity, "_config", apart)
    with pytest.raises(AgentUnavailableError, match=r"older version.*enrol it again"):
        renew_agent(authority, agent.entry)


def test_renewed_outcomes_keep_their_order(authority, agent):
    away = dataclasses.replace(agent.entry, instance_uuid="gone", name="zz", port=1)
    outcomes = renewal.renew(authority, [away, agent.entry])
    assert [outcome.name for outcome in outcomes] == ["zz", "db1"]


def test_a_backup_run_renews_what_is_due_and_says_what_it_could_not(authority, agent):
    from atoll.settings import Settings
    from atoll.wiring import renew_agents

    settings = Settings.model_validate(
        {
            "storage": [{"name": "none", "driver": "embedded"}],
            "agents": {"directory": authority.directory},
        }
    )
    assert renew_agents(settings) == []
    before = dataclasses.replace(agent.entry, expires_at=0.0)
    agent.registry.put(before)
    assert renew_agents(settings) == []
    assert agent.entry.fingerprint != before.fingerprint
    agent.registry.put(dataclasses.replace(before, port=1))
    [said] = renew_agents(settings)
    assert said.startswith("The certificate of db1's agent was not renewed: ")
    assert "does not answer" in said
