"""The sidecar: `start.py … SETTINGS`, a JSON file that Atoll wrote; answers on standard input."""

import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from atoll.storage.drivers.cinder.helper.calls import Calls
from atoll.storage.drivers.cinder.helper.starting import Told, start
from atoll.storage.sidecar.server import serve

_READING = ("facts", "room")
_CHANGING = (
    "create_group",
    "delete_group",
    "move",
    "create_volume",
    "copy",
    "grow",
    "delete_volume",
    "revert",
    "take_group_snapshot",
    "delete_group_snapshot",
    "take_snapshots",
    "delete_snapshot",
    "connect",
    "disconnect",
)


def main(settings: Path) -> None:
    """The driver starts with the first call, so that why it does not is an answer."""
    told = json.loads(settings.read_text())
    lock = Path(told.pop("lock"))
    for key in ("directory", "log"):
        told[key] = Path(told[key])
    told["secrets"] = {option: Path(path) for option, path in told["secrets"].items()}

    @cache
    def calls() -> Calls:
        return Calls(start(Told(**told)), told["pool"], str(told["log"]))

    def answer(name: str, **arguments: Any) -> Any:
        return getattr(calls(), name)(**arguments)

    known: dict[str, Callable[..., Any]] = {
        name: partial(answer, name) for name in (*_READING, *_CHANGING)
    }
    serve(known, reading=_READING, lock=lock)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
