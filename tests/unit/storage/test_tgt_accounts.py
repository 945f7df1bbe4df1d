"""Which CHAP accounts one tgtd can ask for."""

from uuid import UUID

import pytest

from atoll.model.errors import StorageConflictError
from atoll.storage.backend import Chap, Export
from atoll.storage.identity import identity_of
from atoll.storage.targets.tgt.accounts import check

VOLUME = UUID(int=1).hex


def export(*accounts: Chap) -> Export:
    chap = {f"iqn.1998-01.com.vmware:esx{number}": one for number, one in enumerate(accounts)}
    return Export(
        VOLUME, "iqn.2026-11.org.atoll:p:g:a", identity_of(VOLUME), 1 << 20, tuple(chap), chap, False
    )  # fmt: skip


def test_accounts_that_go_together() -> None:
    check([])
    check([export(), export(Chap("one", "secret-secret-1"), Chap("two", "secret-secret-2"))])
    check(
        [
            export(Chap("one", "secret-secret-1", "us", "secret-secret-9")),
            export(Chap("one", "secret-secret-1"), Chap("one", "secret-secret-1")),
            export(Chap("two", "secret,with=all", "them", "secret-secret-8")),
        ]
    )


@pytest.mark.parametrize(
    ("accounts", "said"),
    [
        ((Chap("one", "secret-secret-1"), Chap("one", "secret-secret-2")), "two secrets"),
        ((Chap("one", "secret-secret-1", "one", "secret-secret-2"),), "two secrets"),
        ((Chap("one", "secret-secret-1", "us", "secret-secret-1"),), "impostor"),
        (
            (
                Chap("one", "secret-secret-1", "us", "secret-secret-9"),
                Chap("two", "secret-secret-2", "them", "secret-secret-8"),
            ),
            "one way only",
        ),
        (
            (Chap("one", "secret-secret-1", "us", "secret-secret-9"), Chap("two", "secret-2-2-2")),
            "one way only",
        ),
        ((Chap("one,two", "secret-secret-1"),), "cannot be a CHAP user"),
        ((Chap("one ", "secret-secret-1"),), "cannot be a CHAP user"),
        ((Chap("(nobody)", "secret-secret-1"),), "cannot be a CHAP user"),
        ((Chap("one\ntwo", "secret-secret-1"),), "cannot be a CHAP user"),
    ],
)
def test_accounts_that_do_not(accounts: tuple[Chap, ...], said: str) -> None:
    with pytest.raises(StorageConflictError, match=said) as refused:
        check([export(*accounts)])
    for account in accounts:
        assert account.secret not in str(refused.value)
