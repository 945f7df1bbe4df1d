"""One tgtd at several addresses, and exports that can only be read."""

from pathlib import Path

import pytest

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.initiator import (
    IscsiReader,
    ScsiCommandError,
    TargetUnreachableError,
    discover,
)
from atoll.storage.targets.tgt.tgt_socket import Mode, Operation, TgtSocket
from tgt_site import HOST, MIB, TgtSite, tgt_site

TWO = ("127.0.0.1", "127.0.0.2")


def cut(site: TgtSite, portal: str) -> None:
    """Close an address of the daemon and end what is connected over it."""
    management = TgtSocket(site.run / f"{site.group}.tgt")
    management.call(Operation.DELETE, Mode.PORTAL, parameters=f"portal={portal}")


def test_both_addresses_lead_to_the_same_lun(tmp_path: Path) -> None:
    with tgt_site(tmp_path, *TWO) as site:
        site.add("a")
        site.serve()
        first, second = site.portals("a")
        assert first.rpartition(":")[2] == second.rpartition(":")[2]
        assert {first.partition(":")[0], second.partition(":")[0]} == set(TWO)
        with site.connect("a", portal=0) as one, site.connect("a", portal=1) as other:
            assert one.inquiry() == other.inquiry()
            one.write(0, b"1" * 512)
            assert other.read(0, 512) == b"1" * 512
            other.write(0, b"2" * 512)
            assert one.read(0, 512) == b"2" * 512
        for portal in (first, second):
            (target,) = discover(portal, HOST)
            assert target.portals == (portal,)  # tgtd tells the one it was asked at
        assert site.serve() == []


def test_one_path_is_cut_and_the_other_goes_on(tmp_path: Path) -> None:
    with tgt_site(tmp_path, *TWO) as site:
        site.add("a")
        site.serve()
        with site.connect("a", portal=1, reconnect=False) as staying:
            staying.write(0, b"1" * 512)
            portals = site.targets.portals(site.group, site.exports["a"])
            reader = IscsiReader(portals, HOST)
            cut(site, site.portals("a")[0])
            with pytest.raises(TargetUnreachableError):
                site.connect("a", portal=0)
            staying.write(0, b"2" * 512)
            assert reader.read(0, 512) == b"2" * 512
            reader.close()
            assert site.serve() != []
            assert staying.read(0, 512) == b"2" * 512
        with site.connect("a", portal=0) as back:
            assert back.read(0, 512) == b"2" * 512
        assert site.serve() == []


def test_an_address_more_is_added_under_open_sessions(tmp_path: Path) -> None:
    with tgt_site(tmp_path, TWO[0]) as site:
        site.add("a")
        site.serve()
        with site.connect("a", reconnect=False) as lun:
            site.targets = site.targets_at(*TWO)
            assert site.serve() != []
            lun.write(0, b"1" * 512)
            with site.connect("a", portal=1) as other:
                assert other.read(0, 512) == b"1" * 512
            site.targets = site.targets_at(TWO[1])
            with pytest.raises(StorageConflictError, match=r"served at 127\.0\.0\.1:"):
                site.serve()
            lun.read(0, 512)


def test_an_address_that_is_not_ours_is_told(tmp_path: Path) -> None:
    with tgt_site(tmp_path, "127.0.0.1", "192.0.2.1") as site:
        site.add("a")
        site.notes.put_note(f"port:{site.group}", "23359")
        with pytest.raises(StorageUnreachableError, match=r"192\.0\.2\.1:23359"):
            site.serve()
        assert site.targets.process(site.group) is None


def test_read_only_exports_take_no_writes(tmp_path: Path) -> None:
    with tgt_site(tmp_path) as site:
        site.add("a")
        site.serve()
        with site.connect("a") as lun:
            lun.write(0, b"1" * MIB)
        before = site.image("a").read_bytes()
        site.add("a", read_only=True)
        assert site.serve() != []
        assert site.serve() == []
        with site.connect("a") as lun:
            for attempt in (
                lambda: lun.write(0, b"2" * 512),
                lambda: lun.unmap(0, 4096),
            ):
                with pytest.raises(ScsiCommandError) as refused:
                    attempt()
                assert refused.value.sense == (7, 0x2700)  # data protect, write protected
            assert lun.read(0, MIB) == b"1" * MIB
        assert site.image("a").read_bytes() == before
        site.add("a")
        site.serve()
        with site.connect("a") as lun:
            lun.write(0, b"2" * 512)
