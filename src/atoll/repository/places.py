"""Opens the place that a location names: a directory, or a bucket."""

from pathlib import Path

from atoll.model.errors import ConfigurationError
from atoll.repository.local import LocalStore
from atoll.repository.s3_access import SCHEME, S3Access, S3Location
from atoll.repository.store import ObjectStore


def create_place(location: str | Path, access: S3Access) -> ObjectStore:
    """A place for a new repository: a directory is made if it is absent, a bucket must exist."""
    if _is_bucket(location):
        return _bucket(str(location), access)
    return LocalStore.create(_directory(location))


def open_place(location: str | Path, access: S3Access) -> ObjectStore:
    """A place that exists; RepositoryUnreachableError if a directory does not."""
    if _is_bucket(location):
        return _bucket(str(location), access)
    return LocalStore.open(_directory(location))


def _is_bucket(location: str | Path) -> bool:
    return isinstance(location, str) and location.startswith(f"{SCHEME}://")


def _bucket(location: str, access: S3Access) -> ObjectStore:
    from atoll.repository.s3 import S3Store  # it takes half a second and what only S3 needs

    return S3Store.open(S3Location.parse(location), access)


def _directory(location: str | Path) -> Path:
    if isinstance(location, str) and "://" in location:
        scheme, _, path = location.partition("://")
        if scheme != "file":
            raise ConfigurationError(
                f"{location} is no place for a repository; give a directory or s3://BUCKET/PREFIX."
            )
        return Path(path)
    return Path(location)
