"""A private guest: databases on a real file system in a loop device, and the agent as it ships."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_guest import PG_BIN, AgentProcess, Guest, mariadb, mounted, postgres, run

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry

UUID = "50123456-789a-bcde-f012-3456789abcde"


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    base = Path(tempfile.mkdtemp(prefix="atoll-agent-"))
    base.chmod(0o755)
    image, mount = base / "disk.img", base / "disk"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base)
        image.touch()
        os.truncate(image, 2 << 30)
        run("mkfs.ext4", "-q", "-F", image)
        stack.enter_context(mounted(image, mount))
        found = Guest(base, mount, image)
        for name, owner in (("pg", "postgres"), ("my", "mysql")):
            (mount / name).mkdir()
            shutil.chown(mount / name, owner, owner)
        (base / "my").mkdir()
        shutil.chown(base / "my", "mysql", "mysql")
        run(PG_BIN / "initdb", "-D", mount / "pg/data", "-A", "trust", "--no-sync", user="postgres")
        run(
            *("mariadb-install-db", "--no-defaults", "--user=mysql"),
            *(f"--datadir={mount}/my/data", "--auth-root-authentication-method=socket"),
        )
        stack.enter_context(
            postgres(mount / "pg/data", base / "pgsock", found.pg_port, base / "pg.log")
        )
        stack.enter_context(mariadb(mount / "my/data", found.mariadb_socket, base / "my.log"))
        found.psql("CREATE TABLE ledger (id serial PRIMARY KEY, note text)")
        found.psql('CREATE SCHEMA "Odd Name"')
        found.psql('CREATE TABLE "Odd Name"."it""s" (id int)')
        run(
            *("pgbench", "-i", "-q", "-s", "3", "-h", base / "pgsock"),
            *("-p", str(found.pg_port), "postgres"),
            user="postgres",
        )
        found.sql(
            "CREATE DATABASE shop; CREATE TABLE shop.orders "
            "(id int AUTO_INCREMENT PRIMARY KEY, note varchar(200), n int)"
        )
        yield found


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "agents")


@pytest.fixture
def agent(guest: Guest, authority: Authority, tmp_path: Path) -> Iterator[AgentProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tar = enrol(
        authority,
        "db1",
        UUID,
        tmp_path / "db1.tar",
        address="127.0.0.1",
        port=port,
        applications=[
            {
                "kind": "postgresql",
                "name": "main",
                "data_directory": str(guest.mount / "pg/data"),
                "witness": "SELECT count(*) FROM ledger",
            },
            {
                "kind": "mariadb",
                "name": "shop",
                "socket": str(guest.mariadb_socket),
                "database": "shop",
                "witness": "SELECT count(*) FROM orders",
            },
        ],
    )
    root = tmp_path / "root"
    root.mkdir()
    run("tar", "-xf", tar, "-C", root)
    config = root / "etc/atoll/agent.json"
    # Nothing of this machine but the test's own disk may ever be frozen.
    text = config.read_text().rstrip().removesuffix("}")
    config.write_text(f'{text}, "freeze_only": ["{guest.mount}"], "discover": false}}')
    [entry] = AgentRegistry(authority.directory).agents()
    running = AgentProcess(
        config,
        root / "usr/lib/atoll/atoll-agent.pyz",
        tmp_path / "agent.log",
        AgentChannel(entry, authority.credentials),
    )
    yield running
    running.stop()
