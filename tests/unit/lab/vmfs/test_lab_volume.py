"""What one can do to a lab volume, and that it adds up after each step."""

import os
from pathlib import Path

import pytest

from atoll.model.errors import PoolFullError, UnsupportedFormatError
from atoll_lab.vmfs import DiskExtent, Volume, check, format_volume
from atoll_lab.vmfs.volume import Layout

_MIB = 1 << 20
_GIB = 1 << 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    format_volume(path, 2 * _GIB, "lab-ds", bytes.fromhex("6001405a" * 4))
    return path


def _content(path: Path, size: int, *places: int) -> Path:
    """A sparse file with 100 KiB of random bytes at each place."""
    with path.open("wb") as file:
        file.truncate(size)
        for at in places:
            file.seek(at)
            file.write(os.urandom(100 << 10))
    return path


def _bytes_on_lun(image: Path, extents: list[DiskExtent], size: int) -> bytes:
    disk = bytearray(size)
    with image.open("rb") as file:
        for extent in extents:
            file.seek(extent.lun_offset)
            disk[extent.file_offset : extent.file_offset + extent.length] = file.read(extent.length)
    return bytes(disk)


def test_a_new_volume_is_empty_sparse_and_sound(image: Path) -> None:
    assert image.stat().st_size == 2 * _GIB
    assert image.stat().st_blocks * 512 < 16 * _MIB
    assert check(image) == []
    with Volume(image) as volume:
        assert volume.listdir() == []


def test_formatting_again_leaves_nothing_of_what_was_there(image: Path, tmp_path: Path) -> None:
    with Volume(image) as volume:
        volume.create_disk("/a.vmdk", 8 * _MIB, _content(tmp_path / "c", 8 * _MIB, 0), "thick")
    format_volume(image, 2 * _GIB, "again")
    with Volume(image) as volume:
        assert volume.listdir() == []
        extents = volume.create_disk("/b.vmdk", 8 * _MIB, None, "thick")
    assert not any(_bytes_on_lun(image, extents, 8 * _MIB))
    assert check(image) == []


@pytest.mark.parametrize("size", [0, 100, 3584, 3585, 65536, 65537, 3 * _MIB + 1])
def test_small_files_read_back_and_can_be_replaced(image: Path, size: int) -> None:
    first, second = os.urandom(size), os.urandom(size // 2 + 1)
    with Volume(image) as volume:
        volume.mkdir("/vm")
        volume.write_file("/vm/vm.vmx", first)
        assert volume.read_file("/vm/vm.vmx") == first
        volume.write_file("/vm/vm.vmx", second)
        assert volume.read_file("/vm/vm.vmx") == second
        assert volume.listdir("/vm") == ["vm.vmx"]
    assert check(image) == []


def test_a_thick_disk_is_one_run_even_behind_a_gap(image: Path, tmp_path: Path) -> None:
    content = _content(tmp_path / "c", 400 * _MIB, 5, 200 * _MIB, 400 * _MIB - (100 << 10))
    with Volume(image) as volume:
        volume.create_disk("/gap.vmdk", 10 * _MIB, None, "thick")
        volume.create_disk("/next.vmdk", 10 * _MIB, None, "thick")
        volume.delete("/gap.vmdk")
        extents = volume.create_disk("/big.vmdk", 400 * _MIB, content, "thick")
        assert [(e.file_offset, e.length) for e in extents] == [(0, 400 * _MIB)]
        assert volume.extents("/big.vmdk") == volume.extents("/big-flat.vmdk") == extents
    assert _bytes_on_lun(image, extents, 400 * _MIB) == content.read_bytes()
    assert image.stat().st_blocks * 512 < 32 * _MIB
    assert check(image) == []


@pytest.mark.parametrize("layout", ["thin", "fragmented", "lazy"])
def test_other_layouts_hold_the_same_bytes(image: Path, tmp_path: Path, layout: Layout) -> None:
    size = 350 * _MIB + 512
    content = _content(tmp_path / "c", size, 3 * _MIB - 7, 200 * _MIB, size - (100 << 10))
    with Volume(image) as volume:
        extents = volume.create_disk("/d.vmdk", size, content, layout)
    mapped = sum(extent.length for extent in extents)
    assert mapped == (4 * _MIB + 512 if layout == "thin" else size)
    assert len(extents) == 88 if layout == "fragmented" else len(extents) <= 3
    assert _bytes_on_lun(image, extents, size) == content.read_bytes()
    assert check(image) == []


def test_a_disk_on_reused_blocks_shows_nothing_old(image: Path, tmp_path: Path) -> None:
    with Volume(image) as volume:
        old = volume.create_disk(
            "/a.vmdk", 4 * _MIB, _content(tmp_path / "c", 4 * _MIB, 0), "thick"
        )
        volume.delete("/a.vmdk")
        new = volume.create_disk("/b.vmdk", 4 * _MIB, None, "thick")
    assert old == new
    assert not any(_bytes_on_lun(image, new, 4 * _MIB))


def test_a_disk_grows_in_place_and_past_what_its_descriptor_holds(image: Path) -> None:
    with Volume(image) as volume:
        volume.create_disk("/a.vmdk", 300 * _MIB, None, "thick")
        (grown,) = volume.grow_disk("/a.vmdk", 900 * _MIB)
        assert grown.length == 900 * _MIB
        assert b"RW 1843200 VMFS" in volume.read_file("/a.vmdk")
        volume.create_disk("/b.vmdk", _MIB, None, "thick")
        assert len(volume.grow_disk("/a.vmdk", 901 * _MIB)) == 2
        with pytest.raises(ValueError, match="does not shrink"):
            volume.grow_disk("/a.vmdk", 900 * _MIB)
        volume.create_disk("/t.vmdk", 300 * _MIB, None, "thin")
        assert volume.grow_disk("/t.vmdk", 100 * _GIB) == []
    assert check(image) == []


def test_a_moved_disk_lies_elsewhere_with_the_same_content(image: Path, tmp_path: Path) -> None:
    content = _content(tmp_path / "c", 200 * _MIB, 7, 150 * _MIB)
    for layout in ("fragmented", "thin", "lazy"):
        with Volume(image) as volume:
            before = volume.create_disk(f"/{layout}.vmdk", 200 * _MIB, content, layout)
            after = volume.move_disk(f"/{layout}.vmdk")
        used = {e.lun_offset + n for e in before for n in range(0, e.length, _MIB)}
        assert used.isdisjoint(e.lun_offset + n for e in after for n in range(0, e.length, _MIB))
        assert _bytes_on_lun(image, after, 200 * _MIB) == content.read_bytes()
        assert check(image) == []


def test_renaming_within_and_across_directories(image: Path) -> None:
    with Volume(image) as volume:
        volume.mkdir("/a")
        volume.mkdir("/b")
        volume.write_file("/a/x", b"1")
        volume.rename("/a/x", "/a/y")
        volume.rename("/a/y", "/b/z")
        volume.rename("/b", "/c")
        assert volume.listdir("/") == ["a", "c"]
        assert volume.listdir("/a") == []
        assert volume.read_file("/c/z") == b"1"
        volume.write_file("/c/w", b"2")
        with pytest.raises(FileExistsError):
            volume.rename("/c/z", "/c/w")
        with pytest.raises(OSError, match="another"):
            volume.rename("/a", "/c/a")
    assert check(image) == []


def test_deleting_gives_all_space_back_and_can_be_repeated(image: Path) -> None:
    with Volume(image) as volume:
        volume.mkdir("/vm")
    with Volume(image) as volume:
        for _ in range(3):
            volume.create_disk("/vm/a.vmdk", 900 * _MIB, None, "thick")
            volume.write_file("/vm/log", bytes(70000))
            with pytest.raises(OSError, match="not empty"):
                volume.delete("/vm")
            for path in ("/vm/a.vmdk", "/vm/log", "/vm/log", "/no/such", "/vm/a.vmdk"):
                volume.delete(path)
            assert volume.listdir("/vm") == []
        volume.delete("/vm")
        assert volume.listdir() == []
    assert check(image) == []


def test_a_full_volume_says_so_and_stays_as_it_was(image: Path) -> None:
    with Volume(image) as volume:
        volume.mkdir("/vm")
        with pytest.raises(PoolFullError, match="file blocks"):
            volume.create_disk("/vm/a.vmdk", 3 * _GIB, None, "thick")
        assert volume.listdir("/vm") == []
        assert volume.create_disk("/vm/a.vmdk", 3 * _GIB, None, "thin") == []
    assert check(image) == []


def test_running_out_of_sub_blocks_leaves_nothing_behind(image: Path) -> None:
    with Volume(image) as volume:
        volume.create_disk("/a.vmdk", 300 * _MIB, None, "thick")
        before = volume.extents("/a.vmdk")
        (free,) = volume._sub_blocks.free_runs()
        volume._sub_blocks.take([free])
        with pytest.raises(PoolFullError, match="sub-blocks"):
            volume.write_file("/f", bytes(60000))
        with pytest.raises(PoolFullError, match="sub-blocks"):
            volume.mkdir("/dir")
        with pytest.raises(PoolFullError, match="sub-blocks"):
            volume.grow_disk("/a.vmdk", 400 * _MIB)
        with pytest.raises(PoolFullError, match="sub-blocks"):
            volume.create_disk("/b.vmdk", 400 * _MIB, None, "thick")
        assert volume.extents("/a.vmdk") == before
        assert volume.listdir() == ["a-flat.vmdk", "a.vmdk"]
        volume._sub_blocks.release([free])
    assert check(image) == []


def test_many_names_in_one_directory_are_all_found(image: Path) -> None:
    names = [f"file-{n:03}-é" for n in range(120)]
    with Volume(image) as volume:
        volume.mkdir("/vm")
        for name in names:
            volume.write_file(f"/vm/{name}", name.encode())
        assert volume.listdir("/vm") == names
        for name in names[::2]:
            volume.delete(f"/vm/{name}")
        assert volume.listdir("/vm") == names[1::2]
        assert volume.read_file(f"/vm/{names[1]}") == names[1].encode()
    assert check(image) == []


def test_wrong_paths_are_told_apart(image: Path) -> None:
    with Volume(image) as volume:
        volume.write_file("/file", b"")
        volume.mkdir("/dir")
        with pytest.raises(FileExistsError):
            volume.mkdir("/dir")
        with pytest.raises(FileNotFoundError):
            volume.mkdir("/no/dir")
        with pytest.raises(NotADirectoryError):
            volume.listdir("/file")
        with pytest.raises(IsADirectoryError):
            volume.write_file("/dir", b"")
        with pytest.raises(FileNotFoundError):
            volume.extents("/none.vmdk")
        with pytest.raises(ValueError, match=r"\.vmdk"):
            volume.create_disk("/disk", _MIB, None)
        with pytest.raises(ValueError, match="whole sectors"):
            volume.create_disk("/disk.vmdk", 1000, None)
        with pytest.raises(ValueError, match="file name"):
            volume.write_file("/" + "x" * 128, b"")
    assert check(image) == []


def test_what_is_no_lab_volume_is_refused(tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    with blank.open("wb") as file:
        file.truncate(_GIB)
    for opened in (Volume, check):
        with pytest.raises(UnsupportedFormatError, match="format it first"):
            opened(blank)
    with pytest.raises(ValueError, match="too small"):
        format_volume(blank, 100 * _MIB, "x")
    with pytest.raises(ValueError, match="larger than the lab makes"):
        format_volume(blank, 64 << 40, "x")
    with pytest.raises(ValueError, match="127"):
        format_volume(blank, _GIB, "x" * 128)
    assert blank.stat().st_size == _GIB
