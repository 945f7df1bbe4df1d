"""Holds of real databases on a really frozen file system."""

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from private_guest import await_that, mariadb, mounted, postgres, run

import atoll_agent.modules.mariadb as mariadb_module
from atoll.model.errors import AgentUnavailableError, HoldFailedError
from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.modules import postgresql

pytestmark = pytest.mark.needs_root


@pytest.fixture
def load(guest):
    """Four pgbench clients, and one writer each that knows which rows were committed."""
    committed = {"ledger": 0, "orders": 0}
    stop = threading.Event()

    def write(name, send):
        while not stop.is_set():
            send()
            committed[name] += 1

    def ledger():
        guest.psql("INSERT INTO ledger (note) VALUES (repeat('x', 100))")

    def orders():
        guest.sql(
            "INSERT INTO shop.orders (note, n) VALUES (repeat('x', 150), 1);"
            "UPDATE shop.orders SET n = n + 1 WHERE id > (SELECT max(id) - 40 FROM shop.orders)"
        )

    committed["ledger"] = int(guest.psql("SELECT count(*) FROM ledger"))
    committed["orders"] = int(guest.sql("SELECT count(*) FROM shop.orders"))
    bench = subprocess.Popen(
        [
            *("pgbench", "-n", "-c", "4", "-T", "600", "-h", str(guest.base / "pgsock")),
            *("-p", str(guest.pg_port), "postgres"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        user="postgres",
        group="postgres",
        extra_groups=[],
        cwd="/",
    )
    threads = [
        threading.Thread(target=write, args=("ledger", ledger)),
        threading.Thread(target=write, args=("orders", orders)),
    ]
    for thread in threads:
        thread.start()
    await_that(
        lambda: int(guest.psql("SELECT count(*) FROM pgbench_history")) > 50, "pgbench commits"
    )
    yield committed
    stop.set()
    for thread in threads:
        thread.join()
    alive = bench.poll() is None
    bench.terminate()
    _, said = bench.communicate()
    assert alive, said
    assert b"deadlock" not in said
    assert int(guest.psql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'")) == 0


def test_a_snapshot_of_a_hold_needs_no_recovery(guest, agent, load, tmp_path):
    agent.channel.prepare("run-1")
    frozen = agent.channel.freeze("run-1", 60, 30)
    assert [(state.held, state.detail) for state in frozen.applications] == [(True, ""), (True, "")]
    assert frozen.filesystems == (str(guest.mount),)
    assert guest.frozen()
    before = dict(load)
    copy = guest.base / "copy.img"
    run("cp", "--sparse=always", guest.image, copy)
    assert load == before, "nothing commits while held"
    thawed = agent.channel.thaw("run-1")
    assert (thawed.held, thawed.reason) == (True, "")
    assert frozen.frozen_at == thawed.frozen_at < thawed.thawed_at
    await_that(lambda: load["ledger"] > before["ledger"], "PostgreSQL commits again")
    await_that(lambda: load["orders"] > before["orders"], "MariaDB commits again")
    assert agent.channel.status().state == "idle"

    with mounted(copy, guest.base / "copy") as mount:
        (mount / "pg/data/postmaster.pid").unlink()
        pg_log, my_log = guest.base / "copy-pg.log", guest.base / "copy-my.log"
        pg_log.write_text("")
        my_log.write_text("")
        with postgres(mount / "pg/data", guest.base / "pgsock", 5545, pg_log):
            rows = int(guest.psql("SELECT count(*) FROM ledger", 5545))
            assert before["ledger"] <= rows <= before["ledger"] + 1, "one may be unacknowledged"
            assert str(rows) == frozen.applications[0].witness
            assert guest.psql(
                "SELECT sum(abalance) = (SELECT sum(delta) FROM pgbench_history) "
                "FROM pgbench_accounts",
                5545,
            )
            replayed = replay_of(pg_log.read_text())
            [cluster] = postgresql.discover(
                (word("postgresql", data_directory=str(mount / "pg/data")),), look=False
            )
            testimony = cluster.testify(Deadline(60))
            assert (testimony.answering, testimony.witness) == (True, str(rows))
            assert (testimony.wal_replayed_bytes, testimony.repair_ran) == (replayed, False)
        assert replayed < 1 << 20
        with mariadb(mount / "my/data", guest.base / "my/copy.sock", my_log):
            rows = int(guest.sql("SELECT count(*) FROM shop.orders", guest.base / "my/copy.sock"))
            assert before["orders"] <= rows <= before["orders"] + 1
            assert str(rows) == frozen.applications[1].witness
            [server] = mariadb_module.discover(
                (word("mariadb", socket=str(guest.base / "my/copy.sock"), database="shop"),),
                look=False,
            )
            testimony = server.testify(Deadline(60))
            assert (testimony.answering, testimony.witness) == (True, str(rows))
            assert (testimony.wal_replayed_bytes, testimony.repair_ran) == (0, False)
        assert "Starting crash recovery" not in my_log.read_text()
        assert "End of log at LSN" in my_log.read_text()
    print(f"held {thawed.thawed_at - thawed.frozen_at:.2f} s; PostgreSQL replayed {replayed} bytes")
    print([f"{state.kind}: {state.flush_seconds:.3f} s" for state in frozen.applications])
    copy.unlink()


def word(kind, **changes):
    table = "orders" if kind == "mariadb" else "ledger"
    return ApplicationConfig(kind, "copy", {"witness": f"SELECT count(*) FROM {table}", **changes})


def replay_of(log):
    def at(words):
        [(high, low)] = re.findall(words + r" ([0-9A-F]+)/([0-9A-F]+)", log)
        return (int(high, 16) << 32) + int(low, 16)

    return at("redo done at") - at("redo starts at") if "redo starts" in log else 0


def test_holds_under_load_never_cost_the_application_a_deadlock(guest, agent, load):
    seconds = []
    for number in range(10):
        frozen = agent.channel.freeze(f"many-{number}", 60, 30)
        assert [state.detail for state in frozen.applications if not state.held] == []
        assert agent.channel.thaw(f"many-{number}").held
        seconds += [state.flush_seconds for state in frozen.applications]
    print(f"longest flush of {len(seconds)}: {max(seconds):.3f} s")


def test_old_readers_of_mariadb_are_reported_and_held_all_the_same(guest, agent):
    with subprocess.Popen(
        [
            *("mariadb", "--no-defaults", "-BN", "--unbuffered", "--database=shop"),
            f"--socket={guest.mariadb_socket}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:
        reader.stdin.write(b"START TRANSACTION WITH CONSISTENT SNAPSHOT; SELECT 'open';\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == b"open\n"
        guest.sql("INSERT INTO shop.orders (note) VALUES ('x'); UPDATE shop.orders SET n = 5")
        [_, state] = agent.channel.freeze("old", 60, 30).applications
        assert state.held
        assert "left to purge" in state.detail
        assert agent.channel.thaw("old").held
        reader.stdin.close()


def test_a_witness_that_fails_does_not_cost_the_hold(guest, agent):
    guest.psql("ALTER TABLE ledger RENAME TO hidden")
    guest.sql("RENAME TABLE shop.orders TO shop.hidden")
    try:
        frozen = agent.channel.freeze("blind", 60, 30)
        for state in frozen.applications:
            assert (state.held, state.witness) == (True, None)
            assert "the witness did not answer" in state.detail
        assert agent.channel.thaw("blind").held
    finally:
        guest.psql("ALTER TABLE hidden RENAME TO ledger")
        guest.sql("RENAME TABLE shop.hidden TO shop.orders")


def test_a_killed_agent_leaves_nothing_frozen_or_locked(guest, agent):
    agent.channel.freeze("run-2", 60, 30)
    watchdog = agent.watchdog()
    agent.process.kill()
    agent.process.wait()
    await_that(lambda: not os.path.exists(f"/proc/{watchdog}"), "the watchdog ends")
    assert not guest.frozen()
    guest.psql("INSERT INTO ledger (note) VALUES ('after')")
    guest.sql("INSERT INTO shop.orders (note, n) VALUES ('after', 1)")
    agent.start()
    late = agent.channel.thaw("run-2")
    assert not late.held
    assert "holds nothing" in late.reason


def test_a_stopped_agent_cannot_outlast_its_lease(guest, agent):
    agent.channel.freeze("run-3", 2, 30)
    watchdog = agent.watchdog()
    agent.process.send_signal(signal.SIGSTOP)
    await_that(lambda: "Z" in state_of(watchdog), "the watchdog ends")
    assert not guest.frozen()
    guest.psql("INSERT INTO ledger (note) VALUES ('after')")
    guest.sql("INSERT INTO shop.orders (note, n) VALUES ('after', 1)")
    agent.process.send_signal(signal.SIGCONT)
    late = agent.channel.thaw("run-3")
    assert not late.held
    assert "lease of 2 s ended" in late.reason


def state_of(pid):
    with open(f"/proc/{pid}/stat") as stream:
        return stream.read().rpartition(")")[2].split()[0]


def test_a_lease_ends_by_itself_and_the_late_thaw_says_so(guest, agent):
    agent.channel.freeze("run-4", 1, 30)
    await_that(lambda: agent.channel.status().state == "idle", "the lease ends")
    guest.psql("INSERT INTO ledger (note) VALUES ('after')")
    first, again = agent.channel.thaw("run-4"), agent.channel.thaw("run-4")
    assert not first.held
    assert "lease of 1 s ended" in first.reason
    assert first == again
    assert agent.channel.freeze("run-4b", 60, 30).applications[0].held
    assert agent.channel.thaw("run-4b").held


def test_a_killed_watchdog_breaks_the_hold_but_freezes_nothing(guest, agent):
    agent.channel.freeze("run-5", 60, 30)
    os.kill(agent.watchdog(), signal.SIGKILL)
    await_that(lambda: agent.channel.status().state == "idle", "the agent steps in")
    assert not guest.frozen()
    guest.psql("INSERT INTO ledger (note) VALUES ('after')")
    thawed = agent.channel.thaw("run-5")
    assert not thawed.held
    assert "watchdog died (SIGKILL)" in thawed.reason


def test_somebody_elses_thaw_is_noticed(guest, agent):
    agent.channel.freeze("run-6", 60, 30)
    run("fsfreeze", "-u", guest.mount)
    thawed = agent.channel.thaw("run-6")
    assert not thawed.held
    assert "thawed by something else" in thawed.reason


def test_what_is_frozen_already_fails_clearly_and_stays_as_it_was(guest, agent):
    run("fsfreeze", "-f", guest.mount)
    try:
        with pytest.raises(HoldFailedError, match="already frozen by something else"):
            agent.channel.freeze("run-7", 60, 10)
        assert guest.frozen()
    finally:
        run("fsfreeze", "-u", guest.mount)
    guest.psql("INSERT INTO ledger (note) VALUES ('after')")


def test_an_open_write_transaction_gives_a_lesser_hold_that_names_it(guest, agent):
    with subprocess.Popen(
        [
            *("psql", "-X", "-q", "-h", str(guest.base / "pgsock"), "-p", str(guest.pg_port)),
            "postgres",
        ],
        stdin=subprocess.PIPE,
        user="postgres",
        group="postgres",
        extra_groups=[],
        env={**os.environ, "PGAPPNAME": "forgetful"},
        cwd="/",
    ) as writer:
        writer.stdin.write(b"BEGIN; INSERT INTO ledger (note) VALUES ('half');\n")
        writer.stdin.flush()
        await_that(
            lambda: (
                guest.psql(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
                )
                != "0"
            ),
            "the transaction is open",
        )
        frozen = agent.channel.freeze("run-8", 60, 6)
        database, mariadb_state = frozen.applications
        assert not database.held
        assert "forgetful" in database.detail
        assert database.position
        assert mariadb_state.held
        assert guest.frozen()
        assert agent.channel.thaw("run-8").held
        writer.stdin.close()


def test_a_lost_database_session_breaks_the_hold(guest, agent):
    agent.channel.freeze("run-9", 60, 30)
    guest.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'atoll-agent' AND state = 'idle in transaction'"
    )
    thawed = agent.channel.thaw("run-9")
    assert not thawed.held
    assert "postgresql main lost its locks" in thawed.reason


def test_a_lost_mariadb_session_breaks_the_hold_and_is_not_made_anew(guest, agent):
    agent.channel.freeze("run-9m", 60, 30)
    for one in guest.sql(
        "SELECT id FROM information_schema.processlist WHERE command = 'Sleep'"
    ).split():
        guest.sql(f"KILL {one}")
    thawed = agent.channel.thaw("run-9m")
    assert not thawed.held
    assert "mariadb shop lost its read lock" in thawed.reason


def test_another_run_can_neither_freeze_nor_thaw(guest, agent):
    first = agent.channel.freeze("run-10", 60, 30)
    with pytest.raises(HoldFailedError, match="run run-10 is held"):
        agent.channel.freeze("run-11", 60, 30)
    with pytest.raises(HoldFailedError, match="run run-10 is held"):
        agent.channel.prepare("run-11")
    assert not agent.channel.thaw("run-11").held
    again = agent.channel.freeze("run-10", 60, 30)
    assert (again.frozen_at, again.applications) == (first.frozen_at, first.applications)
    assert agent.channel.thaw("run-10").held


def test_stopping_the_agent_lets_go(guest, agent):
    agent.channel.freeze("run-12", 60, 30)
    agent.process.terminate()
    assert agent.process.wait(60) == 0
    assert not guest.frozen()
    guest.psql("INSERT INTO ledger (note) VALUES ('after')")
    with pytest.raises(AgentUnavailableError, match="does not answer"):
        agent.channel.thaw("run-12")


def test_a_new_agent_thaws_what_a_dead_one_left(guest, agent):
    agent.stop()
    run("fsfreeze", "-f", guest.mount)
    agent.start()
    assert not guest.frozen()
    assert f"{guest.mount} was found frozen" in agent.log


def agent_sessions(guest):
    return guest.psql(
        "SELECT string_agg(state, ',') FROM pg_stat_activity "
        "WHERE application_name = 'atoll-agent' AND state IS NOT NULL"
    )


def test_an_armed_run_is_held_without_starting_a_process(guest, agent, load):
    agent.channel.prepare("armed-1")
    before = agent.children()
    assert any("watchdog" in command for command in before.values())
    frozen = agent.channel.freeze("armed-1", 60, 30)
    assert agent.children() == before
    assert all(state.held for state in frozen.applications)
    assert frozen.began_at < frozen.frozen_at
    assert guest.frozen()
    assert agent.channel.thaw("armed-1").held
    await_that(lambda: agent.children() == {}, "the watchdog leaves")


def test_arming_holds_and_blocks_nothing(guest, agent):
    agent.channel.prepare("armed-2")
    assert agent.channel.status().state == "idle"
    assert set(agent_sessions(guest).split(",")) == {"idle"}
    assert not guest.frozen()
    guest.psql("ALTER TABLE ledger ADD COLUMN passing int")
    guest.psql("ALTER TABLE ledger DROP COLUMN passing")
    guest.sql("ALTER TABLE shop.orders ADD COLUMN passing int")
    guest.sql("ALTER TABLE shop.orders DROP COLUMN passing")
    agent.channel.prepare("armed-3")
    assert len([word for word in agent.children().values() if "watchdog" in word]) == 1
    assert not agent.channel.thaw("armed-3").held
    await_that(lambda: agent.children() == {}, "the watchdog leaves")


def test_a_killed_agent_leaves_no_watchdog_and_no_session_of_an_arming(guest, agent):
    agent.channel.prepare("armed-4")
    children = list(agent.children())
    agent.process.kill()
    agent.process.wait()
    await_that(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), "all of them end"
    )
    await_that(lambda: agent_sessions(guest) == "", "the server has no session of the agent")


def test_stopping_an_armed_agent_ends_what_it_armed(guest, agent):
    agent.channel.prepare("armed-5")
    children = list(agent.children())
    agent.process.terminate()
    assert agent.process.wait(60) == 0
    await_that(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), "all of them end"
    )


def test_what_changes_while_armed_is_held_as_it_is_then(guest, agent):
    agent.channel.prepare("armed-6")
    guest.psql("CREATE DATABASE later")
    guest.psql("CREATE TABLE newer (id int)")
    try:
        frozen = agent.channel.freeze("armed-6", 60, 30)
        assert all(state.held for state in frozen.applications)
        assert agent_sessions(guest).split(",").count("idle in transaction") == 2
        assert (
            guest.psql(
                "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted "
                "AND relation = 'newer'::regclass"
            )
            == "1"
        )
        assert agent.channel.thaw("armed-6").held
    finally:
        guest.psql("DROP DATABASE later")
        guest.psql("DROP TABLE newer")


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_a_session_lost_while_armed_does_not_cost_the_hold(guest, agent, server):
    agent.channel.prepare("armed-7")
    if server == "postgresql":
        guest.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'atoll-agent'"
        )
    else:
        [one, *_] = guest.sql(
            "SELECT id FROM information_schema.processlist WHERE command = 'Sleep' AND db = 'shop'"
        ).split()
        guest.sql(f"KILL {one}")
    frozen = agent.channel.freeze("armed-7", 60, 30)
    assert [state.detail for state in frozen.applications] == ["", ""]
    assert agent.channel.thaw("armed-7").held


def test_a_mariadb_user_with_a_password_file_is_enough(guest, tmp_path):
    secret = 'long "and" \\secret'
    quoted = secret.replace("\\", "\\\\")
    guest.sql(
        f"CREATE OR REPLACE USER atoll@localhost IDENTIFIED BY '{quoted}'; "
        "GRANT RELOAD, PROCESS, SUPER ON *.* TO atoll@localhost; "
        "GRANT SELECT ON shop.* TO atoll@localhost"
    )
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text(f"{secret}\n")
    given = {"socket": str(guest.mariadb_socket), "owner": "atoll", "database": "shop"}
    for options, can in [({"password_file": str(file)}, True), ({}, False)]:
        [server] = mariadb_module.discover((word("mariadb", **given, **options),), look=False)
        assert ("held by a global read lock" in server.remark(Deadline(60))) is can
        assert ("password_file" in server.remark(Deadline(60))) is not can
        if can:
            server.prepare(Deadline(60))
            pids = server.open(Deadline(60))
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
            held = server.hold(Deadline(60))
            assert (held.held, held.detail, server.still_held(Deadline(60))) == (True, "", "")
            assert b"secret" not in b"".join(commands)
            server.close()
