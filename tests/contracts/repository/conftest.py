"""Gives the suite each kind of store in turn."""

from pathlib import Path

import pytest
from repository_stores import BucketPlace, DirectoryPlace, StorePlace, VersionsPlace

from atoll.repository.store import ObjectStore
from s3_site import S3Site


@pytest.fixture(params=["directory", "s3", "s3-versions"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    if request.param == "directory":
        return DirectoryPlace(tmp_path)
    site: S3Site = request.getfixturevalue("s3")
    return BucketPlace(site) if request.param == "s3" else VersionsPlace(site)


@pytest.fixture
def store(place: StorePlace) -> ObjectStore:
    return place.open()
