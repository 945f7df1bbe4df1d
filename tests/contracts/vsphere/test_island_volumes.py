"""Copies of volumes on the island's host, from the rescan to the last trace, over the API."""

from pathlib import Path

import pytest

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.client import VCenter
from atoll.vsphere.island_volumes import IslandVolumes
from atoll_lab.vcenter.control import NewDisk
from vmfs_headers import write_vmfs_headers
from vsphere_site import ESX1, ISLAND, MIB, NAA1, SimulatedSite

COPY = "naa.6001405" + "c" * 25
FIRST, SECOND = "naa.6001405" + "d" * 25, "naa.6001405" + "e" * 25


@pytest.fixture
def island(vcenter: VCenter) -> IslandVolumes:
    return vcenter.island_volumes(ISLAND.name)


@pytest.fixture
def copied(site: SimulatedSite, tmp_path: Path) -> str:
    """A copy of vmfs1 on a LUN of its own, which the island may see."""
    write_vmfs_headers(tmp_path / "copy", NAA1, "vmfs1", 1)
    site.fabric.add(tmp_path / "copy", COPY)
    site.fabric.present(COPY, ISLAND.iqn)
    return COPY


def test_a_copy_becomes_a_volume_of_its_own(site, island, copied):
    assert island.copies([COPY]) == [], "nobody has looked yet"
    island.rescan()
    (copy,) = island.copies([COPY])
    assert (copy.label, copy.naas, copy.obstacle) == ("vmfs1", (COPY,), "")
    assert island.copies([NAA1]) == [], "not one of those asked for"
    assert island.volumes([COPY]) == []

    island.take_in(copy)

    assert island.copies([COPY]) == []
    (volume,) = island.volumes([COPY])
    assert volume.naas == (COPY,)
    assert volume.datastore.startswith("snap-")
    assert volume.datastore.endswith("-vmfs1")
    assert volume.uuid != site.uuids["vmfs1"]
    island.rescan()
    assert island.volumes([COPY]) == [volume], "the signature is on the LUN"


def test_a_volume_over_several_luns_is_taken_in_whole(site, island, tmp_path):
    for number, naa in enumerate((FIRST, SECOND)):
        path = tmp_path / f"extent{number}"
        write_vmfs_headers(path, NAA1[:-1] + str(number + 3), "wide", 7, number, 2)
        site.fabric.add(path, naa)
    site.fabric.present(FIRST, ISLAND.iqn)
    island.rescan()
    (copy,) = island.copies([FIRST, SECOND])
    assert copy.obstacle == "some of its extents are missing"
    site.fabric.present(SECOND, ISLAND.iqn)
    island.rescan()
    (copy,) = island.copies([FIRST])
    assert copy.obstacle == "some of its extents are missing", "not among those asked for"
    (copy,) = island.copies([FIRST, SECOND])
    island.take_in(copy)
    (volume,) = island.volumes([FIRST])
    assert volume.naas == (FIRST, SECOND)


def test_a_copy_that_cannot_be_written_stays_a_copy(site, island, tmp_path):
    write_vmfs_headers(tmp_path / "copy", NAA1, "vmfs1", 1)
    site.fabric.add(tmp_path / "copy", COPY, read_only=True)
    site.fabric.present(COPY, ISLAND.iqn)
    island.rescan()
    (copy,) = island.copies([COPY])
    with pytest.raises(VCenterOperationError, match=r"resignature the copy of vmfs1.*read-only"):
        island.take_in(copy)
    assert island.copies([COPY]) == [copy]


def test_who_sees_a_lun_is_told(site, vcenter, island, copied):
    island.rescan()
    assert island.seen_by([COPY]) == {ISLAND.name: (COPY,)}
    site.fabric.present(COPY, ISLAND.iqn, ESX1.iqn)
    vcenter.rescan(ESX1.name)
    assert island.seen_by([COPY]) == {ISLAND.name: (COPY,), ESX1.name: (COPY,)}


def test_letting_go_leaves_no_trace(site, vcenter, island, copied):
    island.rescan()
    island.take_in(island.copies([COPY])[0])
    for _ in range(2):
        island.let_go([COPY])
    assert island.volumes([COPY]) == []
    island.rescan()
    assert island.volumes([COPY]) == [], "a LUN that is off mounts nothing"
    assert island.copies([COPY]) == []
    site.fabric.present(COPY)
    island.rescan()
    assert island.seen_by([COPY]) == {}
    for _ in range(2):
        island.forget([COPY])
    site.fabric.present(COPY, ISLAND.iqn)
    island.rescan()
    assert island.volumes([COPY]), "forgotten, it is a LUN like any other"
    assert {store.name for store in vcenter.inventory().datastores} >= {"vmfs1", "vmfs2"}


def test_a_volume_with_a_vm_on_it_stays(site, vcenter, island, copied):
    island.rescan()
    island.take_in(island.copies([COPY])[0])
    (volume,) = island.volumes([COPY])
    disk = NewDisk(2000, "Hard disk 1", "db1/db1.vmdk", 8 * MIB, volume.datastore)
    site.control.add_vm("guest", volume.datastore, "g/g.vmx", [disk], ISLAND.name, "debian")
    with pytest.raises(VCenterOperationError, match="unmount datastore"):
        island.let_go([COPY])
    assert island.volumes([COPY]) == [volume]
    assert island.seen_by([COPY]) == {ISLAND.name: (COPY,)}
    site.control.remove_vm("guest")
    island.let_go([COPY])


def test_a_host_that_is_not_there_is_named(vcenter):
    with pytest.raises(VCenterOperationError, match=r"no host called esx9.*island1\.lab"):
        vcenter.island_volumes("esx9").rescan()
