"""Keys: wrapping, refusing, and deriving by purpose."""

import json
import stat
from pathlib import Path

import pytest

from atoll.model.errors import RepositoryDamagedError, RepositoryKeyError
from atoll.repository.keys import Argon2Cost, KeyFile, MasterKey, Passphrase, create_key_file

CHEAP = Argon2Cost(memory_kib=64, passes=1, lanes=1)


def test_a_key_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    key = create_key_file(tmp_path / "key")
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    secret = key.secret()
    assert len(secret) == 32
    with pytest.raises(RepositoryKeyError):
        create_key_file(key.path)
    assert key.secret() == secret


@pytest.mark.parametrize("content", ["", "atoll-key-1:", "atoll-key-1:abcd", "ab" * 32, "é"])
def test_other_files_are_no_key_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(RepositoryKeyError):
        KeyFile(path).secret()


def test_a_passphrase_unwraps_what_it_wrapped_and_another_does_not() -> None:
    master = MasterKey.generate()
    slot = master.wrapped(Passphrase("caf\u00e9 ole", CHEAP), "repo")
    again = MasterKey.unwrapped(Passphrase("cafe\u0301 ole"), "repo", slot)  # the other spelling
    assert again is not None
    assert again.key_id == master.key_id
    assert MasterKey.unwrapped(Passphrase("cafe ole"), "repo", slot) is None
    assert MasterKey.unwrapped(Passphrase("caf\u00e9 ole"), "other repo", slot) is None


@pytest.mark.parametrize("field", ["memory_kib", "passes", "lanes", "key", "salt"])
def test_what_stands_beside_the_wrapped_key_is_sealed_too(field: str) -> None:
    slot = json.loads(MasterKey.generate().wrapped(Passphrase("p", CHEAP), "repo"))
    slot[field] = slot[field] * 2 if isinstance(slot[field], int) else "00" * 16
    assert MasterKey.unwrapped(Passphrase("p"), "repo", json.dumps(slot).encode()) is None


def test_a_forged_cost_is_not_paid() -> None:
    slot = json.loads(MasterKey.generate().wrapped(Passphrase("p", CHEAP), "repo"))
    slot["memory_kib"] = 1 << 40
    assert MasterKey.unwrapped(Passphrase("p"), "repo", json.dumps(slot).encode()) is None


def test_a_slot_without_its_fields_is_damage() -> None:
    with pytest.raises(RepositoryDamagedError):
        MasterKey.unwrapped(Passphrase("p"), "repo", b"{}")


def test_purposes_and_salts_give_different_keys() -> None:
    master = MasterKey(bytes(32))
    derived = {
        master.derive("PCK", b"a"),
        master.derive("PCK", b"b"),
        master.derive("IDX", b"a"),
        master.derive("chunk name"),
        MasterKey(b"\x01" * 32).derive("PCK", b"a"),
    }
    assert len(derived) == 5


def test_the_passphrase_is_not_shown() -> None:
    assert "secret words" not in repr(Passphrase("secret words"))
