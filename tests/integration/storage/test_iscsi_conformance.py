"""Whether a LUN of ours still behaves as recorded, by libiscsi's conformance tests.

Each family of tests runs in a process of its own: one that skips a test in the middle leaves its
tampering with commands in place, and every family after it fails for that.
"""

import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgt_site import MIB, TgtSite, tgt_site

RECORDED = Path(__file__).with_name("iscsi_conformance.toml")
EXPLAINED = Path(__file__).parents[3] / "docs" / "drivers" / "iscsi-conformance.md"
INITIATORS = tuple(
    f"iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test{which}" for which in ("", "-2")
)

pytestmark = pytest.mark.skipif(
    shutil.which("iscsi-test-cu") is None, reason="needs iscsi-test-cu (package libiscsi-bin)"
)


@pytest.fixture
def site() -> Iterator[TgtSite]:
    """Two addresses, no write cache; in memory, for what is tried is the protocol."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
        tgt_site(Path(directory), "127.0.0.1", "127.0.0.2", durability="disk") as one,
    ):
        yield one


def families() -> list[str]:
    shown = subprocess.run(["iscsi-test-cu", "-l"], capture_output=True, text=True, check=True)
    names = re.findall(r"^ALL\.(\w+)$", shown.stdout, re.MULTILINE)
    assert len(names) > 40
    return names


def run_family(family: str, urls: list[str]) -> dict[str, str]:
    """`passed`, `failed` or `skipped` by test of a family."""
    done = subprocess.run(
        ["iscsi-test-cu", "--dataloss", "--verbose", "--test", f"ALL.{family}", *urls],
        capture_output=True, text=True, errors="replace", check=False, timeout=300,
    )  # fmt: skip
    report, summary, _ = done.stdout.partition("Run Summary:")
    assert summary, f"iscsi-test-cu broke off in {family}:\n{done.stdout}\n{done.stderr}"
    parts = re.split(r"^  Test: (\S+) \.\.\.", report, flags=re.MULTILINE)
    return {
        f"{family}.{name}": _outcome(said)
        for name, said in zip(parts[1::2], parts[2::2], strict=True)
    }


def _outcome(said: str) -> str:
    if re.search(r"^FAILED$", said, re.MULTILINE):
        return "failed"
    if "[SKIPPED]" in said:
        return "skipped"
    return "passed"


def urls_of(site: TgtSite, name: str) -> list[str]:
    target = site.exports[name].target
    return [f"iscsi://{portal}/{target}/1" for portal in site.portals(name)]


def test_a_lun_behaves_as_recorded(site: TgtSite) -> None:
    site.add("a", 256 * MIB, initiators=INITIATORS)
    site.add("ro", 256 * MIB, initiators=INITIATORS, read_only=True)
    site.serve()
    found: dict[str, str] = {}
    for family in families():
        # A LUN that can be written leaves nothing to try about write protection.
        found |= run_family(family, urls_of(site, "ro" if family == "ReadOnly" else "a"))
    recorded = tomllib.loads(RECORDED.read_text())
    expected = dict.fromkeys(found, "passed")
    for outcome in ("failed", "skipped"):
        expected |= dict.fromkeys(recorded[outcome], outcome)
    differing = [
        f"{name}: {found.get(name, 'no such test')}, recorded as {expected[name]}"
        for name in sorted(expected)
        if found.get(name) != expected[name]
    ]
    assert differing == [], (
        f"the target does not behave as in {RECORDED.name}; find out why, then correct that file "
        f"and {EXPLAINED.name}"
    )
    assert len(found) > 200


def test_each_recorded_failure_is_explained() -> None:
    explained = EXPLAINED.read_text()
    recorded = tomllib.loads(RECORDED.read_text())
    assert [name for name in recorded["failed"] if f"`{name}`" not in explained] == []
    skipped = {name.partition(".")[0] for name in recorded["skipped"]}
    assert [family for family in skipped if f"`{family}" not in explained] == []
