"""The authority makes keys once, keeps them close, and signs for one purpose each."""

import stat

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
    assert first.certificate == again.certificate
    assert first.credentials == again.credentials


def test_keys_are_for_the_owner_only(tmp_path):
    authority = Authority.open(tmp_path / "agents")
    assert stat.S_IMODE(authority.directory.stat().st_mode) == 0o700
    for key in ("ca.key", "director.key"):
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


@pytest.mark.parametrize("lost", ["ca.crt", "director.crt", "director.key"])
def test_a_creation_cut_short_is_finished(tmp_path, lost):
    authority = Authority.open(tmp_path / "agents")
    # What a crash before the last rename leaves: the certificate is always written last.
    for name in {lost, lost.replace(".key", ".crt")}:
        (authority.directory / name).unlink()
    again = Authority.open(tmp_path / "agents")
    assert again.credentials.certificate.exists()
    assert again.issue_agent("db1", "u").fingerprint


def test_a_foreign_key_is_refused(tmp_path):
    authority = Authority.open(tmp_path / "agents")
    other = Authority.open(tmp_path / "other")
    (authority.directory / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(ConfigurationError, match="do not belong together"):
        Authority.open(tmp_path / "agents")
