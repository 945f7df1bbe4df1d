"""Anything may fail at any time: what is answered is never stale, what is told is complete."""

import random
import time
from collections import Counter

import pytest

from atoll.model.changes import ChangeKind
from atoll.vsphere import watch as watch_module
from atoll.vsphere.client import VCenter
from vsphere_site import APP1_UUID, DB1_UUID, ESX1, ESX2
from watching import expect

_VMS = {"db1": DB1_UUID, "app1": APP1_UUID}
_FAULTS = (
    ("WaitForUpdatesEx", "drop", "before"),
    ("WaitForUpdatesEx", "drop", "after"),
    ("WaitForUpdatesEx", "vmodl.fault.HostCommunication", "after"),
    ("WaitForUpdatesEx", "vmodl.query.InvalidCollectorVersion", "before"),
    ("WaitForUpdatesEx", "vmodl.fault.RequestCanceled", "after"),
    ("CancelWaitForUpdates", "drop", "before"),
    ("CreateFilter", "vmodl.fault.ManagedObjectNotFound", "before"),
    ("CreateContainerView", "drop", "after"),
)


class Dice:
    """Changes one VM at a time, and knows how every VM is."""

    def __init__(self, site, seed):
        self._random = random.Random(seed)
        self._site = site
        self.host = {"db1": ESX1.name, "app1": ESX2.name}
        self.power = {"db1": True, "app1": True}
        self.moves = 0

    def change(self):
        name = self._random.choice(list(_VMS))
        if self._random.random() < 0.5:
            self.host[name] = ESX2.name if self.host[name] == ESX1.name else ESX1.name
            self._site.control.vmotion(name, self.host[name])
            self.moves += 1
        else:
            self.power[name] = not self.power[name]
            self._site.control.set_power(name, self.power[name])

    def waits(self):
        return self._random.random() < 0.9

    def hinder(self):
        self._site.simulator.site.update_limit = self._random.choice([1, 2, 100])
        if self._random.random() < 0.03:
            self._site.control.expire_sessions()
        if self._random.random() < 0.15:
            method, fault, when = self._random.choice(_FAULTS)
            self._site.control.inject_fault(
                method,
                fault=fault,
                when=when,
                delay_seconds=self._random.choice([0.0, 0.0, 0.05]),
            )


def counted(monkeypatch, watch):
    """How many questions the watch answered itself, and how many it did not."""
    count = Counter()
    ask = watch.placement

    def asked(uuids):
        found = ask(uuids)
        count[found is not None] += 1
        return found

    monkeypatch.setattr(watch, "placement", asked)
    return count


@pytest.mark.parametrize(
    ("seed", "steps"),
    [(1, 60), (2, 60), *(pytest.param(n, 1500, marks=pytest.mark.soak) for n in range(3, 7))],
)
def test_no_answer_is_stale_and_no_change_is_lost(site, vcenter, monkeypatch, seed, steps):
    monkeypatch.setattr(watch_module, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(watch_module, "_LONGEST_PAUSE_SECONDS", 0.1)
    dice = Dice(site, seed)
    vcenter.inventory()  # so that the reader needs no view, which may fail on it
    with vcenter.follow() as watch, VCenter.connect(site.settings()) as other:
        by_watch = counted(monkeypatch, watch)
        for _ in range(steps):
            dice.hinder()
            dice.change()
            while dice.waits() and not watch._live:
                time.sleep(0.01)
            places = vcenter.placement(list(_VMS.values()))
            for name, uuid in _VMS.items():
                assert (places[uuid].host, places[uuid].powered_on) == (
                    dice.host[name],
                    dice.power[name],
                )
        assert by_watch[True] > steps / 3
        assert by_watch[False] > 0
        site.control.clear_faults()
        site.control.rename_datastore("vmfs1", "the end")
        expect(watch, ChangeKind.DATASTORE_RENAMED, "the end")
        assert vcenter.inventory() == other.inventory()
        told = watch.wait_for_change(0).changes

    # Each change goes on from the one before it, to how things are now.
    hosts, power = {"db1": ESX1.name, "app1": ESX2.name}, {"db1": "poweredOn", "app1": "poweredOn"}
    for change in told:
        if change.kind is ChangeKind.VM_MOVED_HOST:
            assert change.before == hosts[change.subject]
            hosts[change.subject] = change.after
        elif change.kind is ChangeKind.VM_POWER:
            assert change.before == power[change.subject]
            power[change.subject] = change.after
    assert hosts == dice.host
    assert power == {name: "poweredOn" if on else "poweredOff" for name, on in dice.power.items()}
    assert [change.number for change in told] == list(range(1, len(told) + 1))
    assert {change.kind for change in told} > {ChangeKind.VCENTER_LOST, ChangeKind.VCENTER_BACK}
