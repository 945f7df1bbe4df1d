"""Disks come and go while the pool is in use."""

import pytest

from atoll.model.errors import PoolFullError, StorageConflictError
from san_system import MIB, SanSystem

pytestmark = pytest.mark.needs_root


def test_a_disk_comes_and_goes(system: SanSystem) -> None:
    engine, disk = system.engine, system.guest.disks[-1]
    before = engine.capacity()
    system.guest.shell.check(f"mke2fs -q {disk} 64m")
    with pytest.raises(StorageConflictError, match="may hold something"):
        engine.add_device(disk)
    system.guest.shell.check(f"wipefs -q -a {disk}")
    engine.add_device(disk)
    engine.add_device(disk)
    assert disk in {each.path for each in engine.devices()}
    grown = system.open().capacity()
    assert grown.total_bytes > before.total_bytes
    assert grown.free_bytes > before.free_bytes

    # Something on it that must move: the pool takes of the new disk when it needs to.
    system.guest.shell.check(f"lvextend -q -l +8 san/pool {disk}")
    [device] = [each for each in engine.devices() if each.path == disk]
    assert device.used_bytes == 32 * MIB
    engine.create_group("moving")
    engine.create_lun("moving", "a", 16 * MIB)
    with system.connect("moving", "a") as session:
        session.write(0, b"kept" * 1024)
        engine.remove_device(disk)
        engine.remove_device(disk)
        assert session.read(0, 4096) == b"kept" * 1024
    assert disk not in {each.path for each in engine.devices()}
    engine.delete_group("moving", force=True)


def test_a_disk_that_others_have_no_room_for_stays(system: SanSystem) -> None:
    engine = system.engine
    first = system.guest.disks[0]
    room = system.guest.shell.check("vgs --noheadings --nosuffix --units b -o vg_free san")
    system.guest.shell.check("lvcreate -q -y -Wn -Zn -n filler -l 100%FREE san")
    try:
        with pytest.raises(PoolFullError, match="nothing was moved"):
            engine.remove_device(first)
    finally:
        system.guest.shell.check("lvremove -q -y san/filler")
    assert first in {each.path for each in engine.devices()}
    assert system.guest.shell.check("vgs --noheadings --nosuffix --units b -o vg_free san") == room


def test_what_is_no_disk_is_refused(system: SanSystem) -> None:
    with pytest.raises(StorageConflictError, match="is no disk"):
        system.engine.add_device("/dev/nonsense")
    system.engine.remove_device("/dev/nonsense")
