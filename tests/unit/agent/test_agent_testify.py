"""The witness port answers what it must and nothing else."""

import json
import socket
import threading

import pytest

from atoll_agent.testify import give_testimony, serve_port


@pytest.fixture
def port():
    ours, theirs = socket.socketpair()
    stop = threading.Event()
    thread = threading.Thread(
        target=serve_port, args=(theirs.fileno(), lambda: {"guest_time": 1.5}, stop)
    )
    thread.start()
    yield ours.makefile("rwb", buffering=0)
    stop.set()
    thread.join()
    ours.close()
    theirs.close()


def ask(port, line):
    port.write(line + b"\n")
    return json.loads(port.readline())


def test_testify_is_answered(port):
    assert ask(port, b'{"id": 7, "method": "testify"}') == {"id": 7, "result": {"guest_time": 1.5}}


@pytest.mark.parametrize(
    "line",
    [b"garbage", b"[]", b'{"id": "x", "method": "testify"}', b'{"id": 1, "method": "run"}', b"{}"],
)
def test_anything_else_is_an_error_and_the_port_lives_on(port, line):
    assert "error" in ask(port, line)
    assert "result" in ask(port, b'{"id": 1, "method": "testify"}')


def test_an_endless_line_is_dropped(port):
    port.write(b"x" * 10000)
    port.write(b"\n")
    port.readline()
    assert "result" in ask(port, b'{"id": 1, "method": "testify"}')


def test_the_testimony_has_time_and_file_systems():
    testimony = give_testimony([])
    assert testimony["uptime_seconds"] > 0
    assert testimony["applications"] == []
    for filesystem in testimony["filesystems"]:
        assert set(filesystem) == {"mount", "source", "fstype", "recovered"}
