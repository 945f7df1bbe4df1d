"""From settings to storage systems."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from atoll.model.errors import ConfigurationError
from atoll.repository.pacing import Pace, PacedReader
from atoll.settings import LimitsSection, load_settings, needed
from atoll.wiring import (
    create_repository,
    create_storage,
    open_engine,
    open_repository,
    open_system,
)
from repository_parts import MemoryDisk

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


def test_the_repository_is_written_at_the_pace_and_level_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def pace(mib_per_second: float) -> Pace:
        return Pace(mib_per_second, clock=lambda: 0.0, sleep=waits.append)

    monkeypatch.setattr("atoll.wiring.Pace", pace)
    text = STORAGE + '[repository]\nlocation = "repo"\nkey_file = "key"\n'
    path = settings(tmp_path, text)
    create_repository(path).close()
    words = random.Random(1).choices([b"alpha ", b"beta ", b"gamma "], k=200_000)
    stored = {}
    for level in (1, 19):
        path = settings(
            tmp_path, f"{text}compression = {level}\n[limits]\nwrite_mib_per_second=0.1\n"
        )
        with open_repository(load_settings(path)) as repository:
            copied = repository.copy_disk(MemoryDisk(b"".join(words) + bytes([level])))
            repository.commit([])
            stored[level] = copied.stored_bytes
    assert stored[19] < stored[1]
    assert sum(waits) > 0


def test_storage_is_read_at_the_pace_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def engine(*arguments: object) -> object:
        given.extend(arguments)
        return SimpleNamespace()

    monkeypatch.setattr("atoll.wiring.ManagedEngine", engine)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "records.sqlite").touch()
    limits = "[limits]\nread_mib_per_second = 5\nread_operations_per_second = 100\n"
    loaded = load_settings(settings(tmp_path, STORAGE + limits))
    for limited, kind in ((loaded.limits, PacedReader), (LimitsSection(), MemoryDisk)):
        given.clear()
        open_system(loaded.storage[0], limited)
        reading = given[-1]
        assert callable(reading)
        assert isinstance(reading(MemoryDisk(b"")), kind)
