"""MySQL (Oracle's) held under load, and recovered from a copy.

Debian has none; `scripts/test-products` fetches 5.7.29. ATOLL_TEST_MYSQLD names another, 5.7 or
later.
"""

import os
import subprocess
from pathlib import Path

import pytest
from module_guest import Writer, agent, disk, program
from private_guest import mounted, run

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.modules import mariadb
from products import product

MYSQLD = product("mysqld", "ATOLL_TEST_MYSQLD") or ""
PASSWORD = 'long "and" \\secret'

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(
        not MYSQLD,
        reason="no mysqld: scripts/test-products fetches one, or ATOLL_TEST_MYSQLD names it",
    ),
]


def options(data):
    base = Path(MYSQLD).parent
    messages = next(base.rglob("errmsg.sys"), None) or next(base.parent.rglob("errmsg.sys"))
    return [
        *("--no-defaults", "--user=root", "--secure-file-priv=NULL", "--skip-networking"),
        # Its own, not those of a MariaDB that is installed here.
        *(f"--lc-messages-dir={messages.parents[1]}", f"--datadir={data}"),
        f"--character-sets-dir={messages.parents[1]}/charsets",
    ]


def server(data, sock, log):
    log.write_text("")
    return program(
        [
            *(MYSQLD, *options(data), f"--socket={sock}", f"--pid-file={data}/server.pid"),
            # One binary log for the server and its copies: which transactions that are only
            # prepared count as committed, recovery learns from it.
            *("--innodb-buffer-pool-size=64M", "--server-id=1", "--log-bin=bin"),
        ],
        log,
        "ready for connections",
    )


def sql(sock, statement, password=True):
    environment = {**os.environ, "MYSQL_PWD": PASSWORD} if password else dict(os.environ)
    done = subprocess.run(
        ["mariadb", "--no-defaults", "-BN", "-uroot", f"--socket={sock}", "-e", statement],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    base = tmp_path_factory.mktemp("mysql")
    image, where, sock = base / "disk.img", base / "disk", base / "a.sock"
    with disk(image, where, megabytes=1024):
        run(MYSQLD, *options(where / "data"), "--initialize-insecure")
        with server(where / "data", sock, base / "a.log"):
            quoted = PASSWORD.replace("\\", "\\\\")
            sql(sock, f"ALTER USER root@localhost IDENTIFIED BY '{quoted}'", password=False)
            sql(
                sock,
                "CREATE DATABASE shop; CREATE TABLE shop.orders "
                "(id int AUTO_INCREMENT PRIMARY KEY, note varchar(200), n int)",
            )
            (base / "password").touch(0o600)
            (base / "password").write_text(PASSWORD)
            yield base


def entry(base, sock):
    return {
        "kind": "mariadb",
        "name": "mysql",
        "socket": str(base / sock),
        "owner": "root",
        "password_file": str(base / "password"),
        "database": "shop",
        "witness": "SELECT count(*) FROM orders",
    }


def writer(sock):
    def write(number):
        sql(
            sock,
            f"INSERT INTO shop.orders (note, n) VALUES (repeat('x', 150), {number}); "
            "UPDATE shop.orders SET n = n + 1 ORDER BY id DESC LIMIT 40",
        )

    return Writer(write)


def test_a_copy_has_exactly_what_was_committed_when_it_was_held(guest):
    with (
        writer(guest / "a.sock") as writing,
        agent([entry(guest, "a.sock")], [guest / "disk"]) as holding,
    ):
        writing.goes_on()
        assert "without a checkpoint" in holding.order("remark")[0]
        holding.prepare("a")
        [state] = holding.freeze("a")["applications"]
        assert state["held"], state["detail"]
        assert "recovery will replay" in state["detail"]
        assert state["position"].startswith("binlog bin.")
        before = writing.settled()
        run("cp", "--sparse=always", guest / "disk.img", guest / "copy.img")
        assert writing.acknowledged == before, "nothing commits while held"
        thawed = holding.thaw("a")
        assert (thawed["held"], thawed["reason"]) == (True, "")
        writing.goes_on()
    print(f"flushed in {state['flush_seconds']:.3f} s; {state['detail']}")
    with mounted(guest / "copy.img", guest / "copy") as mount:
        (mount / "data/server.pid").unlink()
        with server(mount / "data", guest / "copy.sock", guest / "copy.log"):
            rows = int(sql(guest / "copy.sock", "SELECT count(*) FROM shop.orders"))
            assert before <= rows <= before + 1, "one may be unacknowledged"
            assert str(rows) == state["witness"]
            given = entry(guest, "copy.sock")
            config = ApplicationConfig(given.pop("kind"), given.pop("name"), given)
            [found] = mariadb.discover([config], look=False)
            testimony = found.testify(Deadline(60))
            assert (testimony.answering, testimony.witness) == (True, str(rows))
            assert testimony.repair_ran is False
            assert testimony.wal_replayed_bytes is not None
            print(f"replayed {testimony.wal_replayed_bytes} bytes")


def test_without_its_password_it_says_what_is_missing(guest):
    bare = {key: value for key, value in entry(guest, "a.sock").items() if key != "password_file"}
    with agent([bare], []) as holding:
        assert "name an owner and a password_file" in holding.order("remark")[0]
        [state] = holding.freeze("a")["applications"]
        assert not state["held"]
        holding.thaw("a")
