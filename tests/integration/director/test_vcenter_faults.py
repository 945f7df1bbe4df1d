"""A vCenter that goes away, forgets the session or moves VMs around a hold."""

import re

import pytest
from small_site import HELD, At, SmallSite, assert_called, assert_reasons, proofs, soak, uuid_of

from atoll.model.errors import HoldFailedError, VCenterUnreachableError

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("impatient")]

AWAY = r"vCenter 127.0.0.1:\d+ did not answer: "


@pytest.mark.soak
def test_away_when_the_vmware_snapshots_are_due(site: SmallSite) -> None:
    """Away for good after all were prepared: what was held is let go and the run fails."""
    with pytest.raises(VCenterUnreachableError, match=AWAY):
        site.back_up(At(hold=site.simulator.stop))
    assert all(guest.serves(1.0) for guest in site.guests.values())


def test_away_from_the_hold_on(site: SmallSite) -> None:
    """Nobody can say where the VMs were: the snapshot goes, and no VM keeps a VMware snapshot."""
    with pytest.raises(VCenterUnreachableError, match=AWAY) as failure:
        site.back_up(At(snapshot=site.simulator.stop))
    assert all(guest.serves(1.0) for guest in site.guests.values())
    [note] = failure.value.__notes__
    assert re.fullmatch(
        r"VMware snapshot atoll-\S+ of VM \S+ is not wholly removed: vCenter .*; the next start "
        r"tries again, or remove and consolidate it in vCenter\.",
        note,
    )
    site.simulator.start_again()
    cleaned = site.clean()
    assert any("Removed VMware snapshot" in line and "bare1" in line for line in cleaned)


@pytest.mark.parametrize("vms", [HELD, ("db1", "bare1")], ids=["agents", "vmware"])
def test_restarted_during_the_hold(site: SmallSite, vms: tuple[str, ...]) -> None:
    """It forgot the session; a new login finds VMs and VMware snapshots where they were."""

    def restart() -> None:
        site.simulator.stop()
        site.simulator.start_again()

    result = site.back_up(At(snapshot=restart), vms=vms)
    assert_called(result)


@pytest.mark.parametrize("stage", [soak("prepare"), soak("hold"), "snapshot", soak("release")])
def test_a_session_that_expired(site: SmallSite, stage: str) -> None:
    before = site.control.logins()
    result = site.back_up(At(**{stage: site.control.expire_sessions}), accept_less=False)
    assert_called(result)
    assert site.control.logins() > before + 1, "it had to log in anew"


def test_a_vm_that_moved_is_held_again(site: SmallSite) -> None:
    at = At(snapshot=lambda: site.control.vmotion("app1", "esx2.lab"))
    try:
        result = site.back_up(at, accept_less=False)
    finally:
        site.control.vmotion("app1", "esx1.lab")
    assert_called(result)
    assert at.notes == [": app1 moved during the hold; holding again"]
    assert {proof.host_after for proof in proofs(result).values()} == {"esx1.lab", "esx2.lab"}
    hold = proofs(result)["app1"].hold
    assert hold is not None
    assert hold.run.endswith("-1")


def test_a_vm_that_moves_in_every_hold_is_crash_consistent(site: SmallSite) -> None:
    at = At(snapshot=lambda: site.control.vmotion("app1", "esx2.lab"))
    try:
        result = site.back_up(at, moves=0)
    finally:
        site.control.vmotion("app1", "esx1.lab")
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", "moved from esx1.lab to esx2.lab while the snapshot was taken")


def test_a_vm_that_is_switched_off_in_the_hold(site: SmallSite) -> None:
    """What was planned is not what is there any more: the run fails, and the next one plans anew."""
    with pytest.raises(HoldFailedError, match=r"VM app1 was switched on or off, unlike when"):
        site.back_up(At(snapshot=lambda: site.control.set_power("app1", False)))
    result = site.back_up()
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", "powered off: its disks are as clean as it was shut down")


@pytest.mark.soak
def test_a_vm_that_vcenter_forgets_in_the_hold(site: SmallSite) -> None:
    with pytest.raises(HoldFailedError, match=r"VM web1 is gone from vCenter, .* unlike when"):
        site.back_up(At(snapshot=lambda: site.control.remove_vm("web1")))


def test_a_vm_of_which_another_product_takes_a_vmware_snapshot_in_the_hold(site: SmallSite) -> None:
    """From then on the guest writes elsewhere; whose snapshot it is does not matter."""
    with site.opened() as another:
        theirs = another.vcenter().snapshots("another-product")

        def take() -> None:
            theirs.quiesced_snapshot(uuid_of("app1"), "atoll-theirs", "Nightly backup.", 30.0)

        try:
            with pytest.raises(HoldFailedError, match="VM app1 has a VMware snapshot now, unlike"):
                site.hold_alone(At(snapshot=take))
            assert theirs.present(uuid_of("app1"), "atoll-theirs"), "it is not ours to remove"
        finally:
            theirs.remove(uuid_of("app1"), "atoll-theirs", 30.0)


def test_a_host_that_loses_contact_with_vcenter_in_the_hold(site: SmallSite) -> None:
    """Its VMs run and may be restarted elsewhere at any moment; nobody can say where they were."""
    try:
        with pytest.raises(HoldFailedError, match=r"VM db1 .* has lost contact with its host, unl"):
            site.hold_alone(At(snapshot=lambda: site.control.set_host_connected("esx1.lab", False)))
    finally:
        site.control.set_host_connected("esx1.lab", True)
    assert_called(site.hold_alone(At(), accept_less=False))
