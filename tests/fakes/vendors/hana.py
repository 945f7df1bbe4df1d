"""hdbsql on the system database: the backup catalogue and its data snapshots."""

import re

from vendors.product import Product, say

START = {
    "key": "ATOLL",
    "hosts": 1,
    "catalogue": [],
    "next": 1700000000000,
    "idle": 0,
    "witness": "42",
}


def main(product: Product, argv: list[str]) -> int:
    assert argv[3:7] == ["-a", "-x", "-j", "-C"], argv
    if argv[1:3] != ["-U", product.state()["key"]]:
        say("* -10104: Invalid value for KEY (invalid value)")
        return 43
    statement = argv[7]
    if refusal := product.fault(statement):
        say(f"* {refusal}")
        return 4
    if statement.startswith("BACKUP DATA FOR FULL SYSTEM"):
        return _backup(product, statement)
    state = product.state()
    if "M_BACKUP_CATALOG" in statement:
        for entry in state["catalogue"]:
            if entry["state"] == "prepared":
                say(f'"{entry["id"]}|{entry["comment"]}"')
    elif "M_LANDSCAPE_HOST" in statement:
        say(str(state["hosts"]))
    elif "ACTIVE_STATUS" in statement:
        say(str(state["idle"]))
    elif "SAVEPOINT" in statement:
        product.note("savepoint")
    else:
        say(state["witness"])
    return 0


def _backup(product: Product, statement: str) -> int:
    create = re.fullmatch(r".* CREATE SNAPSHOT COMMENT '(.*)'", statement)
    close = re.fullmatch(
        r".* CLOSE SNAPSHOT BACKUP_ID (\d+) (SUCCESSFUL|UNSUCCESSFUL) '(.*)'", statement
    )
    with product.changing() as state:
        prepared = [entry for entry in state["catalogue"] if entry["state"] == "prepared"]
        if create and prepared:
            say(
                "* 447: backup could not be completed: [110512] snapshot already exists SQLSTATE: HY000"
            )
            return 3
        if create:
            state["next"] += 1
            state["catalogue"].append(
                {"id": state["next"], "comment": create[1], "state": "prepared"}
            )
            state["events"].append("create snapshot")
            return 0
        mine = [entry for entry in prepared if close and entry["id"] == int(close[1])]
        if not close or not mine:
            say(
                "* 448: recovery could not be completed: no prepared snapshot found SQLSTATE: HY000"
            )
            return 3
        mine[0]["state"] = close[2].lower()
        state["events"].append(f"close snapshot {close[2].lower()}")
    return 0
