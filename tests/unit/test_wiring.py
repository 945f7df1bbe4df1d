"""From settings to storage systems."""

from pathlib import Path

import pytest

from atoll.model.errors import ConfigurationError
from atoll.settings import load_settings, needed
from atoll.wiring import create_storage, open_engine, open_system

STORAGE = '[[storage]]\nname = "san1"\ndriver = "embedded"\nroot = "pool"\n'
ACCOUNT = '[[storage.chap]]\ninitiator = "iqn.x:a"\nuser = "a"\nsecret_file = "secret"\n'


def settings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "atoll.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (STORAGE.replace("embedded", "tape"), "no driver 'tape', only .*embedded"),
        (STORAGE + "colour = 3\n", "san1: colour: "),
        (STORAGE + 'portal_addresses = ["here"]\n', "san1: portal_addresses"),
    ],
)
def test_what_a_driver_does_not_know_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        open_engine(load_settings(settings(tmp_path, text)))


def test_systems_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="same name"):
        load_settings(settings(tmp_path, STORAGE + STORAGE))


def test_only_a_system_of_the_settings_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no storage system san2, only san1"):
        create_storage(settings(tmp_path, STORAGE), "san2")


@pytest.mark.parametrize("secret", ["short", "much-too-long-for-it", "a,b,c,d,e,f,g"])
def test_chap_secrets_initiators_cannot_take_are_refused(tmp_path: Path, secret: str) -> None:
    (tmp_path / "secret").write_text(f"{secret}\n")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "records.sqlite").touch()
    (system,) = load_settings(settings(tmp_path, STORAGE + ACCOUNT)).storage
    with pytest.raises(ConfigurationError, match="12 to 16") as refusal:
        open_system(system)
    assert secret not in str(refusal.value)


def test_a_section_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    loaded = load_settings(settings(tmp_path, STORAGE))
    with pytest.raises(ConfigurationError, match=r"\[vcenter\]"):
        needed(loaded.vcenter, "vcenter")
