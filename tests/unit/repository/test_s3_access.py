"""Where a bucket is and who Atoll is there: what is accepted, refused, and never shown."""

from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError
from atoll.repository.places import create_place, open_place
from atoll.repository.s3_access import Credentials, S3Access, S3Location
from atoll.settings import load_settings

VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_location_is_a_bucket_and_a_prefix() -> None:
    assert S3Location.parse("s3://backups") == S3Location("backups", "")
    assert S3Location.parse("s3://backups/") == S3Location("backups", "")
    site = S3Location.parse("s3://backups.example/site-1/Atoll_2/")
    assert site == S3Location("backups.example", "site-1/Atoll_2")
    assert str(site) == "s3://backups.example/site-1/Atoll_2"
    assert site.key("packs/ab/one") == "site-1/Atoll_2/packs/ab/one"
    assert S3Location("backups", "").key("config") == "config"


@pytest.mark.parametrize(
    "location",
    [
        "s3://",
        "s3:///prefix",
        "s3://B/x",
        "s3://key:secret@bucket/x",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://bucket/a b",
        "gs://bucket/x",
    ],
)
def test_what_is_no_location_is_refused(location: str) -> None:
    with pytest.raises(ConfigurationError, match="no place for a repository"):
        S3Location.parse(location)


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    for opens in (create_place, open_place):
        with pytest.raises(ConfigurationError, match="s3://BUCKET/PREFIX"):
            opens("ftp://server/backups", S3Access())
    assert create_place(f"file://{tmp_path / 'r'}", S3Access()).location == str(tmp_path / "r")


def test_keys_come_from_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="no keys for S3"):
        S3Access().credentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY"):
        S3Access().credentials()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env%secret")
    assert S3Access().credentials() == Credentials("AKIAENV", "env%secret")
    file = tmp_path / "keys"
    file.write_text(
        "[other]\naws_access_key_id = x\n[default]\naws_access_key_id = AKIAFILE\n"
        "aws_secret_access_key = file%(secret)s=\naws_session_token = t\n"
    )
    found = S3Access(credentials_file=file).credentials()
    assert found == Credentials("AKIAFILE", "file%(secret)s=", "t")
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key = SeCrEt\n",
        "[default]\naws_secret_access_key = SeCrEt\n",
        "[default]\nSeCrEt SeCrEt\n",
        "[profile]\naws_access_key_id = SeCrEt\naws_secret_access_key = SeCrEt\n",
        "[default]\naws_secret_access_key = SeCrEt\naws_secret_access_key = SeCrEt\n",
    ],
)
def test_a_file_that_is_no_credentials_file_is_not_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="is no credentials file") as caught:
        S3Access(credentials_file=file).credentials()
    assert "SeCrEt" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(ConfigurationError, match="Cannot read"):
        S3Access(credentials_file=tmp_path / "none").credentials()


def test_keys_are_sent_in_the_open_only_where_nobody_else_hears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert S3Access().server() is None
    for good in (
        "https://s3.example.org",
        "https://s3.example.org:9000/",
        "http://127.0.0.1:7480",
        "http://localhost:9000",
        "http://[::1]:9000",
    ):
        assert S3Access(endpoint=good).server() == good.rstrip("/")
    for bad in ("http://s3.example.org", "http://10.0.0.1:9000", "http://127.0.0.1.example.org"):
        with pytest.raises(ConfigurationError, match="is not encrypted"):
            S3Access(endpoint=bad).server()
        assert S3Access(endpoint=bad, allow_http=True).server() == bad
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example.org")
    with pytest.raises(ConfigurationError, match="is not encrypted"):
        S3Access().server()
    for wrong in ("s3.example.org", "ftp://s3.example.org", "https://key:SeCrEt@host"):
        with pytest.raises(ConfigurationError, match="is no URL of a server") as caught:
            S3Access(endpoint=wrong).server()
        assert "SeCrEt" not in str(caught.value)


def test_the_region_is_the_settings_or_the_environments_or_the_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert S3Access().where() == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert S3Access().where() == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert S3Access().where() == "eu-west-2"
    assert S3Access(region="eu-central-1").where() == "eu-central-1"


def settings(tmp_path: Path, repository: str) -> Path:
    path = tmp_path / "atoll.toml"
    path.write_text(f'[[storage]]\nname = "s"\ndriver = "embedded"\n[repository]\n{repository}')
    return path


def test_settings_of_a_bucket(tmp_path: Path) -> None:
    text = (
        'location = "s3://backups/site1"\nkey_file = "key"\nendpoint = "https://s3.example.org"\n'
        'region = "site"\ncredentials_file = "secrets/s3"\nca_file = "ca.pem"\nlock_days = 30\n'
        'lock_mode = "governance"\n'
    )
    section = load_settings(settings(tmp_path, text)).repository
    assert section is not None
    assert section.location == "s3://backups/site1"
    assert section.access == S3Access(
        endpoint="https://s3.example.org",
        region="site",
        credentials_file=tmp_path / "secrets/s3",
        ca_file=tmp_path / "ca.pem",
        lock_days=30,
        lock_mode="governance",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('location = "/srv/r"\nlock_days = 30\n', "lock_days is for buckets"),
        ('location = "s3://b-1/r"\nlock_days = 0\n', "greater than or equal to 1"),
        ('location = "s3://b-1/r"\nlock_mode = "legal"\n', "compliance"),
    ],
)
def test_settings_that_would_not_do_what_they_say_are_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        load_settings(settings(tmp_path, 'key_file = "key"\n' + text))
