"""Redis held under load on a really frozen file system, and what a server made of the copy knows."""

import os
import shutil
import signal
import socket
import subprocess

import pytest
from module_guest import Writer, agent, alive, certificate, disk, program
from private_guest import await_that, mounted, run

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.modules import redis
from atoll_agent.modules.resp import Connection, Endpoint
from products import product

pytestmark = pytest.mark.needs_root

PASSWORD = "long and secret"
APPEND = ("--appendonly", "yes", "--save", "")
SNAPSHOTS = ("--appendonly", "no", "--save", "3600", "1000000")
NOTHING = ("--appendonly", "no", "--save", "")


def server(directory, sock, *options):
    log = directory.parent / f"{sock.stem}.log"
    log.write_text("")
    return program(
        [
            *("redis-server", "--port", "0", "--unixsocket", sock, "--dir", directory),
            *("--logfile", "", "--requirepass", PASSWORD, *options),
        ],
        log,
        "eady to accept connections",
    )


def connect(sock):
    return Connection(Endpoint(str(sock), 0, password=PASSWORD), Deadline(60))


class Guest:
    def __init__(self, base):
        self.base = base
        self.image = base / "disk.img"
        self.mount = base / "disk"
        self.sock = base / "a.sock"
        self.password = base / "password"
        self.password.touch(0o600)
        self.password.write_text(PASSWORD + "\n")

    def entry(self, sock=None, **more):
        return {
            "kind": "redis",
            "name": f"main-{self.base.name}-{os.getpid()}",
            "socket": str(sock or self.sock),
            "password_file": str(self.password),
            "witness": "GET last",
            **more,
        }

    def writer(self):
        connection = connect(self.sock)

        def write(number):
            limit = Deadline(120)
            connection.send(limit, "MULTI")
            connection.send(limit, "SET", "last", str(number))
            connection.send(limit, "RPUSH", "numbers", f"{number} {'x' * 200}")
            connection.send(limit, "EXEC")
            for _ in range(3):
                connection.receive(limit)
            assert connection.receive(limit)[0] == "OK"

        return Writer(write)


@pytest.fixture
def guest(tmp_path):
    found = Guest(tmp_path)
    with disk(found.image, found.mount, megabytes=256):
        yield found


@pytest.mark.parametrize("options", [APPEND, SNAPSHOTS])
def test_a_copy_has_exactly_what_was_acknowledged_when_it_was_held(guest, options):
    with (
        server(guest.mount, guest.sock, *options),
        guest.writer() as writer,
        agent([guest.entry()], [guest.mount]) as holding,
    ):
        writer.goes_on()
        holding.prepare("a")
        held = holding.freeze("a")
        [state] = held["applications"]
        assert (state["held"], state["detail"]) == (True, "")
        before = writer.acknowledged
        # Reading goes on while writers wait.
        assert connect(guest.sock).ask(Deadline(60), "GET", "last") == state["witness"]
        copy = guest.base / "copy.img"
        shutil.copyfile(guest.image, copy)
        assert writer.acknowledged == before, "nothing is acknowledged while held"
        thawed = holding.thaw("a")
        assert (thawed["held"], thawed["reason"], holding.dead_men()) == (True, "", [])
        writer.goes_on()
    sock = guest.base / "copy.sock"
    with mounted(copy, guest.base / "copy") as mount, server(mount, sock, *options):
        restored = connect(sock)
        last = int(restored.ask(Deadline(60), "GET", "last"))
        assert before <= last <= before + 1, "one may be unacknowledged"
        assert restored.ask(Deadline(60), "LLEN", "numbers") == last
        entry = guest.entry(sock)
        config = ApplicationConfig(entry.pop("kind"), entry.pop("name"), entry)
        [found] = redis.discover([config], look=False)
        testimony = found.testify(Deadline(60))
        assert (testimony.answering, testimony.witness) == (True, state["witness"])


RIGHTS = (
    "+info +client|pause +client|unpause +bgsave +config|get +waitaof +command|info "
    "+unlink ~atoll:* +get ~last"
)


@pytest.mark.parametrize("options", [APPEND, SNAPSHOTS])
def test_a_user_with_no_more_rights_than_the_manual_says_is_enough(guest, options):
    with server(guest.mount, guest.sock, *options), guest.writer() as writer:
        # Redis 7.0 knows no WAITAOF and would refuse the whole rule.
        rights = [word for word in RIGHTS.split() if word != "+waitaof"]
        admin = connect(guest.sock)
        admin.ask(Deadline(60), "ACL", "SETUSER", "atoll", "on", f">{PASSWORD}", *rights)
        with agent([guest.entry(user="atoll")], []) as holding:
            writer.goes_on()
            holding.prepare("a")
            [state] = holding.freeze("a")["applications"]
            assert (state["held"], state["detail"]) == (True, "")
            assert holding.thaw("a")["held"]


def test_a_replica_is_held_though_its_primary_goes_on(guest, tmp_path):
    """What comes from the primary waits as well, and what was there before it does not change."""
    replica = tmp_path / "replica.sock"
    port = free_port()
    elsewhere = tmp_path / "primary"
    elsewhere.mkdir()
    with (
        server(elsewhere, guest.sock, *NOTHING, "--port", str(port)),
        server(
            *(guest.mount, replica, *APPEND, "--replicaof", f"127.0.0.1 {port}"),
            *("--masterauth", PASSWORD),
        ),
        guest.writer() as writer,
        agent([guest.entry(replica)], [guest.mount]) as holding,
    ):
        await_that(lambda: last_of(replica) > 0, "the replica follows")
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], state["detail"]) == (True, "")
        for _ in range(20):
            writer.goes_on()
        assert last_of(replica) == int(state["witness"])
        thawed = holding.thaw("a")
        assert (thawed["held"], thawed["reason"]) == (True, "")
        await_that(lambda: last_of(replica) > int(state["witness"]), "the replica follows again")


def test_a_server_that_speaks_tls_alone(guest, tmp_path):
    crt, key = certificate(tmp_path)
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", crt, "--tls-key-file", key)
    entry = guest.entry(port=port, tls_authority=str(crt))
    del entry["socket"]
    ours = {"tls_certificate": str(crt), "tls_key": str(key)}
    with server(guest.mount, guest.sock, *APPEND, *tls, "--tls-ca-cert-file", crt):
        with guest.writer() as writer, agent([{**entry, **ours}], [guest.mount]) as holding:
            writer.goes_on()
            [state] = holding.freeze("a")["applications"]
            assert (state["held"], state["detail"]) == (True, "")
            assert holding.thaw("a")["held"]
            writer.goes_on()
        # It wants a certificate of ours.
        with agent([entry], []) as holding:
            assert "cannot be held" in holding.order("remark")[0]
        (tmp_path / "other").mkdir()
        foreign, _ = certificate(tmp_path / "other")
        with agent([{**entry, **ours, "tls_authority": str(foreign)}], []) as holding:
            assert "TLS with the server failed" in holding.order("remark")[0]


def last_of(sock):
    return int(connect(sock).ask(Deadline(60), "GET", "last") or 0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_valkey_like_servers_that_sync_on_demand_are_asked_to(guest, valkey):
    with (
        program(
            [
                *(valkey, "--port", "0", "--unixsocket", guest.sock, "--dir", guest.mount),
                *(*APPEND, "--requirepass", PASSWORD, "--appendfsync", "no"),
            ],
            guest.base / "valkey.log",
            "eady to accept connections",
        ),
        guest.writer() as writer,
        agent([guest.entry()], [guest.mount]) as holding,
    ):
        writer.goes_on()
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], state["detail"]) == (True, "")
        assert holding.thaw("a")["held"]
        writer.goes_on()


@pytest.fixture
def valkey():
    found = product("valkey-server", "ATOLL_TEST_VALKEY")
    if found is None:
        pytest.skip("no valkey-server: scripts/test-products fetches one")
    return found


def test_a_server_that_keeps_nothing_is_held_and_says_so(guest):
    with server(guest.mount, guest.sock, *NOTHING), agent([guest.entry()], []) as holding:
        assert "keeps nothing on disk" in holding.order("remark")[0]
        [state] = holding.freeze("a")["applications"]
        assert state["held"]
        assert "starts without data" in state["detail"]
        assert holding.thaw("a")["held"]


def test_a_save_that_cannot_be_done_in_time_is_not_called_held(guest):
    with server(guest.mount, guest.sock, *SNAPSHOTS), agent([guest.entry()], []) as holding:
        admin = connect(guest.sock)
        for number in range(40):
            admin.ask(Deadline(60), "SET", f"key{number}", "x")
        # Microseconds for each key: a save takes four seconds from here on.
        admin.ask(Deadline(60), "CONFIG", "SET", "rdb-key-save-delay", "100000")
        holding.prepare("a")
        admin.ask(Deadline(60), "SET", "last", "1")
        [state] = holding.freeze("a", budget=7)["applications"]
        assert not state["held"]
        assert "no append-only file" in state["detail"]
        assert "1 changes ago" in state["detail"]
        admin.ask(Deadline(60), "SET", "last", "2")
        holding.thaw("a")


def test_a_save_that_fails_is_not_called_held(guest):
    directory = guest.base / "gone"
    directory.mkdir()
    with server(directory, guest.sock, *SNAPSHOTS), agent([guest.entry()], []) as holding:
        connect(guest.sock).ask(Deadline(60), "SET", "last", "1")
        directory.rmdir()
        [state] = holding.freeze("a")["applications"]
        assert (state["held"], "could not save its memory" in state["detail"]) == (False, True)
        holding.thaw("a")
        # Else it would not end before it has saved.
        connect(guest.sock).ask(Deadline(60), "CONFIG", "SET", "save", "")


def test_without_its_password_file_it_says_what_is_missing(guest):
    with server(guest.mount, guest.sock, *APPEND):
        bare = {key: value for key, value in guest.entry().items() if key != "password_file"}
        with agent([bare], []) as holding:
            assert "name a password_file" in holding.order("remark")[0]
        guest.password.chmod(0o644)
        with agent([guest.entry()], []) as holding:
            assert "readable by root alone" in holding.order("remark")[0]
            assert PASSWORD not in holding.order("remark")[0]


def test_somebody_elses_unpause_breaks_the_hold(guest):
    with (
        server(guest.mount, guest.sock, *APPEND),
        guest.writer() as writer,
        agent([guest.entry()], []) as holding,
    ):
        writer.goes_on()
        assert holding.freeze("a")["applications"][0]["held"]
        connect(guest.sock).ask(Deadline(60), "CLIENT", "UNPAUSE")
        thawed = holding.thaw("a")
        assert not thawed["held"]
        assert "something else ended the pause" in thawed["reason"]


def test_an_idle_server_that_was_unpaused_is_noticed_too(guest):
    with server(guest.mount, guest.sock, *APPEND), agent([guest.entry()], []) as holding:
        holding.freeze("a")
        connect(guest.sock).ask(Deadline(60), "CLIENT", "UNPAUSE")
        connect(guest.sock).ask(Deadline(60), "CLIENT", "PAUSE", "60000", "WRITE")
        thawed = holding.thaw("a")
        assert "something else ended the pause" in thawed["reason"]


def test_a_killed_agent_leaves_no_server_paused(guest):
    with (
        server(guest.mount, guest.sock, *APPEND),
        guest.writer() as writer,
        agent([guest.entry()], [guest.mount]) as holding,
    ):
        holding.freeze("a")
        left = holding.dead_men()
        assert len(left) == 2
        holding.kill()
        writer.goes_on()
        await_that(lambda: not alive(left), "its dead-man's process leaves")


def test_a_stopped_agent_cannot_keep_a_server_paused_beyond_its_lease(guest):
    with (
        server(guest.mount, guest.sock, *APPEND),
        guest.writer() as writer,
        agent([guest.entry()], [guest.mount]) as holding,
    ):
        holding.freeze("a", lease=1)
        os.kill(holding.process.pid, signal.SIGSTOP)
        writer.goes_on()
        os.kill(holding.process.pid, signal.SIGCONT)
        thawed = holding.thaw("a")
        assert (thawed["held"], "lease of 1 s ended" in thawed["reason"]) == (False, True)


def test_what_agent_and_dead_man_left_paused_the_next_agent_lets_go(guest):
    with (
        server(guest.mount, guest.sock, *APPEND),
        guest.writer() as writer,
        agent([guest.entry()], []) as holding,
    ):
        holding.freeze("a")
        os.kill(holding.process.pid, signal.SIGSTOP)
        for pid in holding.dead_men():
            os.kill(pid, signal.SIGKILL)
        holding.kill()
        assert waits_to_write(guest)
        holding.start()
        assert holding.order("recover") == [None]
        writer.goes_on()


def test_a_killed_dead_man_breaks_the_hold_and_is_replaced_to_let_go(guest):
    with (
        server(guest.mount, guest.sock, *APPEND),
        guest.writer() as writer,
        agent([guest.entry()], []) as holding,
    ):
        holding.freeze("a")
        for pid in holding.dead_men():
            os.kill(pid, signal.SIGKILL)
        thawed = holding.thaw("a")
        assert "was killed" in thawed["reason"]
        writer.goes_on()


def waits_to_write(guest):
    done = subprocess.run(
        ["timeout", "1", "redis-cli", "-s", str(guest.sock), "SET", "probe", "1"],
        env={**os.environ, "REDISCLI_AUTH": PASSWORD},
        capture_output=True,
        check=False,
    )
    return done.returncode == 124


def test_a_running_server_is_found_by_its_title(guest, tmp_path):
    directory = tmp_path / "found"
    directory.mkdir()
    with server(directory, guest.sock, *APPEND) as process:
        entry = guest.entry()
        config = ApplicationConfig(entry.pop("kind"), entry.pop("name"), entry)
        found = [each for each in redis.discover([config], look=True) if each.name == config.name]
        assert len(found) == 1
        run("true")
        assert process.poll() is None
        assert "append-only file has everything" in found[0].remark(Deadline(10))
