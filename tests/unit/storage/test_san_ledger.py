"""The book of the SAN driver is the one before or the one after, whatever cuts a write short."""

import os
from pathlib import Path

import pytest

from atoll.model.errors import PoolFullError, StorageUnreachableError
from atoll.storage.drivers.san.helper.ledger import Book, Ledger, Snapshot, Thin, Volume

SIZE = 1 << 20
HALF = SIZE // 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "book"
    path.touch()
    os.truncate(path, SIZE)
    return path


def with_volume(name: str) -> Book:
    return Book(2, [7], {name: Volume("g", Thin(1, 4096), "prod/data", 0)})


def test_what_is_written_is_read_by_everybody(path: Path) -> None:
    ledger, other = Ledger(path), Ledger(path)
    ledger.prepare()
    assert other.read() == Book()
    book = with_volume("v1")
    book.snapshots["s"] = Snapshot({"v1": Thin(3, 4096)}, 1.5, 2.5, 0.25)
    book.served["g"] = {"exports": [{"target": "iqn"}]}
    ledger.write(book)
    assert other.read() == book
    ledger.prepare()
    assert other.read() == book


def test_a_volume_that_was_never_prepared_is_told(path: Path) -> None:
    with pytest.raises(StorageUnreachableError, match="atoll storage init"):
        Ledger(path).read()


@pytest.mark.parametrize("earlier", [2, 3])
@pytest.mark.parametrize("reached", [0, 100, 4096, 4096 + 30])
def test_a_write_cut_short_leaves_the_book_before(path: Path, earlier: int, reached: int) -> None:
    ledger = Ledger(path)
    ledger.prepare()
    for number in range(earlier):
        ledger.write(with_volume(f"v{number}"))
    kept = ledger.read()
    before = path.read_bytes()
    ledger.write(with_volume("cut"))
    # Text first, then the header: so much of the new half reached the disk, and the header did not.
    after = path.read_bytes()
    start = next(at for at in (0, HALF) if before[at : at + HALF] != after[at : at + HALF])
    torn = bytearray(before)
    torn[start + 4096 : start + 4096 + reached] = after[start + 4096 : start + 4096 + reached]
    path.write_bytes(torn)
    assert Ledger(path).read() == kept


def test_a_damaged_book_is_never_replaced_by_an_older_one(path: Path) -> None:
    ledger = Ledger(path)
    ledger.prepare()
    ledger.write(with_volume("v1"))
    data = bytearray(path.read_bytes())
    data[4096 + 10] ^= 1  # generation 2 is in the first half
    path.write_bytes(data)
    with pytest.raises(StorageUnreachableError, match="damaged"):
        Ledger(path).read()


def test_a_full_book_is_refused_and_the_one_before_stays(path: Path) -> None:
    ledger = Ledger(path)
    ledger.prepare()
    book = Book(served={str(n): os.urandom(600).hex() for n in range(1000)})
    with pytest.raises(PoolFullError):
        ledger.write(book)
    assert Ledger(path).read() == Book()


def test_numbers_are_not_given_twice() -> None:
    book = with_volume("v")
    book.next_number = (1 << 24) - 1
    given = [book.number() for _ in range(5)]
    assert given == [(1 << 24) - 1, 2, 3, 4, 5]
    assert book.orphans == [7, *given]
    assert book.unit() == 1
