"""A whole lab and an S3 server, up once a session for all that want one, down whatever happens."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from atoll_lab.rgw import Gateway, gateway
from live_lab import LiveLab, lab_down, lab_up, remains

if TYPE_CHECKING:
    from s3_site import S3Site


@pytest.fixture(scope="session")
def lab() -> Iterator[LiveLab]:
    """A lab of this session's own; with $ATOLL_TEST_LAB the one of that name, which stays up."""
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")
    borrowed = os.environ.get("ATOLL_TEST_LAB")
    name = borrowed or f"e2e{os.getpid()}"
    try:
        lab_up(name)
        yield LiveLab(name)
    finally:
        if not borrowed:
            lab_down(name)
    if not borrowed:
        assert remains(name) == []


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Site]":
    """A real S3 server, Ceph's gateway, which all tests share; each uses places of its own.

    With $ATOLL_TEST_S3, the URL of one on this machine, that and the keys of $AWS_*.
    """
    from s3_site import S3Site  # boto3 takes a third of a second

    directory = tmp_path_factory.mktemp("s3")
    if borrowed := os.environ.get("ATOLL_TEST_S3"):
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        yield S3Site(Gateway(borrowed, *keys), directory)
        return
    if os.geteuid() != 0:
        pytest.skip("a Ceph cluster needs root")
    with gateway(directory / "ceph") as running:
        yield S3Site(running, directory)
