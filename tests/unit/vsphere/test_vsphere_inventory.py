"""Rows of the property collector turned into nouns, where a whole vCenter is not needed."""

from pyVmomi import vim

from atoll.vsphere import inventory
from atoll.vsphere.collector import Row


def row(kind, moref, **values):
    return Row(moref, kind, {name.replace("__", "."): value for name, value in values.items()})


def read(monkeypatch, *rows):
    monkeypatch.setattr(inventory, "read_all", lambda *_: list(rows))
    return inventory.read_inventory(None, 100)


def host(moref="host-1", name="esx1", **values):
    return row(vim.HostSystem, moref, name=name, **values)


def vm(disks, **values):
    base = {
        "name": "db1",
        "config__instanceUuid": "u1",
        "config__files__vmPathName": "[ds] db1/db1.vmx",
        "config__hardware__device": disks,
        "runtime__host": vim.HostSystem("host-1"),
        "datastore": [vim.Datastore("datastore-1")],
    }
    return row(vim.VirtualMachine, "vm-1", **{**base, **values})


def disk(backing, **values):
    return vim.vm.device.VirtualDisk(key=2000, capacityInKB=2048, backing=backing, **values)


def flat(path="[ds] db1/db1.vmdk", store="datastore-1"):
    reference = vim.Datastore(store) if store else None
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=path, datastore=reference, diskMode="persistent"
    )


def store(moref="datastore-1", name="ds", **values):
    return row(vim.Datastore, moref, name=name, **values)


def test_equal_names_in_two_datacenters_stay_apart(monkeypatch):
    found = read(
        monkeypatch,
        host(),
        store("datastore-1"),
        store("datastore-2"),
        vm([disk(flat(store="datastore-1"))]),
    ).inventory

    assert [each.name for each in found.datastores] == ["ds (datastore-1)", "ds (datastore-2)"]
    assert found.vms[0].disks[0].datastore == "ds (datastore-1)"


def test_the_configuration_files_path_follows_the_datastores_name(monkeypatch):
    twin = store("datastore-2")
    found = read(monkeypatch, host(), store(), twin, vm([disk(flat())])).inventory

    assert found.vms[0].vmx_path == "[ds (datastore-1)] db1/db1.vmx"


def test_a_disk_without_a_datastore_reference_is_found_by_its_path(monkeypatch):
    found = read(monkeypatch, host(), store(), vm([disk(flat(store=None))])).inventory

    assert found.vms[0].disks[0].datastore == "ds"
    assert found.vms[0].disks[0].size_bytes == 2 << 20


def test_a_vm_on_a_datastore_the_user_may_not_see_is_left_out_with_the_reason(monkeypatch):
    reading = read(monkeypatch, host(), vm([disk(flat(store="datastore-9"))]))

    assert reading.inventory.vms == ()
    assert "may not see" in reading.inventory.left_out[0].reason


def test_a_vm_without_configuration_is_left_out_with_its_state(monkeypatch):
    lost = row(vim.VirtualMachine, "vm-1", name="lost", runtime__connectionState="inaccessible")

    reading = read(monkeypatch, host(), lost)

    (lost,) = reading.inventory.left_out
    assert lost.name == "lost"
    assert "inaccessible" in lost.reason


def test_a_delta_file_without_a_snapshot_still_counts_as_one(monkeypatch):
    backing = flat("[ds] db1/db1-000001.vmdk")
    backing.parent = flat()

    found = read(monkeypatch, host(), store(), vm([disk(backing)])).inventory

    assert found.vms[0].has_snapshot


def test_an_nfs_share_keeps_its_kind(monkeypatch):
    values = {"summary__type": "NFS41", "summary__multipleHostAccess": True}
    found = read(monkeypatch, host(), store(info=vim.host.NasDatastoreInfo(), **values)).inventory

    assert (found.datastores[0].kind, found.datastores[0].shared) == ("NFS41", True)
    assert found.datastores[0].vmfs_uuid is None


def test_the_software_adapter_names_the_host_and_none_is_no_error(monkeypatch):
    hardware = vim.host.InternetScsiHba(iScsiName="iqn.hardware", isSoftwareBased=False)
    software = vim.host.InternetScsiHba(iScsiName="iqn.software", isSoftwareBased=True)
    found = read(
        monkeypatch,
        host(config__storageDevice__hostBusAdapter=[hardware, software]),
        host("host-2", "esx2"),
    ).inventory

    assert [each.iqn for each in found.hosts] == ["iqn.software", None]


def chain(*files, mode="persistent"):
    """The backing of a disk that is written to the first file; each lies on the next."""
    below = None
    for path in reversed(files):
        backing = flat(path)
        backing.diskMode = mode
        backing.parent = below
        below = backing
    return below


def snapshots(depth):
    """A tree of snapshots, one after the other, with the running state on the last."""
    tree = []
    for number in range(depth, 0, -1):
        tree = [
            vim.vm.SnapshotTree(
                snapshot=vim.vm.Snapshot(f"s-{number}"), name=f"s{number}", childSnapshotList=tree
            )
        ]
    return vim.vm.SnapshotInfo(currentSnapshot=vim.vm.Snapshot(f"s-{depth}"), rootSnapshotList=tree)


def only_vm(monkeypatch, disks, **values):
    return read(monkeypatch, host(), store(), vm(disks, **values)).inventory.vms[0]


def test_a_linked_clone_is_told_from_a_vm_with_snapshots(monkeypatch):
    two = chain("[ds] c/c.vmdk", "[ds] base/base.vmdk")
    clone = only_vm(monkeypatch, [disk(two)])
    assert (clone.linked_clone, clone.has_snapshot) == (True, True)

    with_snapshot = only_vm(monkeypatch, [disk(two)], snapshot=snapshots(1))
    assert (with_snapshot.linked_clone, with_snapshot.has_snapshot) == (False, True)

    three = chain("[ds] c/c-1.vmdk", "[ds] c/c.vmdk", "[ds] base/base.vmdk")
    both = only_vm(monkeypatch, [disk(three)], snapshot=snapshots(1))
    assert (both.linked_clone, both.has_snapshot) == (True, True)
    assert not only_vm(monkeypatch, [disk(three)], snapshot=snapshots(2)).linked_clone


def test_an_independent_disk_gets_no_delta_so_one_below_it_is_a_clones(monkeypatch):
    two = chain("[ds] c/c.vmdk", "[ds] base/base.vmdk", mode="independent_persistent")

    found = only_vm(monkeypatch, [disk(two)], snapshot=snapshots(1))

    assert found.linked_clone
    assert found.disks[0].mode == "independent_persistent"


def test_deltas_left_by_a_failed_consolidation_make_no_clone(monkeypatch):
    two = chain("[ds] c/c-000001.vmdk", "[ds] c/c.vmdk")

    found = only_vm(monkeypatch, [disk(two)], runtime__consolidationNeeded=True)

    assert (found.linked_clone, found.consolidation_needed) == (False, True)
    assert found.has_snapshot


def test_raw_mappings_have_their_mode(monkeypatch):
    modes = {}
    for mode in ("virtualMode", "physicalMode"):
        backing = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName="[ds] r/r.vmdk", datastore=vim.Datastore("datastore-1"), compatibilityMode=mode
        )
        found = only_vm(monkeypatch, [disk(backing)]).disks[0]
        modes[mode] = (found.rdm, found.rdm_mode)
    assert modes == {mode: (True, mode) for mode in modes}
    assert only_vm(monkeypatch, [disk(flat())]).disks[0].rdm_mode is None


def scsi(uuid, name):
    return vim.host.ScsiDisk(uuid=uuid, canonicalName=name, localDisk=False)


def raw(uuid):
    return vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[ds] r/r.vmdk",
        datastore=vim.Datastore("datastore-1"),
        compatibilityMode="virtualMode",
        lunUuid=uuid,
    )


def test_the_lun_of_a_raw_mapping_is_found_whatever_number_a_host_sees_it_under(monkeypatch):
    seen = {"config__storageDevice__scsiLun": [scsi("0200010000aaaa", "naa.aa")]}
    clash = {"config__storageDevice__scsiLun": [scsi("0200070000cccc", "naa.c1")]}
    again = {"config__storageDevice__scsiLun": [scsi("0200080000cccc", "naa.c2")]}
    luns = {}
    for uuid in ("0200010000aaaa", "0200990000aaaa", "0200990000bbbb", "0200990000cccc", None):
        hosts = host(**seen), host("host-2", "esx2", **clash), host("host-3", "esx3", **again)
        found = read(monkeypatch, *hosts, store(), vm([disk(raw(uuid))])).inventory
        (mapped,) = found.vms[0].disks
        assert mapped.lun_uuid == (uuid or "")
        luns[uuid] = mapped.lun
    assert luns == {
        "0200010000aaaa": "naa.aa",
        "0200990000aaaa": "naa.aa",
        "0200990000bbbb": "",
        "0200990000cccc": "",
        None: "",
    }


def test_the_files_below_a_disk_are_told_nearest_first(monkeypatch):
    files = ("[ds] c/c-2.vmdk", "[ds] c/c-1.vmdk", "[ds] c/c.vmdk")
    (found,) = only_vm(monkeypatch, [disk(chain(*files))], snapshot=snapshots(2)).disks
    assert found.below == files[1:]
    assert found.folders == {"[ds] c"}


def test_deltas_that_no_snapshot_explains_make_no_clone_in_the_own_folder(monkeypatch):
    two = chain("[ds] c/c-000001.vmdk", "[ds] c/c.vmdk")

    found = only_vm(monkeypatch, [disk(two)])

    assert (found.linked_clone, found.has_snapshot) == (False, True)


def test_a_vm_that_vcenter_has_no_contact_with_is_left_out(monkeypatch):
    lost = vm([disk(flat())], runtime__connectionState="disconnected")

    (left_out,) = read(monkeypatch, host(), store(), lost).inventory.left_out

    assert "no contact" in left_out.reason
