"""VMware snapshots of a QEMU machine: all its disks stand still at one moment, and get it all back."""

import pytest

from atoll_lab.guests import qemu
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.qmp import Machine
from atoll_lab.guests.snapshots import QemuGuests

MIB = 1 << 20


@pytest.fixture
def machine(guest_place):
    """A machine named db1 with two disks and nothing on them."""
    run_dir = guest_place / "db1"
    run_dir.mkdir()
    disks = []
    for number in range(2):
        path = run_dir / f"{number}.raw"
        with path.open("wb") as file:
            file.truncate(8 * MIB)
        disks.append(qemu.FileDisk(path))
    yield qemu.start(qemu.GuestSpec("db1", 64 * MIB, tuple(disks)), run_dir)
    qemu.kill(run_dir)


def write(machine, number, pattern, offset=0):
    """What a guest would write to a disk, wherever its writes go now."""
    with Machine(machine.qmp_socket) as channel:
        device = next(
            each["qdev"]
            for each in channel.run("query-block")
            if (each.get("inserted") or {}).get("node-name", "").startswith(f"disk{number}")
        )
        for command in (f"write -P {pattern} {offset} 64k", "flush"):
            line = f'qemu-io -d {device} "{command}"'
            said = channel.run("human-monitor-command", command_line=line)
            assert said == ""


def first_byte(machine, number, offset=0):
    with (machine.run_dir / f"{number}.raw").open("rb") as file:
        file.seek(offset)
        return file.read(1)[0]


def deltas(machine):
    return sorted(path.name for path in machine.run_dir.glob(f"*{qemu.DELTA_SUFFIX}"))


def test_disks_stand_still_until_the_snapshot_is_removed(machine, guest_place):
    guests = QemuGuests(guest_place)
    for number in range(2):
        write(machine, number, 1)
    assert guests.take_snapshot("db1", False) is False
    assert deltas(machine) == ["disk0.delta.qcow2", "disk1.delta.qcow2"]
    for number in range(2):
        write(machine, number, 2)
        write(machine, number, 3, MIB)
    assert [first_byte(machine, number) for number in range(2)] == [1, 1]
    assert [first_byte(machine, number, MIB) for number in range(2)] == [0, 0]

    guests.merge_snapshot("db1")

    assert [first_byte(machine, number) for number in range(2)] == [2, 2]
    assert [first_byte(machine, number, MIB) for number in range(2)] == [3, 3]
    assert deltas(machine) == []
    # Writes reach the disks again, and all of it can be done once more.
    write(machine, 0, 4)
    assert first_byte(machine, 0) == 4
    guests.merge_snapshot("db1")
    guests.take_snapshot("db1", False)
    guests.merge_snapshot("db1")
    assert deltas(machine) == []


def test_a_second_snapshot_is_refused_and_the_first_stays(machine, guest_place):
    guests = QemuGuests(guest_place)
    guests.take_snapshot("db1", False)
    with pytest.raises(LabGuestError, match="has a snapshot already"):
        guests.take_snapshot("db1", False)
    write(machine, 0, 5)
    assert first_byte(machine, 0) == 0
    guests.merge_snapshot("db1")
    assert first_byte(machine, 0) == 5


def test_a_guest_whose_tools_do_not_answer_gets_a_plain_snapshot(machine, guest_place, monkeypatch):
    monkeypatch.setattr("atoll_lab.guests.snapshots._SYNC_SECONDS", 0.5)
    guests = QemuGuests(guest_place)
    assert guests.take_snapshot("db1", True) is False
    assert len(deltas(machine)) == 2
    guests.merge_snapshot("db1")


def test_vms_without_a_guest_are_only_told_of(guest_place):
    guests = QemuGuests(guest_place)
    assert guests.take_snapshot("app1", True) is True
    guests.merge_snapshot("app1")
    assert guests.guestinfo("app1") == {}
    # One that could run and does not has nothing to quiesce.
    (guest_place / "app1").mkdir()
    assert guests.take_snapshot("app1", True) is False


def test_guestinfo_is_what_was_set_last(guest_place):
    (guest_place / "db1").mkdir()
    (guest_place / "db1" / "rpc.log").write_text(
        'info-set guestinfo.atoll.account {"a": 1}\n'
        "info-get guestinfo.ip\n"
        'info-set guestinfo.atoll.account {"a": 2}\n'
        "info-set other.key 1\n"
        "info-set guestinfo.unfinished"
    )
    assert QemuGuests(guest_place).guestinfo("db1") == {"guestinfo.atoll.account": '{"a": 2}'}
