"""What goes wrong between Atoll and vCenter, and what the user is told."""

import socket
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from pyVmomi import vim

from atoll.model.errors import (
    AuthenticationError,
    ConfigurationError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.vsphere.client import VCenter
from atoll.vsphere.session import Session
from atoll.vsphere.tasks import await_task
from vsphere_site import APP1_UUID, DB1_UUID, ESX1, PASSWORD, USER


def test_wrong_password_is_told_without_the_password(site):
    with pytest.raises(AuthenticationError, match=f"refused user {USER}") as caught:
        VCenter.connect(site.settings(password="guessed-it"))

    assert "guessed-it" not in str(caught.value)
    assert "guessed-it" not in repr(site.settings(password="guessed-it"))


def test_wrong_user_is_refused(site):
    with pytest.raises(AuthenticationError):
        VCenter.connect(site.settings(user="nobody"))


def test_an_unknown_certificate_is_refused_even_on_loopback(site):
    with pytest.raises(AuthenticationError, match="certificate"):
        VCenter.connect(site.settings(ca_file=None))


def test_a_pinned_certificate_is_accepted_on_every_connection(site):
    thumbprint = site.simulator.endpoint.thumbprint
    with VCenter.connect(site.settings(ca_file=None, thumbprint=thumbprint)) as vcenter:
        assert vcenter.inventory().vms


def test_another_certificate_than_the_pinned_one_is_refused(site):
    with pytest.raises(AuthenticationError, match="SHA-256"):
        VCenter.connect(site.settings(ca_file=None, thumbprint="ab" * 32))


def test_a_pin_is_checked_again_when_the_connection_is_made_again(site):
    thumbprint = site.simulator.endpoint.thumbprint
    session = Session(site.settings(ca_file=None, thumbprint=thumbprint))
    session._link.stub.DropConnections()
    session._link.stub.schemeArgs["context"].pinned = "00" * 32

    with pytest.raises(AuthenticationError, match="certificate"):
        session.call("ask the time", lambda content: content.viewManager.viewList)


def test_verification_is_given_up_only_when_asked(site):
    with VCenter.connect(site.settings(ca_file=None, insecure=True)) as vcenter:
        assert vcenter.inventory().vms


@pytest.mark.parametrize(
    "changes",
    [
        {"insecure": True},
        {"thumbprint": "ab" * 32},
        {"ca_file": None, "thumbprint": "ab:cd"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(site, changes):
    with pytest.raises(ConfigurationError):
        site.settings(**changes)


def test_a_ca_file_that_is_none_is_named(site, tmp_path):
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        VCenter.connect(site.settings(ca_file=tmp_path / "missing.pem"))


def test_nobody_at_the_address(site):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(VCenterUnreachableError, match=f"127.0.0.1:{port} did not answer"):
        VCenter.connect(site.settings(port=port))


def test_an_address_that_accepts_and_says_nothing(site):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        port = mute.getsockname()[1]
        with pytest.raises(VCenterUnreachableError, match="took too long"):
            VCenter.connect(site.settings(port=port, connect_seconds=0.3))


def test_a_web_server_that_is_no_vcenter(site):
    site.simulator._sdk.RequestHandlerClass = _NotFound
    with pytest.raises(VCenterUnreachableError, match="no vCenter"):
        VCenter.connect(site.settings())


def test_an_expired_session_is_opened_again_once(site, vcenter):
    vcenter.inventory()
    assert site.control.logins() == 1
    assert site.control.expire_sessions() == 1

    assert set(vcenter.placement([DB1_UUID])) == {DB1_UUID}
    assert {vm.name for vm in vcenter.inventory().vms} >= {"db1", "app1"}

    assert site.control.logins() == 2


def test_threads_share_one_new_login(site, vcenter):
    site.control.expire_sessions()
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(vcenter.placement([APP1_UUID])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert site.control.logins() == 2


def test_a_password_changed_meanwhile_is_told_at_the_new_login(site, vcenter):
    site.simulator.site.sessions._password = "changed"
    site.control.expire_sessions()

    with pytest.raises(AuthenticationError):
        vcenter.inventory()


def test_a_lost_answer_is_unreachable_and_the_next_call_works(site, vcenter):
    site.control.inject_fault("RetrievePropertiesEx", fault="drop")

    with pytest.raises(VCenterUnreachableError):
        vcenter.inventory()

    assert site.control.faults()[0]["fired"] == 1
    assert vcenter.inventory().vms


def test_a_fault_in_the_middle_of_a_paged_read_is_told(site):
    site.simulator.site.page_size = 2
    with VCenter.connect(site.settings()) as vcenter:
        site.control.inject_fault(
            "ContinueRetrievePropertiesEx", fault="vmodl.fault.HostCommunication"
        )
        with pytest.raises(VCenterOperationError, match="could not read the inventory"):
            vcenter.inventory()

        assert site.control.faults()[0]["fired"] == 1
        assert len(vcenter.inventory().hosts) == 3


def test_a_missing_privilege_is_named(site, vcenter):
    site.control.inject_fault("RescanAllHba", target=ESX1.name, fault="vim.fault.NoPermission")

    with pytest.raises(VCenterOperationError, match="lacks the privilege"):
        vcenter.rescan(ESX1.name)


def test_the_server_going_away_is_unreachable(site, vcenter):
    site.simulator.close()
    with pytest.raises(VCenterUnreachableError):
        vcenter.inventory()


def test_a_task_is_awaited_to_its_result(site):
    session = Session(site.settings())

    snapshot = session.call("snapshot db1", lambda content: _snapshot(content, 60.0))

    assert isinstance(snapshot, vim.vm.Snapshot)
    session.close()


def test_a_failed_task_raises_its_own_fault(site):
    site.control.inject_fault("CreateSnapshot_Task", fault="vim.fault.FileLocked", when="task")
    session = Session(site.settings())

    with pytest.raises(
        VCenterOperationError, match=r"could not snapshot db1: Injected .*FileLocked"
    ):
        session.call("snapshot db1", lambda content: _snapshot(content, 60.0))
    session.close()


def test_a_task_beyond_its_deadline_is_told_and_goes_on(site):
    site.control.set_task_seconds("CreateSnapshot_Task", 3600.0)
    session = Session(site.settings())

    with pytest.raises(VCenterOperationError, match=r"did not snapshot db1 within 0\.2 s"):
        session.call("snapshot db1", lambda content: _snapshot(content, 0.2))
    session.close()


def test_waiting_leaves_no_collector_or_filter_behind(site):
    session = Session(site.settings())
    session.call("snapshot db1", lambda content: _snapshot(content, 60.0))

    moids = list(site.simulator.site.registry._objects)
    assert not [moid for moid in moids if "filter" in moid or "session-collector" in moid]
    session.close()


def test_secrets_never_reach_the_state_directory(site, vcenter):
    vcenter.inventory()
    for path in site.directory.iterdir():
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes()


def _snapshot(content, deadline_seconds):
    vm = content.searchIndex.FindByUuid(None, DB1_UUID, True, True)
    task = vm.CreateSnapshot_Task("s", "", False, False)
    return await_task(content, task, "snapshot db1", deadline_seconds)


class _NotFound(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        return
