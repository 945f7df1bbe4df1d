"""onmode, onstat and dbaccess of an Informix server."""

import sys
from pathlib import Path

from vendors.product import Product, say

START = {"mode": "On-Line", "blocked": False, "log": 17, "page": 200, "witness": "42"}


def main(product: Product, argv: list[str]) -> int:
    program, arguments = Path(argv[0]).name, argv[1:]
    words = " ".join([program, *arguments])
    text = sys.stdin.read() if program == "dbaccess" else ""
    if refusal := product.fault(words + text):
        say(refusal)
        return 1
    if program == "dbaccess":
        say(f"\nDatabase selected.\n\n\n      (max)\n\n  {product.state()['witness']}\n")
        say("1 row(s) retrieved.\n\n\nDatabase closed.")
        return 0
    if program == "onstat":
        return _onstat(product, arguments)
    return _onmode(product, arguments)


def _onmode(product: Product, arguments: list[str]) -> int:
    with product.changing() as state:
        if arguments == ["-c", "block"]:
            if state["blocked"]:
                say("onmode: server is already blocked.")
                return 1
            state["blocked"] = True
        elif arguments == ["-c", "unblock"]:
            if not state["blocked"]:
                say("onmode: server is not blocked.")
                return 1
            state["blocked"] = False
        state["events"].append(" ".join(arguments))
    return 0


def _onstat(product: Product, arguments: list[str]) -> int:
    with product.changing() as state:
        if not state["blocked"]:
            state["page"] += 3  # the load goes on
        now = dict(state)
    say(
        f"\nIBM Informix Dynamic Server Version 14.10.FC10 -- {now['mode']} -- Up 3 days 02:11:05 -- 1 K"
    )
    if now["blocked"]:
        say("Blocked:CKPT")
    if arguments == ["-l"]:
        say("\nLogical Logging\nBuffer bufused  bufsize  numrecs\n")
        say(
            "address          number   flags    uniqid   begin                size     used    %used"
        )
        say(f"44e5cf88         1        U-B----  {now['log'] - 1}       2:53  2500  2500  100.00")
        say(
            f"44e5cff8         2        U---C-L  {now['log']}       2:2553  2500  {now['page']}  8.00"
        )
    if arguments == ["-m"]:
        say("\n10:00:01  Physical Recovery Started at Page (1:5000).")
        say("10:00:02  Physical Recovery Complete: 12 Pages Examined, 11 Pages Restored.")
    return 5
