"""sqlcmd on SQL Server 2022: suspending for a snapshot backup, and recording one."""

import os
import re
import sys
import time

from vendors.product import Product, complain, say

START = {
    "version": "16",
    "databases": ["orders", "stock"],
    "suspended": {},
    "user": "atoll",
    "password": "s3cret",
    "witness": "42",
    "not_online": [],
}


def main(product: Product, argv: list[str]) -> int:
    state = product.state()
    assert {"-x", "-X1", "-r0", "-W"} <= set(argv), argv
    user = argv[argv.index("-U") + 1] if "-U" in argv else ""
    if user != state["user"] or os.environ.get("SQLCMDPASSWORD") != state["password"]:
        complain(f"Sqlcmd: Error: Login failed for user '{user}'.")
        return 1
    batch = ""
    for line in sys.stdin:
        if line.strip() == "GO":
            _run(product, batch.strip())
            batch = ""
        else:
            batch += line
    return 0


def _run(product: Product, batch: str) -> None:
    if marker := re.fullmatch(r"SELECT '(.*)'", batch):
        say(marker[1])
        return
    if refusal := product.fault(batch):
        complain(f"Msg 3041, Level 16, State 1, Server sql1, Line 1\n{refusal}")
        return
    state = product.state()
    if changed := re.findall(r"USE \[(\w+)\]", batch):
        # What is only said goes to standard output, below severity 11.
        say(f"Changed database context to '{changed[-1]}'.")
    if "ProductMajorVersion" in batch:
        say(state["version"])
    elif "FROM sys.databases WHERE database_id > 4" in batch:
        say("\n".join(state["databases"]))
    elif "dm_server_suspend_status" in batch:
        for name, since in sorted(state["suspended"].items()):
            say(f"{int((time.monotonic() - since) * 1000)}|1|{name}")
    elif "dm_db_log_stats" in batch:
        say("\n".join(f"{name} 00000025:000001a8:0001" for name in state["databases"]))
    elif "state_desc" in batch:
        say("\n".join(state["not_online"]))
    elif "suspect_pages" in batch:
        say("0")
    elif "SUSPEND_FOR_SNAPSHOT_BACKUP" in batch or batch.startswith("BACKUP "):
        _suspend(product, batch)
    elif "CHECKPOINT" in batch:
        product.note("checkpoint")
    elif "FROM orders" in batch:
        say(state["witness"])


def _suspend(product: Product, batch: str) -> None:
    refusal, event = "", ""
    with product.changing() as state:
        if batch.endswith("= ON (MODE = COPY_ONLY)"):
            if state["suspended"]:
                refusal = "Database 'orders' is already suspended for snapshot backup."
            else:
                state["suspended"] = {name: time.monotonic() for name in state["databases"]}
                event = "suspend"
        elif batch.endswith("= OFF"):
            if not state["suspended"]:
                refusal = "No database is suspended for snapshot backup."
            state["suspended"], event = {}, "resume"
        elif "WITH METADATA_ONLY" in batch:
            if not state["suspended"]:
                refusal = "BACKUP WITH METADATA_ONLY needs databases suspended for snapshot backup."
            state["suspended"], event = {}, batch
    if event == "suspend":
        say("Database 'orders' acquired suspend locks in session 51.")
        say("I/O is frozen on database orders. No user action is required.")
    if refusal:
        complain(f"Msg 3081, Level 16, State 1, Server sql1, Line 1\n{refusal}")
    else:
        product.note(event)
