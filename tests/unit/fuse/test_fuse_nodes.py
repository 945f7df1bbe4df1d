"""The kernel's numbers for nodes, and the words between it and us."""

import struct
from dataclasses import replace
from typing import cast

import pytest

from atoll.fuse import protocol
from atoll.fuse.interface import Attributes, Node
from atoll.fuse.nodes import NodeTable

PLAIN = Attributes(7, 0o100644, 10, 512, 1, 0, 0, 0, 0, 0)


class Named:
    """A node that is only told from others."""

    def __init__(self, key: object) -> None:
        self.key = key


def node(key: object) -> Node:
    return cast(Node, Named(key))


def test_a_node_keeps_its_number_while_the_kernel_remembers_it() -> None:
    table = NodeTable(node("root"))
    number = table.remember(node("a"))
    assert table.remember(node("a")) == number
    assert table.remember(node("b")) != number
    table.forget(number, 1)
    assert table.node(number) is not None
    table.forget(number, 1)
    assert table.node(number) is None
    assert table.remember(node("a")) != number  # a number never means two things
    table.forget(protocol.ROOT_ID, 99)
    assert table.node(protocol.ROOT_ID) is not None
    table.forget(12345, 1)


def test_forgotten_nodes_are_read_from_both_requests() -> None:
    one = protocol.Request(protocol.Operation.FORGET, 1, 42, struct.pack("=Q", 3))
    assert protocol.forgotten(one) == [(42, 3)]
    body = struct.pack("=IIQQQQ", 2, 0, 42, 1, 43, 2)
    many = protocol.Request(protocol.Operation.BATCH_FORGET, 1, 0, body)
    assert protocol.forgotten(many) == [(42, 1), (43, 2)]


@pytest.mark.parametrize("moment", [-1, -1_500_000_000, 1_700_000_000_123_456_789, 2**34 * 10**9])
def test_times_before_the_epoch_and_late_ones(moment: int) -> None:
    packed = protocol.attributes_answer(replace(PLAIN, mtime_ns=moment))
    (seconds,) = struct.unpack_from("=q", packed, 16 + 32)
    (nanoseconds,) = struct.unpack_from("=I", packed, 16 + 52)
    assert seconds * 10**9 + nanoseconds == moment
    assert 0 <= nanoseconds < 10**9


@pytest.mark.parametrize("name", [b"a", b"seven77", b"eight888", b"\xff" * 255])
def test_names_in_a_listing_end_on_eight_bytes(name: bytes) -> None:
    row = protocol.directory_entry(7, 1, 0o100644, name)
    assert len(row) % 8 == 0
    assert struct.unpack_from("=QQII", row) == (7, 1, len(name), 8)
    assert row[24 : 24 + len(name)] == name


def test_init_takes_only_what_is_offered() -> None:
    answer = protocol.init_answer(struct.pack("=4I", 7, 31, 131072, 1) + bytes(48))
    assert len(answer) == 64
    major, minor, readahead, flags = struct.unpack_from("=4I", answer)
    assert (major, minor, readahead, flags) == (7, 31, 131072, 1)
