"""`atoll repo init` and `atoll repo key`: keys added, removed and used, on a real repository."""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll import wiring
from atoll.cli import repo_keys
from atoll.cli.main import app
from atoll.model.errors import (
    ConfigurationError,
    RepositoryKeyError,
    RepositoryUnreachableError,
    StorageConflictError,
)
from atoll.repository.keys import Argon2Cost, Passphrase
from atoll.service import keys


class Cheap(Passphrase):
    """A passphrase that costs little to try."""

    def __init__(self, text: str) -> None:
        super().__init__(text, Argon2Cost(memory_kib=64, passes=1, lanes=1))


WORDS = "correct horse battery staple"
STORAGE = '[[storage]]\nname = "san1"\ndriver = "embedded"\nroot = "pool"\n'

Atoll = Callable[..., str]


class Terminal:
    """A terminal on which these answers are typed."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)

    def isatty(self) -> bool:
        return True

    def readline(self, _: int = -1) -> str:
        return self._answers.pop(0) + "\n"


@pytest.fixture
def atoll(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command with a [repository] that has these lines; an AtollError goes through."""
    for name in ("ATOLL_PASSPHRASE", "ATOLL_NEW_PASSPHRASE", "ATOLL_RECOVERY_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wiring, "Passphrase", Cheap)
    monkeypatch.setattr(keys, "Passphrase", Cheap)

    def atoll(*arguments: str, key: str = 'key_file = "key"', status: int = 0) -> str:
        config = tmp_path / "atoll.toml"
        config.write_text(f'{STORAGE}[repository]\nlocation = "repo"\n{key}\n')
        with pytest.raises(SystemExit) as ended:
            app(["--config", str(config), *arguments])
        said = capsys.readouterr()
        assert ended.value.code == status, said.err
        return said.out + said.err

    return atoll


def slots(atoll: Atoll, **more: str) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(atoll("repo", "key", "list", "--json", **more))
    return listed


def recovery_key_in(said: str) -> str:
    return "".join(re.findall(r"^    ([0-9A-Z-]+)$", said, re.MULTILINE))


def test_init_makes_a_key_file_and_a_recovery_key_if_asked_to(
    atoll: Atoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = atoll("repo", "init", "--recovery-key", "--label", "of the night job")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert {(each["kind"], each["own"]) for each in slots(atoll)} == {
        ("file", True),
        ("recovery", False),
    }
    listed = atoll("repo", "key", "list")
    assert "of the night job" in listed
    (tmp_path / "key").unlink()
    with pytest.raises(RepositoryKeyError):
        atoll("repo", "stats")
    monkeypatch.setenv("ATOLL_RECOVERY_KEY", recovery_key_in(said).lower())
    assert "repo" in atoll("repo", "stats", key="")
    monkeypatch.setenv("ATOLL_RECOVERY_KEY", recovery_key_in(said)[:-1] + "U")
    with pytest.raises(RepositoryKeyError, match="Group 8"):
        atoll("repo", "stats")


def test_without_a_terminal_init_prints_no_secret(atoll: Atoll) -> None:
    assert recovery_key_in(atoll("repo", "init")) == ""
    assert len(slots(atoll)) == 1


def test_on_a_terminal_init_offers_a_recovery_key(
    atoll: Atoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("y"))
    assert len(recovery_key_in(atoll("repo", "init"))) == 71


def test_a_repository_with_a_passphrase_only(
    atoll: Atoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words").write_text(WORDS + "\n")
    by_file = 'passphrase_file = "words"'
    atoll("repo", "init", key=by_file)
    assert [each["kind"] for each in slots(atoll, key=by_file)] == ["passphrase"]
    assert not (tmp_path / "key").exists()
    monkeypatch.setenv("ATOLL_PASSPHRASE", WORDS)
    assert [each["own"] for each in slots(atoll, key="")] == [True]
    monkeypatch.setenv("ATOLL_PASSPHRASE", WORDS + "!")
    with pytest.raises(RepositoryKeyError):
        atoll("repo", "stats", key=by_file)


def test_a_passphrase_may_be_typed(
    atoll: Atoll, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def prompt(text: str, **how: object) -> str:
        asked.append(text)
        assert how["hide_input"]
        assert how["confirmation_prompt"]
        return WORDS

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(repo_keys.typer, "prompt", prompt)
    atoll("repo", "init", "--passphrase", "--no-recovery-key", key="")
    assert asked == ["New passphrase"]
    monkeypatch.setenv("ATOLL_PASSPHRASE", WORDS)
    assert len(slots(atoll, key="")) == 1
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("where", ["environment", "file"])
def test_rotation_by_adding_and_removing(
    atoll: Atoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    atoll("repo", "init")
    if where == "environment":
        monkeypatch.setenv("ATOLL_NEW_PASSPHRASE", WORDS)
        said = atoll("repo", "key", "add", "--label", "for people")
    else:
        (tmp_path / "words").write_text(WORDS + "\n")
        said = atoll("repo", "key", "add", "--passphrase-file", str(tmp_path / "words"))
    assert WORDS not in said
    monkeypatch.setenv("ATOLL_PASSPHRASE", WORDS)
    [old] = [str(each["name"]) for each in slots(atoll) if not each["own"]]
    said = atoll("repo", "key", "remove", old[:6], "--yes")
    assert f"Removed slot {old[:8]} (file)" in said
    monkeypatch.delenv("ATOLL_PASSPHRASE")
    with pytest.raises(RepositoryKeyError):
        atoll("repo", "stats")


def test_a_key_file_is_made_or_one_that_is_there_is_used(atoll: Atoll, tmp_path: Path) -> None:
    atoll("repo", "init")
    second = tmp_path / "second"
    assert "Made the key file" in atoll("repo", "key", "add", "--key-file", str(second))
    with pytest.raises(StorageConflictError, match="already"):
        atoll("repo", "key", "add", "--key-file", str(second))
    assert len(slots(atoll, key='key_file = "second"')) == 2
    (tmp_path / "third").write_text(second.read_text().replace(":", ":z"))
    with pytest.raises(RepositoryKeyError):
        atoll("repo", "key", "add", "--key-file", str(tmp_path / "third"))


def test_ones_own_and_the_last_slot_stay(atoll: Atoll, tmp_path: Path) -> None:
    atoll("repo", "init")
    [own] = [str(each["name"]) for each in slots(atoll)]
    with pytest.raises(StorageConflictError, match="is the last"):
        atoll("repo", "key", "remove", own, "--yes", "--even-own")
    atoll("repo", "key", "add", "--key-file", str(tmp_path / "second"))
    with pytest.raises(StorageConflictError, match="--even-own"):
        atoll("repo", "key", "remove", own, "--yes")
    atoll("repo", "key", "remove", own, status=2)  # nobody is there to be asked
    assert len(slots(atoll)) == 2
    atoll("repo", "key", "remove", own, "--yes", "--even-own")
    assert len(slots(atoll, key='key_file = "second"')) == 1


def test_a_recovery_key_is_made_later_and_shown_once(
    atoll: Atoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoll("repo", "init")
    text = recovery_key_in(atoll("repo", "key", "recovery", "--label", "in the safe"))
    assert text not in atoll("repo", "key", "list")
    monkeypatch.setenv("ATOLL_RECOVERY_KEY", text)
    [own] = [each for each in slots(atoll, key="") if each["own"]]
    assert (own["kind"], own["label"]) == ("recovery", "in the safe")


def test_short_passphrases_and_none_are_refused(
    atoll: Atoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoll("repo", "init")
    with pytest.raises(ConfigurationError, match="ATOLL_NEW_PASSPHRASE"):
        atoll("repo", "key", "add")
    monkeypatch.setenv("ATOLL_NEW_PASSPHRASE", "short")
    with pytest.raises(ConfigurationError, match="12 characters"):
        atoll("repo", "key", "add")
    with pytest.raises(ConfigurationError, match="name no key"):
        atoll("repo", "stats", key="")
    with pytest.raises(ConfigurationError, match="not both"):
        atoll("repo", "stats", key='key_file = "a"\npassphrase_file = "b"')
    assert len(slots(atoll)) == 1


def test_a_short_passphrase_makes_no_repository(atoll: Atoll, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("short\n")
    with pytest.raises(ConfigurationError, match="12 characters"):
        atoll("repo", "init", key='passphrase_file = "words"')
    with pytest.raises(RepositoryUnreachableError):
        atoll("repo", "stats", key='passphrase_file = "words"')
