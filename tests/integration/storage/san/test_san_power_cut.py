"""After a power cut of the SAN server everything acknowledged is there, and served again."""

import random
from contextlib import closing

import pytest

from atoll.storage.identity import identity_of
from atoll_lab.iscsi import IscsiError, IscsiLun
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from san_system import HOST, MIB, SanSystem

pytestmark = pytest.mark.needs_root

BLOCK = 4096
LUNS = ("a", "b")


def test_a_power_cut_loses_nothing(system: SanSystem) -> None:
    engine = system.engine
    engine.create_group("cut")
    lun = engine.create_lun("cut", "a", 16 * MIB)
    engine.create_lun("cut", "b", 16 * MIB)
    written = {}
    session = system.connect("cut", "a")
    for number in range(40):
        data = random.Random(number).randbytes(BLOCK)
        # Each into a chunk of its own: what must not be lost is also where it was put.
        session.write(number * 65536, data)
        written[number * 65536] = data
        if number == 20:
            taken = engine.snapshot_group("cut", "s")
    before = engine.presentations()
    system.guest.power_cut()
    session.close()
    system.guest.boot()

    # Without Atoll, as the unit on the server does it.
    said = system.guest.shell.check(
        "PYTHONPATH=/usr/lib/atoll-san python3 -m atoll.storage.drivers.san.helper restore san pool"
    )
    assert "Served iqn." in said
    portal = before[0].portals[1]
    with IscsiLun(f"{portal.address}:{portal.port}", portal.target, 0, HOST) as session:
        assert session.inquiry().naa == lun.naa == identity_of(lun.volume).naa
        for offset, data in written.items():
            assert session.read(offset, BLOCK) == data, f"the write at {offset} is lost"

    engine = system.open()
    assert engine.reconcile() == []
    assert engine.presentations() == before
    assert engine.snapshots("cut") == [taken]
    with closing(engine.open_snapshot("cut", "a", "s")) as reader:
        for offset, data in written.items():
            expected = data if offset <= 20 * 65536 else bytes(BLOCK)
            assert reader.read(offset, BLOCK) == expected
    engine.delete_group("cut", force=True)


def test_atoll_serves_again_by_itself(system: SanSystem) -> None:
    engine = system.engine
    engine.create_group("again")
    engine.create_lun("again", "a", 16 * MIB)
    with system.connect("again", "a") as session:
        session.write(0, b"kept" * 1024)
    # What a reboot leaves of LIO.
    system.inside(
        "from atoll.storage.drivers.san.helper import backstores, targets\n"
        "for pool, _, volume, _ in list(backstores.every()):\n"
        "    targets.withdraw(pool, volume)\n"
    )
    assert any("iqn." in sentence for sentence in engine.reconcile())
    with system.connect("again", "a") as session:
        assert session.read(0, BLOCK) == b"kept" * 1024
    engine.delete_group("again", force=True)


@pytest.mark.soak
def test_power_cuts_under_load(system: SanSystem) -> None:
    engine = system.engine
    engine.create_group("load")
    for lun in LUNS:
        engine.create_lun("load", lun, 16 * MIB)
    for number in range(8):
        sessions = [system.connect("load", lun) for lun in LUNS]
        writer = OrderedWriter(sessions, flush=False)
        writer.start()
        for snapshot in range(number % 3 + 1):
            engine.snapshot_group("load", f"s{number}-{snapshot}")
        system.guest.power_cut()
        with pytest.raises(IscsiError):
            writer.end()
        for session in sessions:
            session.close()
        system.guest.boot()
        engine = system.open()
        engine.reconcile()
        assert engine.reconcile() == []
        taken = engine.snapshot_group("load", f"after{number}")
        assert len(engine.snapshots("load")) == number % 3 + 2
        found = []
        for lun in LUNS:
            with closing(engine.open_snapshot("load", lun, taken.name)) as reader:
                found.append(newest(reader))
        assert is_one_instant(found)
        assert found[-1] >= writer.written, "an acknowledged write is lost"
        for each in engine.snapshots("load"):
            engine.delete_snapshot("load", each.name)
        # The next writer begins at 1 again.
        for lun in LUNS:
            with system.connect("load", lun) as session:
                session.write(0, bytes(MIB))
    engine.delete_group("load", force=True)
