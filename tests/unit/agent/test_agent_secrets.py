"""Passwords are read from private files only and do not show themselves."""

import os

import pytest

from atoll_agent.application import ApplicationConfig
from atoll_agent.errors import ApplicationError
from atoll_agent.secrets import password_of, read_secret


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_text("s3cret word\nrest\n")
    return path


def test_the_first_line_is_the_password(private):
    secret = read_secret(private)
    assert secret.reveal() == "s3cret word"
    assert "s3cret" not in f"{secret} {secret!r}"
    entry = ApplicationConfig("redis", "a", {"password_file": str(private)})
    assert password_of(entry) == secret
    assert password_of(ApplicationConfig("redis", "a", {})) is None
    assert password_of(None) is None


def test_what_others_can_read_is_refused(private):
    private.chmod(0o640)
    with pytest.raises(ApplicationError, match="readable by root alone"):
        read_secret(private)


def test_links_pipes_and_directories_are_refused(private, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(private)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (link, tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(ApplicationError, match=r"cannot be read|not a regular file"):
            read_secret(path)


def test_what_is_no_password_is_refused_without_quoting_it(private):
    for content in (b"", b"\nsecond", b"x" * 5000, b"\xff\xfe secret"):
        private.write_bytes(content)
        with pytest.raises(ApplicationError) as caught:
            read_secret(private)
        assert "secret" not in str(caught.value).replace(str(private), "")


def test_a_relative_path_is_refused(private, monkeypatch):
    monkeypatch.chdir(private.parent)
    with pytest.raises(ApplicationError, match="absolute"):
        read_secret(type(private)("password"))
