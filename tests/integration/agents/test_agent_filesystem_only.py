"""Applications that need no hold of their own: frozen with their file system, they lose nothing.

A frozen disk is what the programs had written when they were stopped, in the
order of their writes: like a killed process, not like a power cut. Each of
these writes so that it survives that, and here is shown to.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess

import pytest
from module_guest import Writer, agent, disk, program
from private_guest import await_that, mounted, run

pytestmark = pytest.mark.needs_root

SLAPD_CONFIG = """
include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix "dc=example"
rootdn "cn=admin,dc=example"
rootpw secret
maxsize 67108864
directory {directory}
"""


def given(command, text, **environment):
    done = subprocess.run(
        command,
        input=text,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.stdout} {done.stderr}"
    return done.stdout


class Sqlite:
    """`synchronous` off: not even the order of its syncs is needed, only that of its writes."""

    def __init__(self, directory, base, journal):
        self.path, self.journal = directory / "shop.db", journal

    @contextlib.contextmanager
    def running(self):
        connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        connection.execute(f"PRAGMA journal_mode={self.journal}")
        connection.execute("PRAGMA synchronous=off")
        connection.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER, note TEXT)")

        def write(number):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO orders VALUES (?, ?)", (number, "x" * 900))
            connection.execute("UPDATE orders SET note = note || 'y' WHERE number % 7 = 0")
            connection.execute("COMMIT")

        yield write
        connection.close()

    def numbers(self):
        connection = sqlite3.connect(self.path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = [row[0] for row in connection.execute("SELECT number FROM orders ORDER BY number")]
        connection.close()
        return found


class Firebird:
    """The engine in the client's process, as in embedded use; the server runs the same one."""

    def __init__(self, directory, base):
        self.path = directory / "shop.fdb"
        # Where the engine keeps its locks; several copies must not share them.
        self.environment = {"FIREBIRD_LOCK": str(base / f"{directory.name}-locks")}
        os.makedirs(self.environment["FIREBIRD_LOCK"], exist_ok=True)

    def sql(self, text):
        command = ["isql-fb", "-q", "-b", "-user", "SYSDBA", str(self.path)]
        return given(command, text, **self.environment)

    @contextlib.contextmanager
    def running(self):
        create = f"CREATE DATABASE '{self.path}' USER 'SYSDBA';"
        given(["isql-fb", "-q", "-b"], create, **self.environment)
        self.sql("CREATE TABLE orders (number INTEGER PRIMARY KEY, note VARCHAR(1000));")

        def write(number):
            note = "x" * 900
            self.sql(f"INSERT INTO orders VALUES ({number}, '{note}'); COMMIT;")

        yield write

    def numbers(self):
        validate = ["gfix", "-v", "-full", "-user", "SYSDBA", str(self.path)]
        assert given(validate, "", **self.environment).strip() == ""
        text = self.sql("SET HEADING OFF; SELECT number FROM orders ORDER BY number;")
        return [int(line) for line in text.split()]


class Slapd:
    """OpenLDAP on LMDB, which copies on write and has no log to replay."""

    def __init__(self, directory, base):
        self.directory, self.base = directory, base
        self.config = base / f"{directory.name}.conf"
        self.config.write_text(SLAPD_CONFIG.format(directory=directory / "ldap"))
        self.url = "ldapi://" + str(base / "ldapi").replace("/", "%2F")

    @contextlib.contextmanager
    def running(self):
        (self.directory / "ldap").mkdir()
        log = self.base / "slapd.log"
        log.write_text("")
        command = ["slapd", "-d", "stats", "-h", self.url, "-f", self.config]
        with program(command, log, "slapd starting"):
            top = "dn: dc=example\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: e\n"
            self.add(top)

            def write(number):
                self.add(
                    f"dn: cn=o{number},dc=example\nobjectClass: organizationalRole\n"
                    f"cn: o{number}\ndescription: {'x' * 500}\n"
                )

            yield write

    def add(self, text):
        given(["ldapadd", "-x", "-H", self.url, "-D", "cn=admin,dc=example", "-w", "secret"], text)

    def numbers(self):
        text = run("slapcat", "-f", self.config)
        return sorted(
            int(line.removeprefix("cn: o"))
            for line in text.splitlines()
            if line.startswith("cn: o")
        )


PRODUCTS = {
    "sqlite-wal": lambda directory, base: Sqlite(directory, base, "wal"),
    "sqlite-delete": lambda directory, base: Sqlite(directory, base, "delete"),
    "firebird": Firebird,
    "slapd": Slapd,
}
NEEDED = {"firebird": "isql-fb", "slapd": "slapd"}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_copy_of_a_frozen_disk_has_exactly_what_was_committed(name, tmp_path):
    if name in NEEDED and shutil.which(NEEDED[name]) is None:
        pytest.skip(f"no {NEEDED[name]} here")
    image, where = tmp_path / "disk.img", tmp_path / "disk"
    holds = 3
    with disk(image, where, megabytes=256):
        product = PRODUCTS[name](where, tmp_path)
        with product.running() as write, Writer(write) as writer, agent([], [where]) as holding:
            before = []
            for number in range(holds):
                enough = writer.acknowledged + 10
                await_that(lambda enough=enough: writer.acknowledged >= enough, "it commits")
                holding.freeze(str(number))
                before.append(writer.acknowledged)
                run("cp", "--sparse=always", image, tmp_path / f"copy{number}.img")
                assert writer.acknowledged == before[-1], "nothing commits while frozen"
                assert holding.thaw(str(number))["held"]
                writer.goes_on()
    for number in range(holds):
        with mounted(tmp_path / f"copy{number}.img", tmp_path / f"copy{number}") as mount:
            found = PRODUCTS[name](mount, tmp_path).numbers()
        assert found == list(range(1, len(found) + 1))
        assert before[number] <= len(found) <= before[number] + 1, "one may be unacknowledged"
