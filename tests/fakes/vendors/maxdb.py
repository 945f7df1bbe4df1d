"""dbmcli of a MaxDB database: its log writer."""

import sys

from vendors.product import Product, say

START = {"state": "ONLINE", "key": "c", "suspended": False, "used": 4000, "witness": "42"}


def main(product: Product, argv: list[str]) -> int:
    if argv[1] != "-d" or argv[3:] != ["-U", product.state()["key"]]:
        say("Error! Connection failed to node (local): XUSER: unknown key")
        return 1
    connected = selecting = False
    for line in sys.stdin:
        command = line.strip()
        if command == "exit":
            break
        if refusal := product.fault(command):
            say(f"ERR\n-24988,ERR_SQL: SQL error\n{refusal}")
        elif command == "util_connect":
            connected = True
            say("OK\n")
        elif command == "util_release":
            connected = False
            say("OK\n")
        elif command.startswith("util_execute "):
            say(_execute(product, command.removeprefix("util_execute "), connected))
        elif command == "db_state":
            say(f"OK\nState\n{product.state()['state']}\n")
        elif command == "info log":
            say(_info(product))
        elif command in {"sql_connect", "sql_release"}:
            selecting = command == "sql_connect"
            say("OK\n")
        elif command.startswith("sql_execute ") and selecting:
            say(f"OK\nEND\n{product.state()['witness']}\n")
        else:
            say(f"ERR\n-24977,ERR_COMMAND: Wrong command or parameters\n{command}")
    return 0


def _execute(product: Product, command: str, connected: bool) -> str:
    if not connected:
        return "ERR\n-24929,ERR_NOUTILSES: No utility session available"
    with product.changing() as state:
        if command == "SUSPEND LOGWRITER":
            if state["suspended"]:
                return "ERR\n-24988,ERR_SQL: SQL error\n-902,I/O error: already suspended"
            state["suspended"] = True
        elif command == "RESUME LOGWRITER":
            state["suspended"] = False
        else:
            return "ERR\n-24988,ERR_SQL: SQL error\n-5015,Missing keyword"
        state["events"].append(command)
    return "OK\n"


def _info(product: Product) -> str:
    with product.changing() as state:
        if not state["suspended"]:
            state["used"] += 8  # the load goes on
        used = state["used"]
    return (
        f"OK\nEND\n\nLog Writing               = ON\nMax. Size (KB)    = 40000\n"
        f"Used Size (KB)            = {used}\nUsed Size (%)    = 10\nSavepoints     = 3\n"
        "Physical Writes    = 77\nGroup Commits = 1\n"
    )
