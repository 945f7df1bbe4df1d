"""Files by name over many catalogues: each page of names is looked into once, whoever has it."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from atoll.catalogue.catalogue import Catalogue, Page, Rows
from atoll.catalogue.entries import CatalogueEntry
from atoll.catalogue.filters import Absent, PageFilters
from atoll.catalogue.patterns import Bounds, Pattern
from atoll.model.errors import RepositoryDamagedError

_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class Searched:
    """A catalogue to be searched: whose it is, when its snapshot was taken, and how to open it."""

    vm: str
    instance_uuid: str
    run: str
    taken_at: float
    open: Callable[[], Catalogue]


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that fits, in the newest of the points that were searched that has it so."""

    vm: str
    run: str
    taken_at: float
    entry: CatalogueEntry


class Search:
    """One question. `damaged` are, after it, the points whose catalogues could not be read."""

    def __init__(self, pattern: Pattern, bounds: Bounds, filters: PageFilters | None) -> None:
        self._pattern = pattern
        self._bounds = bounds
        self._filters = filters
        self._absent = filters.without(pattern.literals) if filters is not None else Absent()
        self._rows: dict[tuple[bytes, bytes], list[int]] = {}
        self.damaged: list[tuple[str, RepositoryDamagedError]] = []
        self.pages_read = 0

    def run(self, catalogues: Iterable[Searched]) -> Generator[Found, None, None]:
        """What fits, in the order of the catalogues; each file of a VM once, where it first fits.

        Newest first is what to ask for. Results come as they are found.
        """
        seen: dict[str, set[str]] = {}
        looked: dict[str, set[tuple[int, bytes, bytes]]] = {}
        try:
            for each in catalogues:
                paths = seen.setdefault(each.instance_uuid, set())
                pages = looked.setdefault(each.instance_uuid, set())
                try:
                    for entry in self._in(each.open(), pages):
                        if entry.path not in paths:
                            paths.add(entry.path)
                            yield Found(each.vm, each.run, each.taken_at, entry)
                except RepositoryDamagedError as error:
                    self.damaged.append((f"{each.vm}@{each.run}", error))
        finally:
            if self._filters is not None:
                self._filters.save()

    def _in(
        self, catalogue: Catalogue, looked: set[tuple[int, bytes, bytes]]
    ) -> Iterator[CatalogueEntry]:
        for number in (~self._absent.among(catalogue.page_names)).nonzero()[0].tolist():
            page = catalogue.pages[number]
            key = (page.info.volume, page.names, page.stats)
            if key not in looked:
                looked.add(key)
                yield from self._page(catalogue, page)

    def _page(self, catalogue: Catalogue, page: Page) -> Iterator[CatalogueEntry]:
        prefix = b""
        if self._pattern.of_paths:
            shown = catalogue.shown(page.info.volume, "/").rstrip("/")
            prefix = shown.encode("utf-8", "surrogateescape")
        key = (page.names, prefix)
        rows = self._rows.get(key)
        opened = Rows(catalogue, page)
        if rows is None:
            self.pages_read += 1
            names = opened.names
            rows = self._pattern.rows(names, prefix)
            if self._filters is not None:
                self._filters.add(page.names, names.text)
            if len(self._rows) < _REMEMBERED:
                self._rows[key] = rows
        for row in rows:
            entry = opened.entry(row)
            if self._bounds.fits(entry):
                yield entry
