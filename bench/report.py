"""How a benchmark reports: a table for people, `build/bench/NAME.json` for machines."""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll.cli.output import size, table

OUT = Path("build/bench")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured thing.

    `value` is the median of `samples` unless the name says otherwise. `versus` names the peer or limit of the
    same run and `ratio` is ours over theirs; both None when there is no peer.
    """

    name: str
    value: float
    unit: str
    samples: tuple[float, ...]
    versus: str | None = None
    ratio: float | None = None


def figure(
    name: str,
    samples: Sequence[float],
    unit: str,
    versus: str | None = None,
    peer: float | None = None,
) -> Figure:
    """A figure from samples; `peer` is what the same run measured of `versus`."""
    value = statistics.median(samples)
    ratio = value / peer if peer else None
    return Figure(name, value, unit, tuple(samples), versus, ratio)


def high_figure(name: str, samples: Sequence[float], unit: str) -> Figure:
    """A figure whose value is the 99th percentile of the samples (their highest, below a hundred)."""
    ordered = sorted(samples)
    return Figure(name, ordered[math.ceil(len(ordered) * 0.99) - 1], unit, tuple(samples))


def say(what: str) -> None:
    """Tell whoever waits what is being measured."""
    sys.stderr.write(f"bench: {what}\n")


def publish(name: str, figures: Sequence[Figure]) -> None:
    """Print the table and write the file."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(
        json.dumps([asdict(item) for item in figures], indent=2) + "\n"
    )
    table(
        ["figure", ">value", ">min", ">max", ">n", "versus", ">ratio"],
        [
            (
                item.name,
                _said(item.value, item.unit),
                _said(min(item.samples), item.unit),
                _said(max(item.samples), item.unit),
                str(len(item.samples)),
                item.versus or "",
                f"{item.ratio:.2f}" if item.ratio is not None else "",
            )
            for item in figures
        ],
    )


def published(name: str) -> list[Figure]:
    """What was published last under a name; nothing if nothing was."""
    try:
        rows = json.loads((OUT / f"{name}.json").read_text())
    except FileNotFoundError:
        return []
    return [Figure(**{**row, "samples": tuple(row["samples"])}) for row in rows]


def _said(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    if unit == "ratio":
        return f"{value:.2f}"
    return f"{value:.3f} {unit}"
