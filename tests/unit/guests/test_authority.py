"""The authority makes keys once, keeps them close, and signs for one purpose each."""

import stat
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from atoll.guests.authority import DIRECTOR_URI, Authority
from atoll.model.errors import ConfigurationError


def names_of(pem):
    certificate = x509.load_pem_x509_certificate(pem)
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.UniformResourceIdentifier)


def test_it_is_made_once_and_loaded_after(tmp_path):
    first = Authority.open(tmp_path / "agents")
    again = Authority.open(tmp_path / "agents")
    assert first.trusted == again.trusted
    assert first.credentials == again.credentials
    assert first.credentials.authority.read_bytes() == first.trusted
    assert first.enrolment_identity() == again.enrolment_identity()


def test_keys_are_for_the_owner_only(tmp_path):
    authority = Authority.open(tmp_path / "agents")
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700
    authority.enrolment_identity()
    for key in ("ca.key", "director.pem", "enrolment.pem"):
        assert stat.S_IMODE((authority.directory / key).stat().st_mode) == 0o600


def test_roles_are_in_the_certificates(tmp_path):
    authority = Authority.open(tmp_path / "agents")
    agent = authority.issue_agent("db1", "ABCD-1")
    assert names_of(agent.certificate) == ["urn:uuid:abcd-1"]
    assert names_of(authority.credentials.certificate.read_bytes()) == [DIRECTOR_URI]
    usage = x509.load_pem_x509_certificate(agent.certificate).extensions
    assert list(usage.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


@pytest.mark.parametrize("lost", ["ca.crt", "director.pem", "trusted.crt"])
def test_a_creation_cut_short_is_finished(tmp_path, lost):
    authority = Authority.open(tmp_path / "agents")
    (authority.directory / lost).unlink()
    again = Authority.open(tmp_path / "agents")
    assert again.credentials.certificate.exists()
    assert again.credentials.authority.read_bytes() == again.trusted
    assert again.issue_agent("db1", "u").fingerprint


def test_a_foreign_key_is_refused(tmp_path):
    authority = Authority.open(tmp_path / "agents")
    other = Authority.open(tmp_path / "other")
    (authority.directory / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(ConfigurationError, match="do not belong together"):
        Authority.open(tmp_path / "agents")


def director_of(authority):
    return x509.load_pem_x509_certificate(authority.credentials.certificate.read_bytes())


def test_leaves_live_as_long_as_asked_and_no_longer_than_their_authority(tmp_path):
    authority = Authority.open(tmp_path / "agents", 90)
    days = (authority.issue_agent("db1", "u").expires_at - time.time()) / 86400
    assert 89.9 < days <= 90
    forever = Authority.open(tmp_path / "agents", 36500).issue_agent("db1", "u")
    assert forever.expires_at == authority.expires_at


def test_the_directors_own_certificate_is_renewed_when_due(tmp_path):
    directory = tmp_path / "agents"
    first = director_of(Authority.open(directory, 90))
    assert director_of(Authority.open(directory, 90)) == first
    # 90 days are less than a third of 300.
    second = director_of(Authority.open(directory, 300))
    assert second != first
    (directory / "director.pem").write_bytes(b"cut sh")
    assert director_of(Authority.open(directory, 300)) not in (first, second)


def test_a_succession_step_by_step(tmp_path):
    first = Authority.open(tmp_path / "agents")
    both = first.prepare_successor()
    assert both.prepare_successor().trusted == both.trusted
    assert both.signing_fingerprint == first.signing_fingerprint
    assert both.trusted_fingerprints[:1] == first.trusted_fingerprints
    assert len(both.trusted_fingerprints) == 2
    director_of(both).verify_directly_issued_by(first._signer.certificate)

    successor = both.succeed()
    assert successor.succeed().trusted == both.trusted
    assert successor.signing_fingerprint == both.trusted_fingerprints[1]
    director_of(successor).verify_directly_issued_by(successor._signer.certificate)
    assert not (tmp_path / "agents/ca.key").exists()

    alone = successor.retire()
    assert alone.retire().trusted_fingerprints == (successor.signing_fingerprint,)
    assert alone.credentials.authority.read_bytes() == alone.trusted
    third = Authority.open(tmp_path / "agents").prepare_successor().succeed().retire()
    assert (tmp_path / "agents/ca-3.key").exists()
    assert third.issue_agent("db1", "u").authority == third.signing_fingerprint


def test_a_generation_made_and_not_recorded_is_made_again(tmp_path):
    first = Authority.open(tmp_path / "agents")
    first.prepare_successor()
    # What a kill between the files and the record leaves.
    (first.directory / "authority.json").unlink()
    (first.directory / "ca-2.crt").unlink()
    assert Authority.open(first.directory).trusted == first.trusted
    assert len(first.prepare_successor().succeed().trusted_fingerprints) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"signing": 2, "trusted": [1]}'])
def test_a_damaged_record_is_said(tmp_path, text):
    Authority.open(tmp_path / "agents")
    (tmp_path / "agents/authority.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"authority\.json"):
        Authority.open(tmp_path / "agents")
