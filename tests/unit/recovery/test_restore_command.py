"""What `atoll restore file` ends with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.cli import restore
from atoll.cli.main import app
from atoll.recovery.files import RestoreReport


class Restore:
    """Brings back two files of what was asked for."""

    def __init__(self, missing: int) -> None:
        self._missing = missing
        self.asked: dict[str, bool] = {}

    def __call__(self, _: object, path: str, target: Path, **asked: bool) -> RestoreReport:
        self.asked = asked
        return RestoreReport(2, 10, self._missing, ["/x: not restored. It is damaged."])


@pytest.fixture(params=[0, 3])
def brought(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Restore:
    brought = Restore(request.param)

    @contextmanager
    def browsing(*_: object) -> Iterator[None]:
        yield None

    monkeypatch.setattr(restore, "browsing", browsing)
    monkeypatch.setattr(restore, "restore_files", brought)
    monkeypatch.setattr(restore.context, "site", lambda: None)
    return brought


@pytest.mark.parametrize("options", [[], ["--json"], ["--keep-privileges"]])
def test_a_restore_with_holes_says_so(
    brought: Restore, options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["restore", "file", "db1@latest", "/etc", str(tmp_path), *options]
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    said = capfd.readouterr()
    assert ended.value.code == (5 if brought._missing else 0)
    assert ("missing: 3 " in said.err) == bool(brought._missing)
    assert brought.asked["keep_privileges"] == ("--keep-privileges" in options)
    if "--json" in options:
        assert json.loads(said.out)["missing"] == brought._missing
