"""diskshadow.exe with the VSS of a Windows Server: writers, their time limits, shadow copies.

Times are not waited for: the state says how long a freeze and the provider's
commit take, and who has a limit below that gives up as it would.
"""

import re
import uuid
from pathlib import Path

from vendors.product import Product, say, wait_until

PROVIDER_SECONDS = 10
HOLD_WRITES_TIMEOUT = "0x80042314 (VSS_E_HOLD_WRITES_TIMEOUT)"
WRITER_TIMEOUT = "0x800423f2"

START = {
    "writers": {"System Writer": 60, "SqlServerWriter": 60, "Microsoft Exchange Writer": 20},
    "status": {},
    "freeze_seconds": 3,
    "commit_seconds": 1,
    "volumes": ["C:\\", "E:\\"],
    "shadows": [],
    "truncated": [],
    "await_seconds": 20.0,
}


def main(product: Product, argv: list[str]) -> int:
    assert argv[1] == "/s", argv
    run = _Run(product)
    say("Microsoft DiskShadow version 1.0\nOn computer: SQL1, 11/25/2026 9:49:51 AM\n")
    for line in Path(argv[2]).read_text().splitlines():
        say(f"-> {line}")
        if refusal := product.fault(line) or run.command(line):
            say(f"\n{refusal}")
            run.leave()
            return 1
    run.leave()
    return 0


class _Run:
    def __init__(self, product: Product) -> None:
        self._product = product
        self._context = ""
        self._full = False
        self._volumes: list[str] = []
        self._verified: list[str] = []
        self._made: list[str] = []
        self._ended = False

    def command(self, line: str) -> str:
        """Run a line of the script; empty, or why it failed."""
        words = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line)]
        match words:
            case ["set", "context", context]:
                self._context = context
            case ["set", *_]:
                pass
            case ["begin", "backup"]:
                self._full = True
            case ["writer", "verify", writer]:
                self._verified.append(writer)
            case ["add", "volume", volume, "alias", _]:
                if volume not in self._product.state()["volumes"]:
                    return f"The volume {volume} was not found."
                self._volumes.append(volume)
            case ["create"]:
                return self._create()
            case ["exec", script]:
                return self._exec(Path(script))
            case ["end", "backup"]:
                self._end()
            case ["list", "writers", "status"]:
                self._list_writers()
            case ["list", "shadows", "all"]:
                self._list_shadows(self._product.state()["shadows"])
            case ["delete", "shadows", "set", identifier]:
                self._delete(identifier)
            case _:
                return f"'{line}' is not a command."
        return ""

    def leave(self) -> None:
        """The end of the process: what was begun and not ended is shut down."""
        if self._full and not self._ended:
            self._product.note("session shut down")
        if self._made and self._context != "persistent":
            with self._product.changing() as state:
                state["shadows"] = [one for one in state["shadows"] if one["id"] not in self._made]

    def _create(self) -> str:
        state = self._product.state()
        if not self._volumes:
            return "No volume was added to the shadow copy set."
        for writer in self._verified:
            if writer not in state["writers"]:
                return f"The writer {writer} is not included in the backup."
        if state["commit_seconds"] > PROVIDER_SECONDS:
            return f"COM call DoSnapshotSet failed. {HOLD_WRITES_TIMEOUT}"
        identifier = "{" + str(uuid.uuid4()) + "}"
        copies = [
            {"id": "{" + str(uuid.uuid4()) + "}", "set": identifier, "volume": volume}
            for volume in self._volumes
        ]
        self._made = [copy["id"] for copy in copies]
        after = "WAITING_FOR_BACKUP_COMPLETE" if self._full else "STABLE"
        with self._product.changing() as now:
            now["shadows"] += copies
            now["status"] = {
                writer: (
                    ["FAILED_AT_FREEZE", WRITER_TIMEOUT]
                    if state["freeze_seconds"] > limit
                    else [after, "0x00000000"]
                )
                for writer, limit in state["writers"].items()
            }
            now["events"].append("create in a full backup" if self._full else "create")
        for number, copy in enumerate(copies, 1):
            say(f"Alias Atoll{number} for shadow ID {copy['id']} set as environment variable.")
        say(f"Alias VSS_SHADOW_SET for shadow set ID {identifier} set as environment variable.\n")
        self._list_shadows(copies)
        return ""

    def _exec(self, script: Path) -> str:
        text = script.read_text()
        taken, refused = script.parent / "taken", script.parent / "refused"
        assert '"%~dp0taken"' in text
        assert '"%~dp0refused"' in text
        limit = self._product.state()["await_seconds"]
        wait_until(lambda: taken.exists() or refused.exists(), limit)
        return "" if taken.exists() else "The script failed; DiskShadow quits."

    def _end(self) -> None:
        self._ended = True
        with self._product.changing() as state:
            good = [name for name, (status, _) in state["status"].items() if "FAILED" not in status]
            state["truncated"] = good
            state["status"] = {name: ["STABLE", "0x00000000"] for name in good}
            state["events"].append("end backup")

    def _list_writers(self) -> None:
        state = self._product.state()
        say("Listing writer status ...")
        for number, name in enumerate(sorted(state["writers"])):
            status, failure = state["status"].get(name, ["STABLE", "0x00000000"])
            code = {"STABLE": 1, "WAITING_FOR_BACKUP_COMPLETE": 5}.get(status, 9)
            said = "S_OK" if failure == "0x00000000" else "VSS_E_WRITERERROR_TIMEOUT"
            say(f'* WRITER "{name}"')
            say(f"        - Status: {code} (VSS_WS_{status})")
            say(f"        - Writer Failure code: {failure} ({said})")
            say(f"        - Writer ID: {{e8132975-6f93-4464-a53e-10502530000{number}}}")
        say(f"{len(state['writers'])} writers listed.")

    def _list_shadows(self, copies: list[dict[str, str]]) -> None:
        for copy in copies:
            say(f"* Shadow copy ID = {copy['id']}")
            say(f"    - Shadow copy set: {copy['set']}")
            say("    - Original count of shadow copies = 2")
            say(f"    - Original volume name: \\\\?\\Volume{{0}}\\ [{copy['volume']}]")
        say(f"Number of shadow copies listed: {len(copies)}")

    def _delete(self, identifier: str) -> None:
        with self._product.changing() as state:
            state["shadows"] = [one for one in state["shadows"] if one["set"] != identifier]
            state["events"].append("delete")
