"""How the command line speaks: tables for people, JSON for machines, one sentence for errors."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 160
"""Width of tables that go to a file or a pipe, where no terminal sets a limit."""


class _Plain(Console):
    """Prints text as it is, never as markup or control sequences: guests and vCenter name things."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown = (printable(item) if isinstance(item, str) else item for item in objects)
        super().print(*shown, **options)


out = _Plain(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
err = _Plain(
    stderr=True,
    highlight=False,
    markup=False,
    width=None if sys.stderr.isatty() else _PIPE_COLUMNS,
)

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Bytes as people read them: `1.5 GiB`."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def seconds(value: float) -> str:
    """A duration as people read it: `850 ms`, `4.2 s`, `3 min 10 s`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def moment(at: float) -> str:
    """Local time to the second."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table. A column named `>so` is aligned right, `~so` may take several lines."""
    out.print(draw_table(columns, rows, title))


def draw_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """The same without printing it."""
    drawn = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        drawn.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=not column.startswith("~"),
        )
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    return drawn


def printable(text: str) -> str:
    """Text that guests may have chosen, its control characters and broken encodings as escapes."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def as_json(value: object, *, lines: bool = False) -> None:
    """Print dataclasses, lists and dicts of them as JSON, each on one line if there are many."""
    json.dump(value, sys.stdout, indent=None if lines else 2, default=_plain)
    sys.stdout.write("\n")


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
