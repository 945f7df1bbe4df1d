"""`make bench-island`: what other software gets of a run, and what showing a thousand VMs takes."""

from bench.island_farm import farm_figures
from bench.island_mount import mount_figures
from bench.island_nbd import nbd_figures
from bench.report import publish


def main() -> None:
    """Measure and publish."""
    publish("island", [*mount_figures(), *nbd_figures(), *farm_figures()])


if __name__ == "__main__":
    main()
