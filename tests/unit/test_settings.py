"""Settings: found, read, anchored, and refused with one sentence."""

from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError
from atoll.settings import load_settings, read_secret

GOOD = """
[vcenter]
host = "127.0.0.1"
user = "atoll"
password_file = "vcenter.password"

[[storage]]
name = "san1"
driver = "embedded"
root = "pool"

[repository]
location = "repo"
key_file = "/keys/repo.key"

[agents]
directory = "agents"

[director]
state_directory = "state"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "atoll.toml"
    path.write_text(text)
    return path


def test_relative_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    assert settings.storage[0].base == tmp_path
    assert settings.storage[0].options == {"root": "pool"}
    assert settings.repository.location == str(tmp_path / "repo")
    assert settings.repository.key_file == Path("/keys/repo.key")
    assert settings.vcenter.port == 443


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_CONFIG", str(write(tmp_path, GOOD)))
    assert load_settings().vcenter.host == "127.0.0.1"


def test_no_settings_at_all_says_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATOLL_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="ATOLL_CONFIG"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[vcenter", "not valid TOML"),
        (GOOD.replace('host = "127.0.0.1"', ""), "vcenter.host"),
        (GOOD + "lease_seconds = 600\n", "lease_seconds"),
        (GOOD + "lease = 6\n", "lease"),
        (GOOD.replace('name = "san1"', 'name = "San 1"'), "storage.0.name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_settings(write(tmp_path, text))


@pytest.mark.parametrize(
    ("lease", "budget", "needed"), [(10, 7.5, "10.5"), (5, 5, "8"), (7.9, 5, "8"), (4, 20, "23")]
)
def test_a_lease_that_could_end_before_the_snapshot_is_refused(
    tmp_path: Path, lease: float, budget: float, needed: str
) -> None:
    text = GOOD + f"lease_seconds = {lease}\nbudget_seconds = {budget}\n"
    with pytest.raises(ConfigurationError) as failure:
        load_settings(write(tmp_path, text))
    assert str(failure.value).endswith(
        f"atoll.toml: director: lease_seconds is {lease:g} and budget_seconds {budget:g}, so the "
        "first guest held could thaw before the last one is held and the snapshot taken; raise "
        f"lease_seconds to {needed} at least, or lower budget_seconds."
    )


@pytest.mark.parametrize(("lease", "budget"), [(8, 5), (60, 57)])
def test_a_lease_three_seconds_longer_than_the_budget_will_do(
    tmp_path: Path, lease: float, budget: float
) -> None:
    text = GOOD + f"lease_seconds = {lease}\nbudget_seconds = {budget}\n"
    assert load_settings(write(tmp_path, text)).director.lease_seconds == lease


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings(tmp_path / "none.toml")


def test_a_secret_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2\nsecond\n")
    assert read_secret(path) == "hunter2"


def test_an_empty_or_missing_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(ConfigurationError, match="secret file"):
            read_secret(tmp_path / name)
