"""CHAP at a real tgtd: who is asked, who gets in, and that no secret gets out."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.backend import Chap
from atoll.storage.initiator import ChapRefusedError, TargetUnprovenError, TargetUnreachableError
from atoll.storage.targets.tgt.tgt_socket import Mode, Operation, TgtSocket
from tgt_site import HOST, OTHER, TgtSite, tgt_site

ONE = Chap("user-one", "secret-of-one-1")
ONE_LATER = Chap("user-one", "secret-of-one-2")
TWO = Chap("user-two", "secret-of-two-1")
BOTH_WAYS = Chap("user-one", "secret-of-one-1", "target-user", "target-secret-1")
TWO_BOTH_WAYS = Chap("user-two", "secret-of-two-1", "target-user", "target-secret-1")
SECRETS = ("secret-of-one-1", "secret-of-one-2", "secret-of-two-1", "target-secret-1")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TgtSite]:
    with tgt_site(tmp_path) as one:
        yield one


def gets_in(site: TgtSite, name: str, chap: Chap | None, initiator: str = HOST) -> bool:
    try:
        with site.connect(name, initiator, chap=chap) as lun:
            lun.read(0, 512)
    except ChapRefusedError:
        return False
    return True


def test_the_right_secret_opens_and_no_other(site: TgtSite) -> None:
    site.add("a", chap={HOST: ONE})
    site.serve()
    assert gets_in(site, "a", ONE)
    assert not gets_in(site, "a", ONE_LATER)
    assert not gets_in(site, "a", TWO)
    assert not gets_in(site, "a", None)
    assert not gets_in(site, "a", Chap("(nobody)", "-"))
    # Who does not ask for a proof of the target needs none, who does gets it or stays out.
    with pytest.raises((TargetUnprovenError, ChapRefusedError)):
        site.connect("a", chap=BOTH_WAYS)
    assert site.serve() == []


def test_a_target_proves_itself(site: TgtSite) -> None:
    site.add("a", chap={HOST: BOTH_WAYS})
    site.serve()
    assert gets_in(site, "a", BOTH_WAYS)
    assert gets_in(site, "a", ONE)
    for impostor in (
        Chap("user-one", "secret-of-one-1", "target-user", "target-secret-2"),
        Chap("user-one", "secret-of-one-1", "another-user", "target-secret-1"),
    ):
        with pytest.raises(TargetUnprovenError):
            site.connect("a", chap=impostor)
    assert site.serve() == []


def test_changing_a_secret_ends_sessions_under_the_old_one(site: TgtSite) -> None:
    site.add("a", chap={HOST: ONE})
    site.add("b", chap={HOST: TWO})
    site.serve()
    old = site.connect("a", chap=ONE, reconnect=False)
    bystander = site.connect("b", chap=TWO, reconnect=False)
    site.add("a", chap={HOST: ONE_LATER})
    assert site.serve() == [f"Served {site.exports['a'].target} anew."]
    with pytest.raises(TargetUnreachableError):
        old.read(0, 512)
    assert not gets_in(site, "a", ONE)
    assert gets_in(site, "a", ONE_LATER)
    bystander.read(0, 512)
    for lun in (old, bystander):
        lun.close()
    assert site.serve() == []


def test_asking_and_no_longer_asking(site: TgtSite) -> None:
    site.add("a")
    site.serve()
    open_one = site.connect("a", reconnect=False)
    site.add("a", chap={HOST: ONE})
    site.serve()
    with pytest.raises(TargetUnreachableError):
        open_one.read(0, 512)
    open_one.close()
    assert not gets_in(site, "a", None)
    site.add("a")
    site.serve()
    assert gets_in(site, "a", None)
    site.add("a", chap={HOST: BOTH_WAYS})
    site.serve()
    assert gets_in(site, "a", BOTH_WAYS)
    assert not gets_in(site, "a", None)


def test_luns_and_hosts_share_accounts(site: TgtSite) -> None:
    for name in "abc":
        site.add(name, initiators=(HOST, OTHER), chap={HOST: ONE, OTHER: TWO})
    site.serve()
    for name in "abc":
        assert gets_in(site, name, ONE)
        assert gets_in(site, name, TWO, OTHER)
    # Accounts come and go in the middle; tgtd dies of a gap in its list.
    site.add("b", initiators=(OTHER,), chap={OTHER: TWO})
    site.serve()
    assert not gets_in(site, "b", ONE, OTHER)
    for name in "abc":
        assert gets_in(site, name, TWO, OTHER)
    for name in "abc":
        site.add(name, initiators=(HOST, OTHER), chap={HOST: ONE_LATER, OTHER: TWO})
    site.serve()
    for name in "abc":
        assert gets_in(site, name, ONE_LATER)
        assert not gets_in(site, name, ONE)
    del site.exports["a"], site.exports["b"]
    site.serve()
    assert gets_in(site, "c", ONE_LATER)


def test_a_daemon_that_comes_back_asks_again(site: TgtSite) -> None:
    site.add("a", chap={HOST: BOTH_WAYS})
    site.serve()
    process = site.targets.process(site.group)
    assert process is not None
    with process:
        process.signal(signal.SIGKILL)
        assert process.ended(60)
    site.serve()
    assert gets_in(site, "a", BOTH_WAYS)
    assert not gets_in(site, "a", None)
    site.targets.stop(site.group)
    site.serve()
    assert gets_in(site, "a", BOTH_WAYS)
    assert not gets_in(site, "a", TWO)


class Cut:
    """Lets a number of requests to tgtd pass, and dies at the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passing: int) -> None:
        self._genuine = TgtSocket.call
        self._monkeypatch = monkeypatch
        self._passing = passing
        self.reached = False

    def __enter__(self) -> "Cut":
        def call(management: TgtSocket, *arguments: Any, **named: Any) -> str:
            self._passing -= 1
            if self._passing < 0:
                self.reached = True
                raise InterruptedError
            return self._genuine(management, *arguments, **named)

        self._monkeypatch.setattr(TgtSocket, "call", call)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._monkeypatch.setattr(TgtSocket, "call", self._genuine)
        return kind is InterruptedError


def test_a_change_cut_short_leaves_nothing_open_and_is_finished(
    site: TgtSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the request it dies at, going on closes what was to be closed."""
    for passing in range(40):
        site.add("a", initiators=(HOST, OTHER), chap={HOST: BOTH_WAYS, OTHER: TWO_BOTH_WAYS})
        site.serve()
        old = site.connect("a", chap=BOTH_WAYS, reconnect=False)
        site.add("a", initiators=(HOST, OTHER), chap={HOST: ONE_LATER, OTHER: TWO})
        with Cut(monkeypatch, passing) as cut:
            site.serve()
        assert not gets_in(site, "a", None)
        site.serve()
        assert not gets_in(site, "a", ONE)
        assert gets_in(site, "a", ONE_LATER)
        assert gets_in(site, "a", TWO, OTHER)
        with pytest.raises(TargetUnreachableError):
            old.read(0, 512)
        old.close()
        if not cut.reached:
            return
    pytest.fail("a change takes more requests than this test expects")


def test_what_tgtd_cannot_do_is_told_before_anything_changes(site: TgtSite) -> None:
    site.add("a", chap={HOST: ONE})
    site.add("b", chap={HOST: ONE})
    site.serve()
    kept = dict(site.exports)
    site.add("b", chap={HOST: ONE_LATER})
    with pytest.raises(StorageConflictError, match="two secrets"):
        site.serve()
    assert gets_in(site, "a", ONE)
    assert gets_in(site, "b", ONE)
    site.exports.update(kept)
    assert site.serve() == []


def test_secrets_stay_secret(site: TgtSite) -> None:
    site.add("a", initiators=(HOST, OTHER), chap={HOST: BOTH_WAYS, OTHER: BOTH_WAYS})
    site.serve()
    site.add("a", initiators=(HOST, OTHER), chap={HOST: ONE_LATER, OTHER: TWO})
    site.serve()
    gets_in(site, "a", ONE)
    process = site.targets.process(site.group)
    assert process is not None
    with process:
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        seen += Path(f"/proc/{process.pid}/environ").read_bytes()
    seen += b"".join(path.read_bytes() for path in site.run.iterdir() if path.is_file())
    management = TgtSocket(site.run / f"{site.group}.tgt")
    seen += management.call(Operation.SHOW, Mode.ACCOUNT).encode()
    with pytest.raises(StorageUnreachableError) as refused:
        management.call(
            Operation.NEW, Mode.ACCOUNT, parameters=f"user={TWO.user},password={TWO.secret}"
        )
    seen += str(refused.value).encode() + repr(BOTH_WAYS).encode()
    with pytest.raises(ChapRefusedError) as kept_out:
        site.connect("a", chap=ONE)
    seen += str(kept_out.value).encode()
    assert [secret for secret in SECRETS if secret.encode() in seen] == []
