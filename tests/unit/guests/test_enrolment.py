"""Enrolment writes everything a guest needs and remembers where the agent is."""

import io
import json
import stat
import tarfile

import pytest

from atoll.guests.authority import Authority
from atoll.guests.enrolment import enrol
from atoll.guests.package import build_agent, main
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import ConfigurationError
from atoll_agent.config import load_config


@pytest.fixture
def authority(tmp_path):
    return Authority.open(tmp_path / "agents")


def test_the_tar_is_what_the_agent_reads(authority, tmp_path):
    out = enrol(authority, "db1", "u-1", tmp_path / "db1.tar", address="10.0.0.7", port=9000)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with tarfile.open(out) as archive:
        archive.extractall(tmp_path / "root", filter="fully_trusted")
    root = tmp_path / "root"
    config = load_config(root / "etc/atoll/agent.json")
    assert (config.name, config.instance_uuid, config.port) == ("db1", "u-1", 9000)
    assert stat.S_IMODE(config.key.stat().st_mode) == 0o600
    assert config.certificate == config.key
    assert config.authority.read_bytes() == authority.trusted
    assert (root / "usr/lib/atoll/atoll-agent.pyz").read_bytes() == build_agent()
    unit = (root / "etc/systemd/system/atoll-agent.service").read_text()
    assert "/usr/lib/atoll/atoll-agent.pyz serve" in unit
    assert "KillMode=process" in unit


def test_enrolling_again_replaces_the_certificate(authority, tmp_path):
    for _ in range(2):
        enrol(authority, "db1", "u-1", tmp_path / "db1.tar", address="a")
        [entry] = AgentRegistry(authority.directory).agents()
        fingerprints = fingerprint_of(tmp_path / "db1.tar")
        assert entry.fingerprint == fingerprints
    enrol(authority, "app1", "u-2", tmp_path / "app1.tar", address="b")
    names = [entry.name for entry in AgentRegistry(authority.directory).agents()]
    assert names == ["app1", "db1"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 99999},
        {"applications": [{"kind": "postgresql", "name": "x", "witnes": "SELECT 1"}]},
        {"applications": [{"kind": "dbase", "name": "x"}]},
    ],
)
def test_what_the_agent_would_refuse_replaces_nothing(authority, tmp_path, wrong):
    enrol(authority, "db1", "u-1", tmp_path / "db1.tar", address="a")
    before = AgentRegistry(authority.directory).agents()
    with pytest.raises(ConfigurationError, match=r"would refuse its configuration: .*must be"):
        enrol(authority, "db1", "u-1", tmp_path / "again.tar", **{"address": "a", **wrong})
    with pytest.raises(ConfigurationError, match="Cannot write"):
        enrol(authority, "db1", "u-1", tmp_path / "no" / "such.tar", address="a")
    assert AgentRegistry(authority.directory).agents() == before
    assert not (tmp_path / "again.tar").exists()


def fingerprint_of(tar):
    import hashlib
    import ssl

    with tarfile.open(tar) as archive:
        pem = archive.extractfile("etc/atoll/agent.pem").read().decode()
    pem = pem[: pem.index("-----BEGIN PRIVATE")]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def test_the_registry_survives_and_forgets(tmp_path):
    registry = AgentRegistry(tmp_path)
    entry = EnrolledAgent("u", "db1", "h", 1, "f")
    registry.put(entry)
    assert AgentRegistry(tmp_path).agents() == (entry,)
    registry.remove("u")
    registry.remove("u")
    assert registry.agents() == ()


@pytest.mark.parametrize("text", ["", "{}x", '[{"name": 1}]', "[3]"])
def test_a_damaged_registry_is_said(tmp_path, text):
    (tmp_path / "agents.json").write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        AgentRegistry(tmp_path).agents()


def test_the_package_is_the_same_each_time_and_runs(tmp_path):
    import subprocess

    assert build_agent() == build_agent()
    assert main([str(tmp_path / "out/agent.pyz")]) == 0
    done = subprocess.run(
        ["/usr/bin/python3", "-I", tmp_path / "out/agent.pyz", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("atoll-agent ")
    assert (
        io.BytesIO((tmp_path / "out/agent.pyz").read_bytes()).readline() == b"#!/usr/bin/python3\n"
    )


def test_applications_reach_the_guest(authority, tmp_path):
    words = [{"kind": "postgresql", "name": "15-main", "witness": "SELECT 1"}]
    out = enrol(authority, "db1", "u", tmp_path / "t.tar", address="a", applications=words)
    with tarfile.open(out) as archive:
        config = json.load(archive.extractfile("etc/atoll/agent.json"))
    assert config["applications"] == words
