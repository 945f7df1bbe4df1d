"""`make bench-island`: what other software gets of a run, what that costs production, and how long
showing a thousand VMs takes.

`python -m bench.island --only jobs hundred` measures these parts anew and keeps the others' figures.
"""

import argparse
from collections.abc import Callable, Mapping

from bench.island_farm import farm_figures
from bench.island_hundred import hundred_figures
from bench.island_jobs import jobs_figures
from bench.island_mount import mount_figures
from bench.island_nbd import nbd_figures
from bench.report import Figure, publish, published

NAME = "island"
PARTS: Mapping[str, Callable[[], list[Figure]]] = {
    "mount": mount_figures,
    "nbd": nbd_figures,
    "farm": farm_figures,
    "hundred": hundred_figures,
    "jobs": jobs_figures,
}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="python -m bench.island")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts; all by default")
    chosen = parser.parse_args().only
    measured = [each for part in chosen or PARTS for each in PARTS[part]()]
    names = {each.name for each in measured}
    others = [each for each in published(NAME) if each.name not in names] if chosen else []
    publish(NAME, [*others, *measured])


if __name__ == "__main__":
    main()
