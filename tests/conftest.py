"""One whole lab for every test that wants one, up once a session and down whatever happens."""

import os
from collections.abc import Iterator

import pytest

from live_lab import LiveLab, lab_down, lab_up, remains


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
