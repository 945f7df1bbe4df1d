"""What each of Cinder's drivers can do, told without an array: `start.py … [json]`.

Prints the table of docs/drivers/cinder-drivers.md, or the same as JSON. What a driver says of group
snapshots it says to Cinder at run time, of the array at hand; here it is taken from its source.
"""

import ast
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cinder.volume.drivers
from cinder import interface, version
from cinder.volume import configuration
from oslo_config import cfg

from atoll.storage.drivers.cinder.helper.calls import overrides
from atoll.storage.drivers.cinder.helper.shelf import Shelf
from atoll.storage.drivers.cinder.helper.starting import prepare, register, said

_PACKAGE = cinder.volume.drivers.__name__
_ROOT = Path(next(iter(cinder.volume.drivers.__path__)))
_RAN = {
    f"{_PACKAGE}.rbd.RBDDriver": "the compliance suite, on Ceph 16.2",
    f"{_PACKAGE}.pure.PureISCSIDriver": "the compliance suite, on a *fake* FlashArray",
}
_ATTRIBUTES = ("STORAGE_PROTOCOL", "storage_protocol", "protocol", "driver_protocol")
_WORDS = (
    (re.compile("iscsi", re.IGNORECASE), "iSCSI"),
    (re.compile("(?<![A-Za-z])(fc|FC)(?![A-Za-z])|FC(?=Driver|Volume)|fibre|Fibre"), "FC"),
    (re.compile("nvme", re.IGNORECASE), "NVMe"),
    (re.compile("nfs", re.IGNORECASE), "NFS"),
    (re.compile("^ceph$"), "RBD"),
)
_REPORTS = re.compile(r"storage_protocol['\"]?\]?\s*[:=]\s*(?:constants\.)?['\"]?(\w+)")
_CONSISTENT = "consistent_group_snapshot_enabled"


@dataclass(frozen=True, slots=True)
class Entry:
    """A driver, by its dotted name.

    `speaks` is iSCSI, FC, or something that Atoll cannot present; empty when that
    depends on its settings. `obstacle` is why it cannot be made without an array.
    """

    driver: str
    speaks: str
    group_snapshots: bool
    revert: bool
    supported: bool
    obstacle: str
    ran: str


def entries() -> list[Entry]:
    """Every driver that Cinder registers. ImportError when one cannot even be loaded."""
    for path in sorted(_ROOT.rglob("*.py")):
        importlib.import_module(_module(path))
    with tempfile.TemporaryDirectory(prefix="atoll-cinder-") as scratch:
        prepare(Path(scratch), Path(scratch) / "log")
        Shelf(None, Path(scratch) / "initiators.json").stand_in()
        found = [_entry(kind) for kind in interface._volume_register]
    return sorted(found, key=lambda each: each.driver)


def table(found: list[Entry]) -> str:
    """A page in Markdown."""
    groups = sum(each.group_snapshots for each in found)
    lines = [
        "# Cinder's drivers",
        "",
        f"All {len(found)} volume drivers of Cinder {version.version_string()}, as "
        "`scripts/cinder-drivers` finds them. **Not run** means exactly that: the driver is there, and "
        "Atoll asks of it what Cinder would, but nobody has seen it work with Atoll.",
        "",
        f"*Groups*: {groups} say that their array snapshots several volumes at one instant; with the "
        "others keep one LUN in each LUN group. *Reverts*: LUNs can be made what they were without a "
        "copy. *Speaks*: Atoll presents over iSCSI and FC only, and reads snapshots over iSCSI; RBD is "
        "served by Atoll itself. Drivers that OpenStack no longer supports are marked so.",
        "",
        "| `volume_driver` | Speaks | Groups | Reverts | Ran |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        name = each.driver.removeprefix(f"{_PACKAGE}.")
        note = "" if each.supported else " (unsupported)"
        lines.append(
            f"| {name}{note} | {each.speaks or '?'} | {_yes(each.group_snapshots)} | "
            f"{_yes(each.revert)} | {each.ran or 'not run'} |"
        )
    lines += [
        "",
        f"Names begin with `{_PACKAGE}.`, which is left out here. All of them can be loaded. These "
        "cannot be made without their settings, so that less is known of them:",
        "",
        *(
            f"- {each.driver.removeprefix(f'{_PACKAGE}.')}: {each.obstacle}"
            for each in found
            if each.obstacle
        ),
    ]
    return "\n".join(lines) + "\n"


def _entry(kind: Any) -> Entry:
    name = f"{kind.__module__}.{kind.__name__}"
    register(kind)
    group = f"catalogue-{name}"
    cfg.CONF.register_group(cfg.OptGroup(group))
    made: Any = None
    obstacle = ""
    try:
        made = kind(
            configuration=configuration.Configuration([], config_group=group),
            host="atoll@catalogue",
            cluster_name=None,
            active_backend_id=None,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the table tells
        obstacle = said(error)
    return Entry(
        driver=name,
        speaks=_speaks(kind, made),
        group_snapshots=overrides(kind, "create_group_snapshot")
        and any(_CONSISTENT in _source(path) for path in _parts(kind.__module__)),
        revert=overrides(kind, "revert_to_snapshot"),
        supported=bool(kind.SUPPORTED),
        obstacle=obstacle,
        ran=_RAN.get(name, ""),
    )


def _speaks(kind: Any, made: Any) -> str:
    """From the driver itself, its name, or what its source says it reports; in that order."""
    told = [getattr(made or kind, name, None) for name in _ATTRIBUTES]
    names = [kind.__name__, kind.__module__.rpartition(".")[2]]
    reported = {_protocol(word) for word in _REPORTS.findall(_source(_file(kind.__module__)))}
    found = [_protocol(str(word)) for word in (*told, *names) if word]
    if len(reported) == 1:
        found += reported
    return next((each for each in found if each), "")


def _protocol(word: str) -> str:
    return next((name for pattern, name in _WORDS if pattern.search(word)), "")


def _parts(module: str) -> Iterator[Path]:
    """The files a driver is made of: its module and what that imports of the drivers' package."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or not name.startswith(f"{_PACKAGE}.") or not _file(name).is_file():
            continue
        seen.add(name)
        yield _file(name)
        for node in ast.walk(ast.parse(_source(_file(name)))):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [each.name for each in node.names]


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join((_PACKAGE, *(part for part in parts if part != "__init__")))


def _file(module: str) -> Path:
    return _ROOT.joinpath(*module.removeprefix(f"{_PACKAGE}.").split(".")).with_suffix(".py")


@cache
def _source(path: Path) -> str:
    return path.read_text()


def _yes(value: bool) -> str:
    return "yes" if value else "–"


if __name__ == "__main__":
    everything = entries()
    if sys.argv[1:] == ["json"]:
        sys.stdout.write(json.dumps([asdict(each) for each in everything]))
    else:
        sys.stdout.write(table(everything))
