"""Bytes come over the way from the SAN server as they were."""

from hypothesis import given
from hypothesis import strategies as st

from atoll.storage.drivers.san.helper.sparse import BLOCK_BYTES, pack, unpack


@given(st.lists(st.sampled_from([b"\0", b"x", b"\0x"]), max_size=4), st.integers(0, 3))
def test_what_is_packed_is_unpacked(blocks: list[bytes], odd: int) -> None:
    data = b"".join(block * (BLOCK_BYTES // len(block)) for block in blocks) + b"\0" * odd
    assert unpack(pack(data), len(data)) == data


def test_zeros_cost_a_byte_a_block() -> None:
    assert len(pack(bytes(10 * BLOCK_BYTES))) == 10
