"""Name hashes and colliding names, against dissect's own."""

from pathlib import Path

from dissect.util.hash.jenkins import lookup8_quads
from dissect.vmfs.descriptor import _dir_name_hash
from hypothesis import given
from hypothesis import strategies as st

from atoll_lab.vmfs import Volume, check, format_volume
from atoll_lab.vmfs.name_hash import name_hash


@given(st.binary(min_size=256, max_size=256))
def test_the_padding_is_part_of_the_hash(key: bytes) -> None:
    name = key[:127].rstrip(b"\0")
    padded = bytearray(256)
    padded[: len(name)] = name
    for at in range((len(name) + 8) & 0xFFF8, 127, 8):
        padded[at : at + 8] = (0x739A75C28E61B017).to_bytes(8, "little")
    assert name_hash(name) == lookup8_quads(bytes(padded), 42)


@given(st.text(min_size=1, max_size=31).filter(lambda s: "\0" not in s))
def test_hashes_are_those_a_reader_looks_under(name: str) -> None:
    value = name_hash(name.encode("utf-8", "surrogatepass")) if name.isprintable() else None
    if value is not None:
        assert _dir_name_hash(name) == (value >> 16 & 0xFFFF, value % 16001)


def _colliding(count: int) -> list[str]:
    """Names that share a slot of the hash table of a directory other than the root."""
    slots: dict[int, list[str]] = {}
    number = 0
    while True:
        names = slots.setdefault(name_hash(f"n{number}".encode()) % 16001, [])
        names.append(f"n{number}")
        if len(names) == count:
            return names
        number += 1


def test_names_that_collide_are_all_found_and_leave_one_by_one(tmp_path: Path) -> None:
    image = tmp_path / "lun.img"
    format_volume(image, 1 << 30, "lab")
    names = _colliding(5)
    with Volume(image) as volume:
        volume.mkdir("/d")
        for name in names:
            volume.write_file(f"/d/{name}", name.encode())
    assert check(image) == []
    for gone, name in enumerate(names, 1):
        with Volume(image) as volume:
            volume.delete(f"/d/{name}")
            assert volume.listdir("/d") == sorted(names[gone:])
        assert check(image) == []
    with Volume(image) as volume:
        volume.write_file(f"/d/{names[0]}", b"back")
        assert volume.read_file(f"/d/{names[0]}") == b"back"
    assert check(image) == []
