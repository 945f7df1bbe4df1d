"""Following a vCenter that is a process of its own, and dies."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atoll.model.changes import ChangeKind
from atoll.model.errors import VCenterUnreachableError
from atoll.vsphere.client import VCenter
from atoll_lab.blueprint import HOSTS
from atoll_lab.vcenter.control import NewDisk
from watching import expect, told

ATOLL = Path(sys.executable).with_name("atoll")
HOST = HOSTS[0].name
UUIDS = {name: f"50000000-0000-4000-8000-00000000000{number}" for number, name in enumerate("abc")}


@pytest.fixture
def farm(simulator):
    """Three VMs on a host's own disk: no storage is needed to follow them."""
    for name, uuid in UUIDS.items():
        disk = NewDisk(2000, "Hard disk 1", f"{name}/{name}.vmdk", 1 << 20, "esx1-local")
        vmx = f"{name}/{name}.vmx"
        simulator.control.add_vm(name, "esx1-local", vmx, [disk], HOST, "Other", uuid)
    return simulator


def test_a_killed_vcenter_is_followed_again_and_what_happened_meanwhile_is_told(farm):
    with VCenter.connect(farm.settings()) as vcenter, vcenter.follow() as watch:
        for _ in range(2):
            since = watch.latest
            before = vcenter.placement(list(UUIDS.values()))

            farm.kill()
            expect(watch, ChangeKind.VCENTER_LOST, since=since)
            with pytest.raises(VCenterUnreachableError):
                vcenter.placement([UUIDS["a"]])
            farm.start()
            farm.control.set_power("a", not before[UUIDS["a"]].powered_on)
            back = expect(watch, ChangeKind.VCENTER_BACK, since=since)
            expect(watch, ChangeKind.VM_POWER, "a", since=back.number)

            after = vcenter.placement(list(UUIDS.values()))
            assert after[UUIDS["a"]].powered_on != before[UUIDS["a"]].powered_on
            assert [after[UUIDS[name]] for name in "bc"] == [before[UUIDS[name]] for name in "bc"]
            assert told(watch, back.number) == {(ChangeKind.VM_POWER, "a")}
    assert farm.finish() == 0


def test_the_command_tells_changes_until_it_is_interrupted(farm, tmp_path):
    settings = farm.settings()
    config = tmp_path / "atoll.toml"
    config.write_text(
        f"""
        [vcenter]
        host = "{settings.host}"
        port = {settings.port}
        user = "{settings.user}"
        password_file = "{tmp_path / "password"}"
        ca_file = "{settings.ca_file}"

        [[storage]]
        name = "none"
        driver = "embedded"
        pool = "{tmp_path / "nowhere"}"
        """
    )
    command = [ATOLL, "--config", config, "inventory", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            lines = iter(running.stdout.readline, "")
            heard = _until_heard(farm, lines)
            farm.control.remove_vm("b")
            gone = json.loads(next(lines))
            while gone["kind"] != "vm-gone":
                gone = json.loads(next(lines))
        finally:
            running.terminate()
            rest = running.stdout.read()
    assert heard["subject"] == "a"
    assert (gone["subject"], gone["instance_uuid"], gone["before"]) == ("b", UUIDS["b"], HOST)
    assert running.returncode == 0
    assert rest == "" or json.loads(rest.splitlines()[-1])["kind"] == "vm-power"


def _until_heard(farm, lines):
    """Change something until the command, which says nothing when it is ready, tells of it."""
    ready = threading.Event()

    def toggle():
        on = True
        while not ready.wait(0.2):
            farm.control.set_power("a", on)
            on = not on

    changing = threading.Thread(target=toggle)
    changing.start()
    try:
        return json.loads(next(lines))
    finally:
        ready.set()
        changing.join()
