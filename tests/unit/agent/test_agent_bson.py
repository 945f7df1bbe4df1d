"""BSON, checked against the examples of its specification and against itself."""

import pytest

from atoll_agent.modules import bson
from atoll_agent.modules.bson import Timestamp


def test_the_specifications_examples():
    hello = b"\x16\x00\x00\x00\x02hello\x00\x06\x00\x00\x00world\x00\x00"
    assert bson.encode({"hello": "world"}) == hello
    assert bson.decode(hello) == {"hello": "world"}
    array = (
        b"1\x00\x00\x00\x04BSON\x00&\x00\x00\x00\x020\x00\x08\x00\x00\x00awesome\x00"
        b"\x011\x00333333\x14@\x102\x00\xc2\x07\x00\x00\x00\x00"
    )
    assert bson.encode({"BSON": ["awesome", 5.05, 1986]}) == array
    assert bson.decode(array) == {"BSON": ["awesome", 5.05, 1986]}


def test_there_and_back():
    document = {
        "a": 1,
        "b": 1 << 40,
        "c": "tëxt",
        "d": None,
        "e": True,
        "f": b"bytes",
        "g": {"h": [{}, []]},
        "t": Timestamp(7, 8),
    }
    assert bson.decode(bson.encode(document)) == document


def test_types_that_only_servers_send():
    body = b"\x07o\x00" + bytes(range(12)) + b"\x09d\x00" + (5).to_bytes(8, "little")
    body += b"\x0br\x00a.b\x00i\x00" + b"\xffm\x00" + b"\x13x\x00" + bytes(16)
    found = bson.decode((len(body) + 5).to_bytes(4, "little") + body + b"\0")
    assert found == {
        "o": "000102030405060708090a0b",
        "d": 5,
        "r": "/a.b/i",
        "m": None,
        "x": "00" * 16,
    }


def test_what_is_no_document_is_refused():
    good = bson.encode({"hello": "world", "n": {"m": 1}})
    for length in range(len(good)):
        with pytest.raises(ValueError, match=r"ends too early|subsection not found|as long as"):
            bson.decode(good[:length])
    with pytest.raises(ValueError, match="unknown type"):
        bson.decode(b"\x0c\0\0\0\x42a\0\0\0\0\0\0")
    with pytest.raises(TypeError):
        bson.encode({"x": object()})
