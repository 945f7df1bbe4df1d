"""isql on an ASE server: quiesced databases under their tags."""

import re
import sys

from vendors.product import Product, say

START = {
    "databases": [f"db{number}" for number in range(10)],
    "tags": {},
    "password": "s3cret",
    "roles": ["sa_role"],
    "witness": "42",
    "not_online": [],
}
MOST = 8


def main(product: Product, argv: list[str]) -> int:
    if sys.stdin.readline().rstrip("\n") != product.state()["password"]:
        say("Msg 4002, Level 14, State 1:\nServer 'ASE1':\nLogin failed.")
        say("CT-LIBRARY error:\n\tct_connect(): protocol specific layer: external error")
        return 1
    batch = ""
    for line in sys.stdin:
        if line.strip() == "go":
            _run(product, batch.strip())
            batch = ""
        else:
            batch += line
    return 0


def _run(product: Product, batch: str) -> None:
    if marker := re.fullmatch(r"print '(.*)'", batch):
        say(marker[1])
        return
    if refusal := product.fault(batch) or _syntax(batch):
        _refuse(refusal)
        return
    state = product.state()
    if batch.startswith("quiesce database "):
        if refusal := _quiesce(product, batch):
            _refuse(refusal)
    elif batch == "checkpoint all":
        product.note(batch)
    elif "status2 & 16 <> 0" in batch:
        say("\n".join(f" {name} " for name in state["not_online"]))
    elif "sysdatabases" in batch:
        say("\n".join(f" {name:30} " for name in state["databases"]))
    elif "FROM orders" in batch:
        say(f"          {state['witness']} ")


def _syntax(batch: str) -> str:
    return "Incorrect syntax near ';'." if ";" in batch else ""


def _refuse(text: str) -> None:
    say(f"Msg 156, Level 16, State 2:\nServer 'ASE1', Line 1:\n{text}")


def _quiesce(product: Product, batch: str) -> str:
    hold = re.fullmatch(r"quiesce database (\w+) hold ([\w, ]+) for external dump", batch)
    release = re.fullmatch(r"quiesce database (\w+) release", batch)
    with product.changing() as state:
        if "sa_role" not in state["roles"]:
            return "You must have sa_role to execute this command."
        if hold:
            names = [name.strip() for name in hold[2].split(",")]
            held = {name for tag in state["tags"].values() for name in tag}
            if hold[1] in state["tags"]:
                return f"Tag name {hold[1]} is in use."
            if len(names) > MOST or held & set(names):
                return "Too many databases, or one is quiesced already."
            state["tags"][hold[1]] = names
        elif release:
            if release[1] not in state["tags"]:
                return f"Tag name {release[1]} was not found."
            del state["tags"][release[1]]
        else:
            return "Incorrect syntax near the keyword 'database'."
        state["events"].append(batch.split(" ", 2)[2])
    return ""
