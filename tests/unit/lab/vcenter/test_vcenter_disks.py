"""VMFS headers, and the state file."""

import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "fakes"))

from atoll_lab.blueprint import HOSTS
from atoll_lab.vcenter.site import first_state
from atoll_lab.vcenter.state import load_state, save_state
from atoll_lab.vcenter.vmfs_header import read_volume
from vmfs_headers import SIZE, write_vmfs_headers

NAA = "naa.6001405" + "1" * 25
VMFS_PARTITION = bytes.fromhex("2AE031AA0F40DB119590000C2911D1B8")


def reader(path: Path):
    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read


def test_a_bare_volume_tells_label_uuid_and_its_device(tmp_path):
    uuid = write_vmfs_headers(tmp_path / "lun", NAA, "prod-1", 5)

    volume = read_volume(reader(tmp_path / "lun"))

    assert volume is not None
    assert (volume.label, volume.uuid, volume.ordinal) == ("prod-1", uuid, 0)
    assert volume.device_id == NAA.removeprefix("naa.")
    assert (volume.major_version, volume.size_bytes, volume.extent_count) == (6, SIZE, 1)


def test_a_volume_in_a_partition_is_found_by_the_table(tmp_path):
    uuid = write_vmfs_headers(tmp_path / "lun", NAA, "prod-1", 5, first_sector=2048)
    entry = bytearray(128)
    entry[:16] = VMFS_PARTITION
    struct.pack_into("<QQ", entry, 32, 2048, 4096)
    header = bytearray(512)
    header[:8] = b"EFI PART"
    struct.pack_into("<QII", header, 72, 2, 128, 128)
    with (tmp_path / "lun").open("r+b") as file:
        file.seek(512)
        file.write(header)
        file.seek(1024 + 128)  # the second entry
        file.write(entry)

    volume = read_volume(reader(tmp_path / "lun"))

    assert volume is not None
    assert volume.uuid == uuid


def test_a_further_extent_has_no_label(tmp_path):
    write_vmfs_headers(tmp_path / "lun", NAA, "wide", 5, ordinal=4, extents=2)

    volume = read_volume(reader(tmp_path / "lun"))

    assert volume is not None
    assert (volume.label, volume.ordinal, volume.extent_count) == ("", 4, 2)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 4096, b"\0" * 512 + b"EFI PART" + b"\xff" * 504]
)
def test_a_disk_without_vmfs_is_no_volume(tmp_path, content):
    with (tmp_path / "lun").open("wb") as file:
        file.truncate(SIZE)
        file.write(content)

    assert read_volume(reader(tmp_path / "lun")) is None


def test_state_is_read_back_as_it_was_written(tmp_path):
    state = first_state(HOSTS)
    state.hosts[0].portals.append("127.0.0.1:3260")

    save_state(tmp_path / "state.json", state)

    assert load_state(tmp_path / "state.json") == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_half_written_state_beside_the_real_one_is_ignored(tmp_path):
    state = first_state(HOSTS)
    save_state(tmp_path / "state.json", state)
    (tmp_path / "state.json.new").write_text('{"next_id": 1')

    assert load_state(tmp_path / "state.json") == state
    save_state(tmp_path / "state.json", state)


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path / "state.json") is None
