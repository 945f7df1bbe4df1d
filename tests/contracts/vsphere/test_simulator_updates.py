"""The simulator's property filters, held to what the vSphere API reference says of them.

PropertyCollector: WaitForUpdatesEx, CancelWaitForUpdates, CreateFilter; UpdateSet.truncated;
WaitOptions. The watch is tested against vcsim too; this is where the two differ.
"""

import ssl
import threading

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from vsphere_site import ESX1, ESX2, PASSWORD, USER

Q = vmodl.query.PropertyCollector


def filter_all(content, *paths, collector=None):
    """Watch all VMs by a view; the collector."""
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    walk = Q.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
    spec = Q.FilterSpec(
        objectSet=[Q.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
        propSet=[Q.PropertySpec(type=vim.VirtualMachine, pathSet=list(paths))],
    )
    collector = collector or content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(spec, False)
    return collector


def ask(collector, version="", most=None, seconds=0):
    options = Q.WaitOptions(maxWaitSeconds=seconds, maxObjectUpdates=most)
    return collector.WaitForUpdatesEx(version, options)


def objects(update):
    return [item for each in update.filterSet for item in each.objectSet]


@pytest.fixture
def another(site):
    """The content of another session."""
    endpoint = site.simulator.endpoint
    context = ssl.create_default_context(cafile=endpoint.ca_file)
    instance = SmartConnect(
        host=endpoint.host, port=endpoint.port, user=USER, pwd=PASSWORD, sslContext=context
    )
    yield instance.content
    Disconnect(instance)


def test_more_than_asked_for_is_told_in_parts(stock):
    collector = filter_all(stock.content, "name")

    first = ask(collector, most=2)
    second = ask(collector, first.version, most=2)

    assert (first.truncated, second.truncated) == (True, False)
    names = [item.changeSet[0].val for item in [*objects(first), *objects(second)]]
    assert sorted(names) == ["app1", "db1", "scratch1"]
    assert ask(collector, second.version) is None


def test_a_part_goes_on_where_it_left_off_and_knows_nothing_newer(site, stock):
    collector = filter_all(stock.content, "runtime.host")
    first = ask(collector, most=1)
    told = objects(first)[0].obj.name
    site.control.vmotion("db1", ESX2.name)
    site.control.vmotion("app1", ESX1.name)

    rest = ask(collector, first.version)
    news = ask(collector, rest.version)

    assert told not in [item.obj.name for item in objects(rest)]
    assert {item.kind for item in objects(rest)} == {"enter"}
    assert {item.obj.name for item in objects(news)} == {"db1", "app1"}


def test_a_truncated_version_can_be_used_once(stock):
    collector = filter_all(stock.content, "name")
    first = ask(collector, most=1)
    ask(collector, first.version, most=1)

    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        ask(collector, first.version)


def test_a_truncated_version_is_not_for_the_older_calls(stock):
    collector = filter_all(stock.content, "name")
    first = ask(collector, most=1)

    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        collector.CheckForUpdates(first.version)
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        ask(collector, first.version)


def test_another_call_discards_what_was_held_back(stock):
    collector = filter_all(stock.content, "name")
    first = ask(collector, most=1)

    assert len(objects(collector.CheckForUpdates(""))) == 3
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        ask(collector, first.version)


@pytest.mark.parametrize("options", [{"maxWaitSeconds": -1}, {"maxObjectUpdates": 0}])
def test_options_without_sense_are_refused(stock, options):
    collector = filter_all(stock.content, "name")
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector.WaitForUpdatesEx("", Q.WaitOptions(**options))


def test_a_view_follows_vms_that_come_and_go(site, stock):
    collector = filter_all(stock.content, "name")
    version = ask(collector).version
    site.control.remove_vm("app1")
    site.control.add_vm("new1", "vmfs1", "n/n.vmx", [], ESX1.name, "Other")

    update = ask(collector, version)

    told = [(item.kind, [change.val for change in item.changeSet]) for item in objects(update)]
    assert sorted(told) == [("enter", ["new1"]), ("leave", [])]


def test_cancelling_ends_the_waits_of_the_session_and_no_others(site, stock, another):
    own = [filter_all(stock.content, "name") for _ in range(2)]
    other = filter_all(another, "name")
    ends = {}

    def wait(key, collector, version):
        try:
            ends[key] = ask(collector, version, seconds=300)
        except vmodl.fault.RequestCanceled:
            ends[key] = "cancelled"

    threads = {
        key: threading.Thread(target=wait, args=(key, collector, ask(collector).version))
        for key, collector in enumerate([*own, other])
    }
    for thread in threads.values():
        thread.start()
    while any(threads[key].is_alive() for key in (0, 1)):
        # One that is not waiting yet is not cancelled.
        stock.content.propertyCollector.CancelWaitForUpdates()
    assert (ends, threads[2].is_alive()) == ({0: "cancelled", 1: "cancelled"}, True)
    site.control.remove_vm("app1")
    threads[2].join()
    assert objects(ends[2])[0].kind == "leave"


def test_cancelling_when_nobody_waits_does_nothing(stock):
    collector = filter_all(stock.content, "name")
    version = ask(collector).version

    collector.CancelWaitForUpdates()

    assert ask(collector, version, seconds=1) is None


def test_a_destroyed_collector_ends_its_wait(stock):
    collector = filter_all(stock.content, "name")
    version = ask(collector).version
    ends = []

    def wait():
        try:
            ask(collector, version, seconds=300)
        except (vmodl.fault.RequestCanceled, vmodl.fault.ManagedObjectNotFound) as fault:
            ends.append(fault)

    thread = threading.Thread(target=wait)
    thread.start()
    collector.DestroyPropertyCollector()
    thread.join()

    assert len(ends) == 1


def test_what_a_session_made_is_its_own_and_ends_with_it(site, stock, another):
    view = another.viewManager.CreateContainerView(another.rootFolder, None, True)
    filter_all(another, "name")
    stolen = vim.view.ContainerView(view._moId, stock._stub)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        stolen.DestroyView()

    another.sessionManager.Logout()

    objects = site.simulator.site.registry._objects.values()
    assert [managed.moid for managed in objects if managed.session is not None] == []


def test_ending_another_session_cancels_its_wait(site, stock, another):
    collector = filter_all(another, "name")
    version = ask(collector).version
    ends = []

    def wait():
        try:
            ask(collector, version, seconds=300)
        except (vmodl.fault.RequestCanceled, vim.fault.NotAuthenticated) as fault:
            ends.append(fault)

    thread = threading.Thread(target=wait)
    thread.start()
    manager = stock.content.sessionManager
    own = manager.currentSession.key
    with pytest.raises(vmodl.fault.InvalidArgument):
        manager.TerminateSession([own])
    manager.TerminateSession([each.key for each in manager.sessionList if each.key != own])
    thread.join()

    assert len(ends) == 1
    with pytest.raises(vim.fault.NotAuthenticated):
        ask(collector, version)


def test_a_path_that_may_not_be_read_is_missing_with_the_reason(site, stock):
    collector = filter_all(stock.content, "name", "runtime.powerState")
    version = ask(collector).version
    moref = site.simulator.site.vm_named("db1").moid

    site.control.forbid(moref, "runtime.powerState")
    update = ask(collector, version)
    (refused,) = objects(update)
    site.control.allow_all()
    (again,) = objects(ask(collector, update.version))

    assert refused.missingSet[0].path == "runtime.powerState"
    assert isinstance(refused.missingSet[0].fault, vim.fault.NoPermission)
    assert [(change.name, change.val) for change in again.changeSet] == [
        ("runtime.powerState", "poweredOn")
    ]


def test_a_datastore_can_be_renamed_and_not_to_a_name_that_is_taken(stock):
    stores = stock.content.rootFolder.childEntity[0].datastore
    vmfs1 = next(store for store in stores if store.name == "vmfs1")
    vmfs1.RenameDatastore("gold")
    assert vmfs1.info.vmfs.name == "gold"
    with pytest.raises(vim.fault.DuplicateName):
        vmfs1.RenameDatastore("vmfs2")
