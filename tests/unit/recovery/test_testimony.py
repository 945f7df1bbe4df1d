"""Answers from inside a restored guest, from a guest that cannot be trusted to give them."""

import json
import socket

import pytest

from atoll.recovery.testimony import MAX_REPLY_BYTES, WitnessChannel, parse

APPLICATION = {
    "kind": "postgresql",
    "name": "15/main",
    "answering": True,
    "witness": "42",
    "wal_replayed_bytes": 4096,
    "repair_ran": False,
    "position": "0/1A2B",
    "detail": "",
}
REPLY = {
    "id": 1,
    "result": {
        "guest_time": 1700000000.5,
        "uptime_seconds": 9.5,
        "filesystems": [
            {"mount": "/", "source": "/dev/vda1", "fstype": "ext4", "recovered": True},
        ],
        "applications": [APPLICATION],
    },
}
LINE = json.dumps(REPLY).encode() + b"\n"


@pytest.fixture
def pair():
    host, guest = socket.socketpair()
    with host, guest:
        yield host, guest


def test_an_answer_is_read_whole():
    testimony = parse(LINE)
    assert testimony is not None
    assert testimony.guest_time == 1700000000.5
    assert testimony.filesystems[0].recovered
    [application] = testimony.applications
    assert application.answering
    assert application.wal_replayed_bytes == 4096
    assert application.witness == "42"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"db1 login:",
        b"[]",
        b'{"id": 1}',
        b'{"id": 1, "error": {"message": "no"}}',
        b'{"id": 1, "result": null}',
        b'{"id": 1, "result": {"guest_time": "soon", "uptime_seconds": 1,'
        b' "filesystems": [], "applications": []}}',
        b'{"id": 1, "result": {"guest_time": 1, "uptime_seconds": 1,'
        b' "filesystems": ["/"], "applications": []}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer_is_passed_over(line):
    assert parse(line) is None


def test_missing_details_are_unknown_rather_than_invented():
    bare = {"kind": "mariadb", "name": "main", "answering": 1}
    reply = {"result": REPLY["result"] | {"applications": [bare]}}
    testimony = parse(json.dumps(reply).encode())
    assert testimony is not None
    [application] = testimony.applications
    assert application.wal_replayed_bytes is None
    assert application.witness is None
    assert not application.answering  # only a plain true counts


def test_a_question_goes_out_as_one_line(pair):
    host, guest = pair
    channel = WitnessChannel(host)
    assert channel.ask()
    assert channel.ask()
    lines = guest.recv(65536).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": 1, "method": "testify"},
        {"id": 2, "method": "testify"},
    ]


def test_an_answer_in_pieces_after_noise(pair):
    host, guest = pair
    channel = WitnessChannel(host)
    guest.sendall(b"noise\n" + LINE[:40])
    assert channel.listen(0.05) is None
    guest.sendall(LINE[40:] + LINE)
    assert channel.listen(5) == parse(LINE)
    assert channel.listen(5) == parse(LINE)


def test_a_flood_is_dropped_and_the_next_answer_still_found(pair):
    host, guest = pair
    channel = WitnessChannel(host)
    sent = 0
    while sent <= MAX_REPLY_BYTES:
        guest.sendall(b"x" * 65536)
        sent += 65536
        assert channel.listen(0.001) is None
    guest.sendall(b"\n" + LINE)
    assert channel.listen(5) == parse(LINE)


def test_a_guest_that_never_reads_does_not_block_the_host(pair):
    host, guest = pair
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    channel = WitnessChannel(host)
    assert False in [channel.ask() for _ in range(10_000)]


def test_a_dead_qemu_is_no_answer(pair):
    host, guest = pair
    guest.close()
    channel = WitnessChannel(host)
    assert not channel.ask()
    assert channel.listen(5) is None
