"""Redis servers are found by the titles they give themselves."""

import pytest

from atoll_agent.application import ApplicationConfig
from atoll_agent.modules import redis


@pytest.fixture
def proc(tmp_path):
    for pid, name, title, network in [
        (10, "redis-server", "/usr/bin/redis-server 127.0.0.1:6379", "net:[1]"),
        (11, "redis-server", "redis-rdb-bgsave 127.0.0.1:6379", "net:[1]"),
        (12, "redis-server", "redis-server *:6380 [cluster]     ", "net:[1]"),
        (13, "redis-server", "redis-server *:26379 [sentinel]", "net:[1]"),
        (14, "valkey-server", "valkey-server unixsocket:/run/valkey/a.sock", "net:[1]"),
        (15, "redis-server", "redis-server *:6379", "net:[7]"),
        (16, "keydb-server", "/opt/keydb-server 10.1.2.3:6390", "net:[1]"),
        (17, "sshd", "redis-server *:1", "net:[1]"),
        (18, "redis-server", "redis-server ::1:6395", "net:[1]"),
    ]:
        directory = tmp_path / str(pid)
        (directory / "ns").mkdir(parents=True)
        (directory / "comm").write_text(f"{name}\n")
        (directory / "cmdline").write_bytes(title.encode() + b"\0")
        (directory / "ns/net").symlink_to(network)
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/net").symlink_to("net:[1]")
    (tmp_path / "99").mkdir()
    return tmp_path


def found(proc, *entries):
    return {one.name: one._bare for one in redis.discover(entries, True, proc)}


def test_only_servers_that_can_be_reached_are_found(proc):
    servers = found(proc)
    assert set(servers) == {"6379", "6380", "6390", "6395", "/run/valkey/a.sock"}
    assert servers["6379"].host == servers["6380"].host == "127.0.0.1"
    assert (servers["6390"].host, servers["6395"].host) == ("10.1.2.3", "::1")
    assert servers["/run/valkey/a.sock"].socket == "/run/valkey/a.sock"


def test_an_entry_adds_to_what_was_found_and_names_what_was_not(proc):
    servers = found(
        proc,
        ApplicationConfig("redis", "cache", {"port": 6379, "user": "atoll"}),
        ApplicationConfig("redis", "elsewhere", {"socket": "/run/b.sock"}),
        ApplicationConfig("redis", "gone", {"user": "atoll"}),
    )
    assert set(servers) == {"cache", "6380", "6390", "6395", "/run/valkey/a.sock", "elsewhere"}
    assert (servers["cache"].port, servers["cache"].user) == (6379, "atoll")


def test_passwords_do_not_show(proc):
    endpoint = redis.Endpoint(None, 6379, password="s3cret")
    assert "s3cret" not in f"{endpoint} {endpoint!r}"
