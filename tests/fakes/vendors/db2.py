"""The Db2 command line processor: suspended writes, and what hangs under them."""

import re
import sys

from vendors.product import Product, say, wait_until

START = {
    "active": ["SAMPLE", "STOCK"],
    "suspended": [],
    "partitions": 1,
    "lsn": 5000,
    "witness": "42",
    "connects_hang": False,
    "split": False,
}


def main(product: Product, argv: list[str]) -> int:
    assert argv[1:] == ["+p", "-t", "-x"], argv
    client = _Client(product)
    statement = ""
    for line in sys.stdin:
        statement += line
        if statement.rstrip().endswith(";"):
            for answer in client.run(statement.strip().removesuffix(";")):
                say(answer)
            statement = ""
    return 0


class _Client:
    def __init__(self, product: Product) -> None:
        self._product = product
        self._database = ""
        self._suspended_here = False

    def run(self, statement: str) -> list[str]:
        if statement.startswith("ECHO "):
            return [statement.removeprefix("ECHO ")]
        if refusal := self._product.fault(statement):
            return [refusal]
        if statement == "LIST ACTIVE DATABASES":
            names = self._product.state()["active"]
            if not names:
                return ["SQL1611W  No data was returned by Database System Monitor."]
            return [f"\nDatabase name                              = {name}" for name in names]
        if found := re.fullmatch(r"(CONNECT TO|RESTART DATABASE) (\w+)( WRITE RESUME)?", statement):
            return self._connect(found[2], found[1] != "CONNECT TO")
        if not self._database:
            return ["SQL1024N  A database connection does not exist.  SQLSTATE=08003"]
        return self._ask(statement)

    def _connect(self, name: str, resuming: bool) -> list[str]:
        state = self._product.state()
        if state["split"] and not resuming:
            return [f"SQL20153N  The split image of the database {name} is in the suspended state."]
        if resuming:
            self._resume(name, "restart with write resume")
        elif state["connects_hang"]:
            wait_until(lambda: name not in self._product.state()["suspended"])
        self._database = name
        return [f"   Database Connection Information\n Local database alias   = {name}"]

    def _ask(self, statement: str) -> list[str]:
        state = self._product.state()
        if statement == "SET WRITE SUSPEND FOR DATABASE":
            if self._database in state["suspended"]:
                return ["SQL1550N  The SET WRITE command failed.  Reason code = '1'."]
            with self._product.changing() as now:
                now["suspended"].append(self._database)
                now["events"].append(f"suspend {self._database}")
            self._suspended_here = True
            return ["DB20000I  The SET WRITE command completed successfully."]
        if statement == "SET WRITE RESUME FOR DATABASE":
            if self._database not in state["suspended"]:
                return ["SQL1550N  The SET WRITE command failed.  Reason code = '2'."]
            self._resume(self._database, "resume")
            return ["DB20000I  The SET WRITE command completed successfully."]
        if self._suspended_here:
            # IBM: nothing else on the connection that suspended, it may wait for the resume.
            wait_until(lambda: self._database not in self._product.state()["suspended"])
        if "SELECT COUNT(*) FROM SYSIBMADM.DBCFG" in statement:
            return [f"          {state['partitions']}"]
        if "suspend_io" in statement:
            return ["YES" if self._database in state["suspended"] else "NO"]
        if "MON_GET_TRANSACTION_LOG" in statement:
            return [f"lsn {state['lsn']}"]
        if statement == "FLUSH BUFFERPOOLS ALL":
            self._product.note(f"flush {self._database}")
            return ["DB20000I  The SQL command completed successfully."]
        return [state["witness"] if "FROM orders" in statement else "          1"]

    def _resume(self, name: str, how: str) -> None:
        with self._product.changing() as state:
            if name in state["suspended"]:
                state["suspended"].remove(name)
                state["events"].append(f"{how} {name}")
