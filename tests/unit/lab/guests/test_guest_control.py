"""The lab's control channel, both ends, over a socket in place of the virtio port."""

import json
import socket
import threading

import pytest

from atoll_lab.guests.control import GuestShell
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.inside import control_loop


@pytest.fixture
def guest(tmp_path):
    """A control socket served one connection at a time by the real loop's `answer`."""
    path = tmp_path / "c.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve():
        while True:
            try:
                channel, _ = server.accept()
            except OSError:
                return
            with channel:
                # The end of a reply to somebody who is gone, then one that is not ours.
                channel.sendall(b'"out": "lost"}\n{"id": "other", "rc": 0, "out": "", "err": ""}\n')
                with channel.makefile("rb") as requests:
                    for line in requests:
                        if line.strip():
                            control_loop.answer(channel.fileno(), line)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield GuestShell(path)
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(10)


def test_output_errors_and_status_come_back(guest):
    result = guest.run("echo out; echo err >&2; exit 3")
    assert (result.status, result.output, result.errors) == (3, "out\n", "err\n")


def test_two_calls_in_a_row(guest):
    assert guest.check("echo one") == "one\n"
    assert guest.check("echo two") == "two\n"


def test_a_failing_command_is_an_error_where_success_was_asked_for(guest):
    with pytest.raises(LabGuestError, match=r"ended with 7.*because"):
        guest.check("echo because >&2; exit 7")


def test_a_command_that_outlives_its_time_is_killed_with_its_children():
    status, output, _ = control_loop.run("echo begun; sleep 600 & sleep 600", 0.5)
    assert (status, output) == (124, "begun\n")


def test_large_output_is_cut():
    _, output, _ = control_loop.run("head -c 3000000 /dev/zero | tr '\\0' x", 60)
    assert len(output) == control_loop.OUTPUT_LIMIT


@pytest.mark.parametrize("line", [b"half a requ", b"[]", b'{"id": 1}', b'{"cmd": "true"}'])
def test_a_broken_request_is_dropped(line):
    host, port = socket.socketpair()
    with host, port:
        control_loop.answer(port.fileno(), line)
        control_loop.answer(
            port.fileno(), json.dumps({"id": "x", "cmd": "true", "timeout": 60}).encode()
        )
        assert json.loads(host.recv(65536))["id"] == "x"


def test_nobody_there(tmp_path):
    with pytest.raises(LabGuestError, match="cannot be reached"):
        GuestShell(tmp_path / "none.sock").run("true")


def test_a_guest_that_does_not_answer(tmp_path):
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(LabGuestError, match="did not answer"):
            GuestShell(path).run("true", timeout_seconds=0.1)
