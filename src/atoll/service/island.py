"""The island as one site has it: refreshed from runs, looked at, cleared."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from atoll.island.placing import Refreshed, clear, clear_unseen, refresh
from atoll.island.presentation import Island, island_host
from atoll.island.runs import captured_runs, find_run
from atoll.model.errors import AtollError, ConfigurationError
from atoll.service.filelocks import locked
from atoll.service.island_history import Event, IslandHistory, events
from atoll.service.site import Site
from atoll.vsphere.placeholder_specs import Placeholder
from atoll.vsphere.placeholder_vms import Placeholders

_PATIENCE_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class IslandStatus:
    """`placeholders` by name; `runs` that have clones on the island, by name."""

    placeholders: tuple[Placeholder, ...]
    runs: tuple[str, ...]


def refresh_island(site: Site, reference: str) -> Refreshed:
    """Show a run on the island: its name, the beginning of one, or `latest`.

    UnknownPointError when the storage has no such run.
    """
    with _exclusive(site):
        run = find_run(site.engine(), reference)
        island, placeholders = _open(site)
        uuids = {
            vm.instance_uuid
            for known in captured_runs(site.engine())
            for vm in known.certificate.vms
        }
        uuids |= {placeholder.vm for placeholder in placeholders.all()}
        pinned = site.pins().reading([(taken.group, taken.name) for taken in run.snapshots])
        with pinned, _remembered(site, placeholders):
            alive = placeholders.hardware(sorted(uuids))
            return refresh(island, placeholders, run, alive, site.limits.host_tasks)


def clear_island(site: Site, run: str | None) -> Refreshed:
    """Take a run, or all, off the island; the placeholders stay, without disks."""
    with _exclusive(site):
        island, placeholders = _open(site)
        with _remembered(site, placeholders):
            return clear(island, placeholders, run, site.limits.host_tasks)


def tidy_island(site: Site) -> list[str]:
    """Take off what no placeholder shows, as a refresh that was cut short leaves it; a sentence each.

    Nothing when the site has no island.
    """
    if site.island is None:
        return []
    try:
        with _exclusive(site):
            done = clear_unseen(*_open(site))
    except AtollError as error:
        return [f"The island could not be looked at: {error}"]
    return [
        *(f"Took run {run} off the island, which no placeholder showed." for run in done.retired),
        *done.kept,
    ]


def island_status(site: Site) -> IslandStatus:
    """What the island shows now."""
    island, placeholders = _open(site)
    return IslandStatus(tuple(placeholders.all()), tuple(sorted(island.presented())))


def island_history(site: Site) -> list[Event]:
    """What became of each placeholder, oldest first."""
    return _history(site).read()


@contextmanager
def _remembered(site: Site, placeholders: Placeholders) -> Iterator[None]:
    """Note what happens to the placeholders inside the block, also when it fails."""
    before = placeholders.all()
    try:
        yield
    finally:
        _history(site).add(list(events(before, placeholders.all())))


def _history(site: Site) -> IslandHistory:
    return IslandHistory(site.work_directory.parent / "island.jsonl")


def _open(site: Site) -> tuple[Island, Placeholders]:
    if site.island is None:
        raise ConfigurationError(
            "The settings have no section [island], which this command needs; add it "
            "(docs/operations/island.md shows one)."
        )
    vcenter, settings = site.vcenter(), site.island
    host = island_host(vcenter.inventory().hosts, settings.host)
    island = Island(
        site.engine(),
        vcenter.island_volumes(host.name),
        host,
        site.identity(),
        site.limits.host_luns,
    )
    return island, vcenter.placeholders(host.name, settings.home, settings.folder)


@contextmanager
def _exclusive(site: Site) -> Iterator[None]:
    """Wait until nobody else refreshes or clears, and keep others from it."""
    path = site.work_directory.parent / "island.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = "The island is still being refreshed or cleared by another command; try again later."
    with locked(path, fcntl.LOCK_EX, said, _PATIENCE_SECONDS):
        yield
