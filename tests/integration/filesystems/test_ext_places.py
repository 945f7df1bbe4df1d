"""Where files lie: read from there they are what the kernel shows, journal and all."""

import pytest
from linux_trees import assert_content

pytestmark = pytest.mark.needs_root


def test_files_are_where_their_layout_says(guest) -> None:
    assert_content(guest)


def test_changes_in_the_journal_alone_are_part_of_a_layout(dirty) -> None:
    assert_content(dirty)
