"""Others who get hold of a guest meanwhile: an enrolment, another director, another product."""

import tarfile
from pathlib import Path

import pytest
from private_guest import run
from small_site import At, SmallSite, assert_called, assert_reasons, soak

from atoll.guests.authority import Authority
from atoll.guests.enrolment import enrol
from atoll.model.errors import AgentUnavailableError, HoldFailedError

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("impatient")]


def enrol_anew(site: SmallSite, out: Path) -> None:
    """As `atoll agent enroll` does; nothing is installed in the guest yet."""
    known = site.enrolled("app1")
    listens = site.guests["app1"].wire.agent_port
    authority = Authority.open(site.directory / "agents")
    enrol(
        *(authority, "app1", known.instance_uuid, out),
        address=known.address,
        port=known.port,
        listen_port=listens,
    )


def install(site: SmallSite, tar: Path) -> None:
    """Unpack the certificate in the guest, and restart the agent as the admin does."""
    guest = site.guests["app1"]
    with tarfile.open(tar) as archive:
        for name in ("agent.pem", "ca.crt"):
            member = archive.extractfile(f"etc/atoll/{name}")
            assert member is not None
            (guest.config.parent / name).write_bytes(member.read())
    guest.agent.stop()
    guest.know(site.enrolled("app1"), Authority.open(site.directory / "agents").credentials)
    guest.agent.start()


def test_a_guest_that_is_enrolled_anew_in_the_hold(site: SmallSite, tmp_path: Path) -> None:
    """The connection of the hold goes on; afterwards the old certificate is worth nothing."""
    tar = tmp_path / "app1.tar"
    result = site.hold_alone(At(snapshot=lambda: enrol_anew(site, tar)), accept_less=False)
    assert_called(result)
    with pytest.raises(AgentUnavailableError, match="app1 shows a certificate that was replaced"):
        site.hold_alone(At(), accept_less=False)
    install(site, tar)
    assert_called(site.hold_alone(At(), accept_less=False))


def test_a_guest_whose_new_certificate_is_installed_in_the_hold(
    site: SmallSite, tmp_path: Path
) -> None:
    """Its agent had to be restarted, and an agent that ends lets go."""
    tar = tmp_path / "app1.tar"

    def at_once() -> None:
        enrol_anew(site, tar)
        install(site, tar)

    result = site.hold_alone(At(snapshot=at_once))
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", r"this agent holds nothing for run \S+")


@pytest.mark.parametrize("stage", [soak("prepare"), "hold"])
def test_a_guest_that_another_director_holds(site: SmallSite, stage: str) -> None:
    """Its hold is left alone, whatever we ask for."""
    other = site.guests["app1"].agent.channel
    result = site.hold_alone(At(**{stage: lambda: other.freeze("theirs", 30.0, 20.0)}))
    assert_called(result, app1="crash")
    assert_reasons(
        result,
        "app1",
        r"Guest app1 could not be held: Run \S+ cannot have this guest: run theirs is held here\.",
    )
    assert other.thaw("theirs").held, "our thaw ended their hold"


def test_another_director_that_is_late(site: SmallSite) -> None:
    """It is refused, and our hold is not touched by its thaw."""
    other = site.guests["app1"].agent.channel

    def try_it() -> None:
        with pytest.raises(HoldFailedError, match="is held here"):
            other.prepare("late")
        with pytest.raises(HoldFailedError, match="is held here"):
            other.freeze("late", 30.0, 20.0)
        assert not other.thaw("late").held

    assert_called(site.hold_alone(At(snapshot=try_it), accept_less=False))


def test_another_product_that_thaws_the_file_system(site: SmallSite) -> None:
    mount = site.guests["app1"].mount
    result = site.hold_alone(At(snapshot=lambda: run("fsfreeze", "-u", mount)))
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", f"{mount}: it was thawed by something else")


def test_another_product_that_has_frozen_the_file_system(site: SmallSite) -> None:
    """Whoever froze it thaws it; it is not ours."""
    guest = site.guests["app1"]
    try:
        result = site.hold_alone(At(hold=lambda: run("fsfreeze", "-f", guest.mount)))
        assert_called(result, app1="crash")
        assert_reasons(
            result,
            "app1",
            r"Guest app1 could not be held: The file systems could not be held: \S+ could not be "
            r"frozen: it is already frozen by something else\.",
        )
        assert not guest.serves(0.5)
    finally:
        run("fsfreeze", "-u", guest.mount)
