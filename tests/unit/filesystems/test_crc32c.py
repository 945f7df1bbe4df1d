"""The checksum in bulk is the one that is defined."""

import random

from hypothesis import given
from hypothesis import strategies as st

from atoll.filesystems.crc32c import checksums, crc32c
from atoll.filesystems.journal import crc32c as by_bytes


def test_the_check_value_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(min_size=4, max_size=3000))
def test_any_length(data: bytes) -> None:
    assert crc32c(data) == by_bytes(0xFFFFFFFF, data) ^ 0xFFFFFFFF


def test_many_objects_at_once_without_their_own_field() -> None:
    rnd = random.Random(1)
    for length in (512, 1024, 4096):
        objects = [rnd.randbytes(length) for _ in range(5)]
        expected = [crc32c(each[:100] + bytes(4) + each[104:]) for each in objects]
        assert checksums(b"".join(objects), length, 100).tolist() == expected
