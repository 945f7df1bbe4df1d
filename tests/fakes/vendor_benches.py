"""One bench a product: a fake server, and an application of the agent's that holds it."""

import getpass
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll_agent.modules import ase, db2, domino, hana, informix, maxdb, mssql, oracle
from atoll_agent.modules.suspending import Product, SuspendedApplication
from vendors import ase as fake_ase
from vendors import db2 as fake_db2
from vendors import domino as fake_domino
from vendors import hana as fake_hana
from vendors import informix as fake_informix
from vendors import maxdb as fake_maxdb
from vendors import mssql as fake_mssql
from vendors import oracle as fake_oracle
from vendors.product import Product as FakeProduct
from vendors.product import create

WITNESS = "SELECT MAX(id) FROM orders"


@dataclass(frozen=True)
class Bench:
    """A fake and what holds it.

    `held` is whether the server is held, `let_go` what somebody else does to
    end that; `hold_command` and `resume_command` are parts of the commands that
    hold and resume.
    """

    kind: str
    fake: FakeProduct
    product: Product
    arguments: dict[str, Any]
    records: Path
    held: Callable[[dict[str, Any]], bool]
    let_go: dict[str, Any]
    hold_command: str
    resume_command: str

    def application(self) -> SuspendedApplication:
        """One of the agent's own, as `discover` makes it."""
        return SuspendedApplication("it", self.product, self.arguments, self.records)

    def is_held(self) -> bool:
        """Whether the server is held now."""
        return self.held(self.fake.state())

    def events(self) -> list[str]:
        """What was done to the server."""
        events: list[str] = self.fake.state()["events"]
        return events


def secret(directory: Path, text: str) -> str:
    """A password file as the agent wants it."""
    path = directory / "password"
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return str(path)


def oracle_bench(directory: Path, method: str = oracle.BACKUP_MODE, **state: Any) -> Bench:
    trace = directory / "trace"
    fake = create(directory / "server", ("sqlplus",), "oracle", **fake_oracle.START)
    trace.mkdir()
    (trace / "alert_ORCL.log").write_text(
        "Starting ORACLE instance (normal)\nCompleted crash recovery\n"
        " 1 data blocks read, 1 data blocks written, 9 redo k-bytes read\n"
        "Starting ORACLE instance (normal)\nBeginning crash recovery of 1 threads\n"
        " 12 data blocks read, 9 data blocks written, 40 redo k-bytes read\n"
    )
    fake.set(trace=str(trace), **state)
    instance = oracle.Instance(
        "it", "ORCL", str(fake.directory), getpass.getuser(), method, WITNESS, None
    )
    return Bench(
        "oracle",
        fake,
        oracle.Oracle(instance),
        asdict(instance),
        directory,
        lambda now: now["in_backup_since"] > 0,
        {"in_backup_since": 0},
        "BEGIN BACKUP",
        "END BACKUP",
    )


def mssql_bench(directory: Path, **state: Any) -> Bench:
    fake = create(directory / "server", ("sqlcmd",), "mssql", **{**fake_mssql.START, **state})
    server = mssql.Server(
        "it",
        "tcp:127.0.0.1,1433",
        "atoll",
        secret(directory, "s3cret"),
        metadata_directory="/mnt/log-backups",
        database="orders",
        witness=WITNESS,
    )
    return Bench(
        "mssql",
        fake,
        mssql.SqlServer(server),
        asdict(server),
        directory,
        lambda now: bool(now["suspended"]),
        {"suspended": {}},
        "= ON (MODE",
        "= OFF",
    )


def db2_bench(directory: Path, **state: Any) -> Bench:
    fake = create(directory / "server", ("db2",), "db2", **{**fake_db2.START, **state})
    profile = directory / "home/sqllib/db2profile"
    profile.parent.mkdir(parents=True)
    profile.write_text("DB2INSTANCE=db2inst1; export DB2INSTANCE\n")
    instance = db2.Instance("it", None, str(directory / "home"), None, WITNESS)
    return Bench(
        "db2",
        fake,
        db2.Db2(instance),
        asdict(instance),
        directory,
        lambda now: bool(now["suspended"]),
        {"suspended": []},
        "WRITE SUSPEND",
        "WRITE RESUME",
    )


def informix_bench(directory: Path, **state: Any) -> Bench:
    programs = ("onmode", "onstat", "dbaccess")
    fake = create(directory / "server", programs, "informix", **{**fake_informix.START, **state})
    environment = {"INFORMIXDIR": str(fake.directory), "INFORMIXSERVER": "it"}
    server = informix.Server("it", None, environment, "orders", WITNESS)
    return Bench(
        "informix",
        fake,
        informix.Informix(server),
        asdict(server),
        directory,
        lambda now: now["blocked"],
        {"blocked": False},
        "-c block",
        "-c unblock",
    )


def hana_bench(directory: Path, **state: Any) -> Bench:
    fake = create(directory / "server", ("hdbsql",), "hana", **{**fake_hana.START, **state})
    system = hana.System("it", None, {}, "ATOLL", None, WITNESS)
    return Bench(
        "hana",
        fake,
        hana.Hana(system),
        asdict(system),
        directory,
        lambda now: any(entry["state"] == "prepared" for entry in now["catalogue"]),
        {"catalogue": []},
        "CREATE SNAPSHOT",
        "CLOSE SNAPSHOT",
    )


def ase_bench(directory: Path, **state: Any) -> Bench:
    fake = create(directory / "server", ("isql",), "ase", **{**fake_ase.START, **state})
    server = ase.Server(
        "it", "ASE1", None, {}, "sa", secret(directory, "s3cret"), "orders", WITNESS
    )
    return Bench(
        "ase",
        fake,
        ase.Ase(server),
        asdict(server),
        directory,
        lambda now: bool(now["tags"]),
        {"tags": {}},
        " hold ",
        " release",
    )


def maxdb_bench(directory: Path, **state: Any) -> Bench:
    fake = create(directory / "server", ("dbmcli",), "maxdb", **{**fake_maxdb.START, **state})
    database = maxdb.Database("it", None, witness=WITNESS)
    return Bench(
        "maxdb",
        fake,
        maxdb.MaxDb(database),
        asdict(database),
        directory,
        lambda now: now["suspended"],
        {"suspended": False},
        "SUSPEND LOGWRITER",
        "RESUME LOGWRITER",
    )


def domino_bench(directory: Path, **state: Any) -> Bench:
    fake = create(directory / "server", ("domino-server",), "domino", **fake_domino.START)
    data = directory / "notesdata"
    data.mkdir()
    (data / "notes.ini").write_text("[Notes]\n")
    fake.set(data=str(data), **state)
    server = domino.Server("it", str(fake.directory / "bin/domino-server"), None, str(data))
    return Bench(
        "domino",
        fake,
        domino.Domino(server),
        asdict(server),
        directory,
        lambda now: now["in_backup_mode"],
        {},
        "load backup -s",
        "",
    )


BENCHES: dict[str, Callable[..., Bench]] = {
    "oracle": oracle_bench,
    "mssql": mssql_bench,
    "db2": db2_bench,
    "informix": informix_bench,
    "hana": hana_bench,
    "ase": ase_bench,
    "maxdb": maxdb_bench,
    "domino": domino_bench,
}


def arguments_text(bench: Bench) -> str:
    """The arguments as they go over the pipe to the dead-man's process."""
    return json.dumps(bench.arguments)


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes true within a time that is far beyond what it takes."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True
