"""LUN identities and names."""

import re
from uuid import UUID, uuid4

import pytest

from atoll.model.errors import StorageConflictError
from atoll.storage.drivers.embedded.identity import (
    check_initiator,
    check_name,
    identity_of,
    target_name,
)


def test_an_identity_is_a_function_of_the_uuid() -> None:
    uuid = UUID("01234567-89ab-4def-8123-456789abcdef")
    identity = identity_of(uuid)
    assert identity == identity_of(uuid)
    assert identity.naa == "naa.60014050123456789ab4def812345678"
    assert identity.target_id == 0x09ABCDEF


def test_identities_differ_and_fit() -> None:
    made = [identity_of(uuid4()) for _ in range(200)]
    assert len({identity.naa for identity in made}) == 200
    for identity in made:
        assert re.fullmatch(r"naa\.6001405[0-9a-f]{25}", identity.naa)
        assert 0 < identity.target_id < 2**31
        assert len(identity.serial) <= 36


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
