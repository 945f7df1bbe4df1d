"""The island as one site has it: refreshed from runs, looked at, cleared."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from atoll.island.placing import Refreshed, clear, refresh
from atoll.island.presentation import Island, island_host
from atoll.island.runs import captured_runs, find_run
from atoll.model.errors import ConfigurationError, RunConflictError
from atoll.service.island_history import Event, IslandHistory, events
from atoll.service.site import Site
from atoll.vsphere.placeholder_vms import Placeholder, Placeholders


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
            return refresh(island, placeholders, run, placeholders.hardware(sorted(uuids)))


def clear_island(site: Site, run: str | None) -> Refreshed:
    """Take a run, or all, off the island; the placeholders stay, without disks."""
    with _exclusive(site):
        island, placeholders = _open(site)
        with _remembered(site, placeholders):
            return clear(island, placeholders, run)


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
        site.engine(), vcenter.island_volumes(host.name), host, site.repository().key_id[:8]
    )
    return island, vcenter.placeholders(host.name, settings.home, settings.folder)


@contextmanager
def _exclusive(site: Site) -> Iterator[None]:
    """One refresh or clearing at a time; the kernel ends the lock of one that is killed."""
    path = site.work_directory.parent / "island.lock"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunConflictError(
                "The island is being refreshed or cleared already; wait for that to end."
            ) from error
        yield
    finally:
        os.close(descriptor)
