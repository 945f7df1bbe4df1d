"""Reading a LUN over several portals, some of which die."""

import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Portal
from atoll.storage.backend import Chap
from atoll.storage.initiator import (
    ChapRefusedError,
    InitiatorRefusedError,
    IscsiError,
    IscsiReader,
    TargetUnreachableError,
    WrongLunError,
)
from tcp_relay import TcpRelay
from tgt_site import HOST, MIB, OTHER, TgtSite, tgt_site

SIZE = 8 * MIB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TgtSite]:
    with tgt_site(tmp_path) as one:
        one.add("a", SIZE)
        one.serve()
        yield one


@pytest.fixture
def content(site: TgtSite) -> bytes:
    """What LUN a holds: 4 MiB that is never the same twice, a hole of 2, and 2 more."""
    data = Random(7).randbytes(4 * MIB)
    with site.connect("a") as lun:
        lun.write(0, data)
        lun.write(6 * MIB, data[: 2 * MIB])
    return data + bytes(2 * MIB) + data[: 2 * MIB]


def portal(site: TgtSite, name: str = "a") -> Portal:
    return site.targets.portals(site.group, site.exports[name])[0]


def test_reads_exactly(site: TgtSite, content: bytes) -> None:
    reader = IscsiReader([portal(site)], HOST)
    assert isinstance(reader, BlockReader)
    assert reader.size_bytes == SIZE
    assert reader.read(0, SIZE) == content
    assert reader.read(1, 3) == content[1:4]
    assert reader.read(4095, 4098) == content[4095 : 4095 + 4098]
    assert reader.read(SIZE - 5, 100) == content[-5:]
    assert reader.read(SIZE, 10) == b""
    assert reader.read(5, 0) == b""
    reader.close()
    reader.close()
    with pytest.raises(IscsiError, match="closed"):
        reader.read(0, 512)
    with pytest.raises(IscsiError, match="closed"):
        next(reader.read_many([Extent(0, 512)]))


def test_many_extents_come_in_order_and_whole(site: TgtSite, content: bytes) -> None:
    random = Random(3)
    places = sorted(random.sample(range(SIZE // 1024), 700))
    extents = [Extent(place * 1024, random.randrange(1, 1024)) for place in places]
    extents += [Extent(SIZE - 3 * MIB, 3 * MIB), Extent(SIZE - 10, 4096)]
    reader = IscsiReader([portal(site)], HOST, connections=3)
    copied: dict[int, bytes] = {}
    last = -1
    for offset, data in reader.read_many(extents[:-2]):
        assert offset > last
        copied[offset], last = data, offset
    assert copied == {each.offset: content[each.offset : each.end] for each in extents[:-2]}
    long = list(reader.read_many([extents[-2]]))
    assert b"".join(data for _, data in long) == content[-3 * MIB :]
    assert list(reader.read_many([extents[-1]])) == [(SIZE - 10, content[-10:])]
    # Whoever stops half-way leaves nothing behind that would hang.
    for _ in reader.read_many([Extent(0, SIZE)]):
        break
    assert list(reader.read_many([])) == []
    reader.close()


def test_holes_are_what_the_target_tells(site: TgtSite, content: bytes) -> None:
    reader = IscsiReader([portal(site)], HOST)
    assert list(reader.holes()) == [Extent(4 * MIB, 2 * MIB)]
    for hole in reader.holes():
        assert not any(content[hole.offset : hole.end])
    reader.close()


@pytest.mark.parametrize("death", ["reset", "silence"])
def test_reads_go_on_when_a_portal_dies(site: TgtSite, content: bytes, death: str) -> None:
    with TcpRelay(portal(site)) as first, TcpRelay(portal(site)) as second:
        reader = IscsiReader(
            [first.portal, second.portal], HOST, timeout_seconds=2, patience_seconds=0
        )
        reading = reader.read_many([Extent(0, SIZE)] * 3)
        got = [next(reading)]
        getattr(first, death)()
        got += reading
        assert b"".join(data for _, data in got) == content * 3
        getattr(second, death)()
        with pytest.raises(TargetUnreachableError):
            reader.read(0, 512)
        reader.close()


def test_sessions_are_spread_over_the_portals(site: TgtSite, content: bytes) -> None:
    with TcpRelay(portal(site)) as first, TcpRelay(portal(site)) as second:
        reader = IscsiReader([first.portal, second.portal], HOST, connections=2)
        assert sum(len(data) for _, data in reader.read_many([Extent(0, SIZE)])) == len(content)
        assert (first.connections, second.connections) == (1, 1)
        reader.close()


def test_threads_share_a_reader(site: TgtSite, content: bytes) -> None:
    reader = IscsiReader([portal(site)], HOST)
    wrong: list[int] = []

    def read(seed: int) -> None:
        random = Random(seed)
        for _ in range(100):
            offset = random.randrange(SIZE)
            length = random.randrange(1, 10000)
            if reader.read(offset, length) != content[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    reader.close()


def test_portals_of_different_luns_are_not_mixed(site: TgtSite, content: bytes) -> None:
    site.add("b", SIZE)
    site.serve()
    with TcpRelay(portal(site)) as first:
        reader = IscsiReader(
            [first.portal, portal(site, "b")], HOST, connections=1, patience_seconds=0
        )
        assert reader.read(0, 4096) == content[:4096]
        first.reset()
        with pytest.raises(StorageUnreachableError):
            reader.read(0, 4096)
        reader.close()
    with pytest.raises(WrongLunError):
        IscsiReader([portal(site, "b")], HOST, naa=site.exports["a"].identity.naa)


def test_who_is_not_let_in_hears_why_at_once(site: TgtSite) -> None:
    with pytest.raises(InitiatorRefusedError):
        IscsiReader([portal(site)], OTHER)
    account = Chap("reader", "secret-of-reader")
    site.add("a", SIZE, chap={HOST: account})
    site.serve()
    with pytest.raises(ChapRefusedError):
        IscsiReader([portal(site)], HOST)
    reader = IscsiReader([portal(site)], HOST, chap=account)
    assert len(reader.read(0, 4096)) == 4096
    reader.close()
