"""What people read: sizes, durations, and names that guests chose."""

import pytest

from atoll.cli.files import one_line
from atoll.cli.output import seconds, size, table


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (5 << 50, "5.0 PiB"),
    ],
)
def test_sizes(count: int, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.0141, "14 ms"), (1.04, "1.0 s"), (99.9, "99.9 s"), (188.8, "3 min 8 s")]
)
def test_durations(value: float, said: str) -> None:
    assert seconds(value) == said


def test_a_name_chosen_by_a_guest_cannot_drive_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert one_line("größe") == "größe"
    assert one_line(b"\xff".decode("utf-8", "surrogateescape")) == "\\udcff"


def test_a_name_that_looks_like_markup_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(["~name"], [("[bold]x[/bold] [vmfs1] db1/db1.vmdk",)])
    assert "[bold]x[/bold] [vmfs1] db1/db1.vmdk" in capsys.readouterr().out
