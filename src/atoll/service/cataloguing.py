"""Catalogues of files in restore points: made with the copy, opened from the repository."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from atoll.catalogue.build import pieces_of
from atoll.catalogue.catalogue import Catalogue, MemoryPieces, Rows
from atoll.catalogue.filters import PageFilters
from atoll.model.errors import AtollError, NotFoundInPointError
from atoll.model.points import RestorePoint
from atoll.model.readers import BlockReader
from atoll.repository.repository import Repository

Disks = Sequence[tuple[str, BlockReader]]
Cataloguer = Callable[[Disks], str]
"""Reads a VM's disks, stores the catalogue of their files and names it; empty for none."""


def no_catalogue(disks: Disks) -> str:
    """Makes none."""
    return ""


def cataloguer(repository: Repository) -> Cataloguer:
    """Makes catalogues in the repository's writing session."""

    def catalogued(disks: Disks) -> str:
        return repository.put_pieces(pieces_of(disks))

    return catalogued


def catalogue_of(repository: Repository, point: RestorePoint) -> Catalogue:
    """The catalogue of a point; NotFoundInPointError if it was made without."""
    if not point.catalogue:
        raise NotFoundInPointError(
            f"{point.vm}@{point.run} was made without a catalogue of its files; `atoll files "
            f"{point.vm}@{point.run} --from-disks` and `atoll find --in {point.vm}@{point.run}` read "
            "its disks instead."
        )
    return Catalogue(repository, repository.pieces_of(point.catalogue))


def catalogue_now(disks: Disks) -> Catalogue:
    """The catalogue of disks that have none, made now and kept nowhere."""
    pieces = MemoryPieces(pieces_of(disks))
    return Catalogue(pieces, pieces.names)


def open_filters(repository: Repository) -> PageFilters:
    """What is known on this machine of which pages cannot have a fragment."""
    return PageFilters(repository.cache_directory, repository.secret("file filters"))


def note_filters(repository: Repository, points: Iterable[RestorePoint]) -> None:
    """Have the first search after a backup be as quick as others. What goes wrong, that one makes good."""
    with suppress(AtollError):
        filters = open_filters(repository)
        for point in points:
            if point.catalogue:
                catalogue = catalogue_of(repository, point)
                for page in catalogue.pages:
                    if not filters.knows(page.names):
                        filters.add(page.names, Rows(catalogue, page).names.text)
        filters.save()
