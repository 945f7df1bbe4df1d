"""What scripts write after the commands' names."""

from pathlib import Path

import pytest

from atoll.cli.vcb.options import (
    ExportOptions,
    Kind,
    RestoreOptions,
    SearchOptions,
    UnmountOptions,
    UsageError,
    mounter_options,
    restore_options,
    snap_all_options,
    util_options,
    vm_name_options,
)
from atoll.recovery.hosted_vmdk import VmdkForm

WHO = ("-h", "vc", "-u", "joe", "-p", "geheim")


def test_an_export() -> None:
    words = (*WHO, "-a", "name:db 1", "-r", "/mnt/db1", "-t", "fullvm", "-m", "san")
    assert mounter_options(words) == ExportOptions("name:db 1", Path("/mnt/db1"))
    more = (*words, "-M", "1", "-F1", "-x", "scsi0:1,data.vmdk", "-L", "6", "-Q", "0")
    assert mounter_options(more) == ExportOptions(
        search="name:db 1",
        directory=Path("/mnt/db1"),
        form=VmdkForm(monolithic=True, flat=True),
        left_out=frozenset({"scsi0:1", "data.vmdk"}),
        level=6,
    )
    options = mounter_options(("-a", "uuid:4", "-r", "/x", "-t", "file", "-x", "none"))
    assert isinstance(options, ExportOptions)
    assert (options.kind, options.left_out) == (Kind.FILE, frozenset())


def test_the_other_commands() -> None:
    assert mounter_options((*WHO, "-U", "/mnt/db1")) == UnmountOptions(Path("/mnt/db1"))
    assert vm_name_options((*WHO, "-sany:", "-L0")) == SearchOptions("any:", 0)
    assert util_options((*WHO, "-c", "ping")).command == "ping"
    assert snap_all_options((*WHO, "-a", "any:", "-r", "/all", "-F", "1")).form.flat


def test_a_restore() -> None:
    words = (*WHO, "-s", "/tape/db1")
    assert restore_options(words) == RestoreOptions(Path("/tape/db1"))
    more = (*words, "-a", "/tape/other", "-boverwrite", "-m", "nbd", "-L0")
    assert restore_options(more) == RestoreOptions(
        Path("/tape/db1"), Path("/tape/other"), overwrite=True, level=0
    )
    for wrong, said in (
        (WHO, "-s is missing"),
        ((*words, "-b", "new"), "-b takes overwrite, not 'new'"),
        ((*words, "-r", "/x"), "option -r not recognized"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            restore_options(wrong)
        assert caught.value.usage.startswith("Usage: vcbRestore")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "-a is missing"),
        (("-a", "name:x"), "-r is missing"),
        (("-a", "name:x", "-r", "/x", "-t", "disk"), "-t takes fullvm or file, not 'disk'"),
        (("-a", "name:x", "-r", "/x", "-M", "2"), "-M takes 0 or 1, not '2'"),
        (("-a", "name:x", "-r", "/x", "-m", "lan"), "-m takes san or nbd or"),
        (("-a", "name:x", "-r", "/x", "-L", "7"), "-L takes 0 or 1"),
        (("-Z", "1"), "option -Z not recognized"),
        (("-U",), "option -U requires argument"),
        (("-U", ""), "-U is missing"),
        (("-a", "name:my", "server", "-r", "/x"), "3 word\\(s\\) follow the options"),
    ],
)
def test_what_cannot_be_understood(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        mounter_options((*WHO, *words))
    assert "geheim" not in str(caught.value)
    assert caught.value.usage.startswith("Usage: vcbMounter")


def test_a_misplaced_password_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        mounter_options(("-h", "vc", "-u", "joe", "geheim", "-a", "name:x", "-r", "/x"))
    assert "geheim" not in str(caught.value)
