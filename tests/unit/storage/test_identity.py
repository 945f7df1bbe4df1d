"""LUN identities and names."""

import re
import secrets

import pytest

from atoll.model.errors import StorageConflictError
from atoll.storage.identity import (
    check_initiator,
    check_name,
    identity_of,
    target_id,
    target_name,
)


def test_an_identity_is_a_function_of_the_volume() -> None:
    volume = "0123456789ab4def8123456789abcdef"
    identity = identity_of(volume)
    assert identity == identity_of(volume)
    assert identity.naa == "naa.60014050123456789ab4def812345678"
    assert target_id(volume) == 0x09ABCDEF


def test_identities_differ_and_fit() -> None:
    volumes = [secrets.token_hex(16) for _ in range(200)]
    made = [identity_of(volume) for volume in volumes]
    assert len({identity.naa for identity in made}) == 200
    for identity in made:
        assert re.fullmatch(r"naa\.6001405[0-9a-f]{25}", identity.naa)
        assert len(identity.serial) <= 36
    assert all(0 < target_id(volume) < 2**31 for volume in volumes)


def test_targets_of_dotted_names_do_not_collide() -> None:
    assert target_name("p", "a.b", "c") != target_name("p", "a", "b.c")


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", ".making-a", "a" * 64, "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(StorageConflictError):
        check_name("LUN", name)


@pytest.mark.parametrize("name", ["", "ALL", "iqn.x,y=z", "iqn.a\n", "initiator-address=ALL"])
def test_bad_initiators_are_refused(name: str) -> None:
    with pytest.raises(StorageConflictError):
        check_initiator(name)
