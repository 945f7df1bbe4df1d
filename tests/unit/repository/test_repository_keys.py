"""Keys: sources, recovery keys and their typing mistakes, deriving by purpose."""

import random
import stat
from pathlib import Path

import pytest

from atoll.model.errors import RepositoryKeyError
from atoll.repository.keys import (
    KeyFile,
    MasterKey,
    Passphrase,
    RecoveryKey,
    create_key_file,
)
from atoll.repository.recovery_key import understood, written

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


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


@pytest.mark.parametrize("source", [Passphrase("secret words"), RecoveryKey("secret words")])
def test_secrets_are_not_shown(source: Passphrase | RecoveryKey) -> None:
    assert "secret words" not in repr(source)


def test_a_recovery_key_is_read_as_people_type_it() -> None:
    secret = random.Random(1).randbytes(32)
    text = written(secret)
    assert [len(group) for group in text.split("-")] == [8] * 8
    assert set(text) <= {*DIGITS, "-"}
    sloppy = text.lower().replace("-", "\n ").replace("0", "o").replace("1", "l")
    assert understood(text) == understood(sloppy) == secret


def test_what_a_recovery_key_looks_like_is_fixed() -> None:
    fixed = "000G40TY-0G2GC1YZ-104GM2R3-1G6GW3YT-208H44Z4-2GAHC5V5-30CHM6XS-3GEHW7YG"
    assert written(bytes(range(32))) == fixed
    assert understood(fixed) == bytes(range(32))


def test_every_wrong_character_is_told_with_its_group() -> None:
    right = written(random.Random(2).randbytes(32)).replace("-", "")
    for at, true in enumerate(right):
        for wrong in DIGITS:
            if wrong == true:
                continue
            with pytest.raises(RepositoryKeyError) as told:
                understood(right[:at] + wrong + right[at + 1 :])
            assert f"Group {at // 8 + 1} " in str(told.value)


def test_swapped_groups_are_told() -> None:
    groups = written(random.Random(3).randbytes(32)).split("-")
    for first in range(8):
        for second in range(first + 1, 8):
            swapped = list(groups)
            swapped[first], swapped[second] = groups[second], groups[first]
            with pytest.raises(RepositoryKeyError, match=f"Group {first + 1} "):
                understood("-".join(swapped))


@pytest.mark.parametrize("text", ["", "short", "U" * 64, "é" * 64])
def test_what_is_no_recovery_key_is_told_without_repeating_it(text: str) -> None:
    with pytest.raises(RepositoryKeyError) as told:
        RecoveryKey(text).secret()
    assert not text or text not in str(told.value)
