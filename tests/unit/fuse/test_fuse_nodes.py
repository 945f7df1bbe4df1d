"""The kernel's numbers for nodes, and the words between it and us."""

import struct
from typing import cast

import pytest

from atoll.fuse import protocol
from atoll.fuse.interface import Attributes, Moment, Node
from atoll.fuse.nodes import NodeTable

EPOCH = Moment(0, 0)
PLAIN = Attributes(7, 0o100644, 10, 512, 1, 0, 0, EPOCH, EPOCH, EPOCH)


class Named:
    """A node that is only told from others."""

    def __init__(self, key: object, number: int | None = None) -> None:
        self.key = key
        self.number = number
        self.lane = f"lane of {key}"


def node(key: object, number: int | None = None) -> Node:
    return cast(Node, Named(key, number))


class Finder:
    """A tree with one node that has a number of its own."""

    def lane(self, number: int) -> str | None:
        return "own" if number == 7 << 32 else None

    def node(self, number: int) -> Node | None:
        return node("own", number) if number == 7 << 32 else None


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


def test_of_nodes_with_numbers_of_their_own_nothing_is_kept() -> None:
    table = NodeTable(node("root"), Finder())
    own = node("own", 7 << 32)
    assert table.remember(own) == table.remember(own) == 7 << 32
    assert len(table) == 1
    found = table.node(7 << 32)
    assert found is not None
    assert found.key == "own"
    assert table.lane(7 << 32) == "own"
    assert table.node(8 << 32) is None
    assert table.lane(8 << 32) is None
    assert table.lane(table.remember(node("a"))) == "lane of a"
    table.forget(7 << 32, 99)
    assert table.node(7 << 32) is not None
    assert NodeTable(node("root")).node(7 << 32) is None


def test_forgotten_nodes_are_read_from_both_requests() -> None:
    one = protocol.Request(protocol.Operation.FORGET, 1, 42, struct.pack("=Q", 3))
    assert protocol.forgotten(one) == [(42, 3)]
    body = struct.pack("=IIQQQQ", 2, 0, 42, 1, 43, 2)
    many = protocol.Request(protocol.Operation.BATCH_FORGET, 1, 0, body)
    assert protocol.forgotten(many) == [(42, 1), (43, 2)]


@pytest.mark.parametrize("moment", [Moment(-1, 999_999_999), Moment(-2, 500), Moment(2**34, 1)])
def test_times_before_the_epoch_and_late_ones(moment: Moment) -> None:
    packed = protocol.attributes_answer(PLAIN._replace(mtime=moment))
    (seconds,) = struct.unpack_from("=q", packed, 16 + 32)
    (nanoseconds,) = struct.unpack_from("=I", packed, 16 + 52)
    assert (seconds, nanoseconds) == moment


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
