"""Reading the repository back: all of it, where it was cut short, or a share a day."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.recovery.damaged_files import DamagedFiles, damaged_files
from atoll.repository.checked import CheckLog
from atoll.repository.repair import RepairReport
from atoll.repository.repository import Repository
from atoll.repository.verify import VerifyReport
from atoll.service.site import Site


@dataclass(frozen=True, slots=True)
class Checked:
    """What a verify found, and since when (seconds since the epoch) every pack was found whole once."""

    report: VerifyReport
    all_since: float | None


def check(
    site: Site,
    begun: Callable[[int], None],
    progress: Callable[[int], None],
    *,
    days: int | None = None,
    resume: bool = False,
) -> Checked:
    """Verify all packs, those that one that was cut short had not read, or the share of one of `days`.

    `begun` is told the bytes of the packs that will be read, `progress` those read since its last call.
    """
    log = check_log(site)
    every: dict[str, int] = {}

    def choose(sizes: Mapping[str, int]) -> list[str]:
        every.update(sizes)
        packs = log.share(sizes, days) if days else log.begin(sizes, resume=resume)
        begun(sum(sizes[pack] for pack in packs))
        return packs

    report = site.repository().verify(
        progress, choose=choose, checked=lambda pack, whole: log.note(pack, whole=whole)
    )
    if days is None:
        log.end(every)
    return Checked(report, log.oldest(every))


def touched_files(site: Site, report: VerifyReport) -> dict[str, DamagedFiles]:
    """By point, the files on lost bytes; of each VM only of its newest point that has lost some."""
    repository = site.repository()
    lost: dict[str, dict[str, list[Extent]]] = {}
    for damage in report.damaged:
        for each in damage.ranges:
            lost.setdefault(each.point, {}).setdefault(each.disk, []).append(each.extent)
    newest = {point.instance_uuid: point for point in repository.points() if point.id in lost}
    found = {}
    for point in newest.values():
        with ExitStack() as stack:
            disks: list[tuple[str, BlockReader]] = []
            try:
                for image in point.disks:
                    reader = repository.open_disk(image)
                    stack.callback(reader.close)
                    disks.append((image.label, reader))
                found[point.id] = damaged_files(disks, lost[point.id])
            except RepositoryDamagedError as error:
                found[point.id] = DamagedFiles((), (str(error),))
    return found


def mend(
    site: Site,
    other: Repository | None,
    progress: Callable[[int], None],
    *,
    everything: bool = False,
) -> RepairReport:
    """Repair what earlier verifies found damaged; `everything` reads all packs again first."""
    log = check_log(site)

    def choose(sizes: Mapping[str, int]) -> list[str]:
        return sorted(sizes) if everything else log.damaged(sizes)

    return site.repository().repair(
        other, progress, choose=choose, checked=lambda pack, whole: log.note(pack, whole=whole)
    )


def check_log(site: Site) -> CheckLog:
    """This machine's record of when it read which pack of the site's repository."""
    # A mirror has the repository's id, and being whole in one place says nothing of the other.
    place = f"-{site.copy}" if site.copy else ""
    name = f"verified-{site.repository().id}{place}.sqlite"
    return CheckLog(site.work_directory.parent / name)
