"""SQL*Plus on an instance: backup mode with its refusals, checkpoints, the views that are asked."""

import sys

from vendors.product import Product, say

START = {
    "log_mode": "ARCHIVELOG",
    "open_mode": "READ WRITE",
    "role": "PRIMARY",
    "instances": 1,
    "started": "20261125080000",
    "files": ["/"],
    "scn": 1000,
    "in_backup_since": 0,
    "witness": "42",
    "authorised": True,
    "trace": "",
}


def main(product: Product, argv: list[str]) -> int:
    if not product.state()["authorised"]:
        say("ERROR:\nORA-01017: invalid username/password; logon denied")
        return 1
    assert argv[1:] == ["-S", "-L", "/", "as", "sysdba"], argv
    statement = ""
    for line in sys.stdin:
        if not statement and line.startswith("PROMPT "):
            say(line.removeprefix("PROMPT ").rstrip())
            continue
        statement += line
        if statement.rstrip().endswith(";"):
            answer = _run(product, statement.strip().removesuffix(";"))
            if answer:
                say(answer)
            statement = ""
    return 0


def _run(product: Product, statement: str) -> str:
    if refusal := product.fault(statement):
        return f"{statement}\n*\nERROR at line 1:\n{refusal}"
    state = product.state()
    if statement.startswith("SET "):
        return ""
    if "FROM v$backup" in statement:
        since = state["in_backup_since"]
        return f"{len(state['files'])}|{since}|{since}" if since else "0||"
    if "d.log_mode" in statement:
        fields = ("log_mode", "open_mode", "role", "instances", "started")
        return "|".join(str(state[field]) for field in fields)
    if "FROM v$datafile" in statement:
        return "\n".join(state["files"])
    if "current_scn" in statement:
        with product.changing() as now:
            now["scn"] += 7
            return f"scn {now['scn']}"
    if "Diag Trace" in statement:
        return state["trace"]
    if statement.startswith("ALTER "):
        return _alter(product, statement)
    return state["witness"] if "FROM orders" in statement else "1"


def _alter(product: Product, statement: str) -> str:
    refusal = ""
    with product.changing() as state:
        if statement == "ALTER DATABASE BEGIN BACKUP":
            if state["log_mode"] != "ARCHIVELOG":
                refusal = "ORA-01123: cannot start online backup; media recovery not enabled"
            elif state["in_backup_since"]:
                refusal = "ORA-01146: cannot start online backup - file 1 is already in backup"
            else:
                state["in_backup_since"] = state["scn"]
        elif statement == "ALTER DATABASE END BACKUP":
            if not state["in_backup_since"]:
                refusal = "ORA-01142: cannot end online backup - none of the files are in backup"
            state["in_backup_since"] = 0
        elif statement == "ALTER SYSTEM ARCHIVE LOG CURRENT":
            if state["log_mode"] != "ARCHIVELOG":
                refusal = "ORA-00258: manual archiving in NOARCHIVELOG mode must identify log"
        elif statement not in {"ALTER SYSTEM CHECKPOINT"} and "SET CONTAINER" not in statement:
            refusal = "ORA-02065: illegal option for ALTER SYSTEM"
        state["scn"] += 1
    if refusal:
        return f"{statement}\n*\nERROR at line 1:\n{refusal}"
    product.note(statement)
    return ""
