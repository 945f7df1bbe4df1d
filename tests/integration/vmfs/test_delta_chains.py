"""Disks with VMware snapshots: Atoll's maps against QEMU, dissect and the content that was written."""

import gzip
import random
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from atoll.blocks.changes import changed_disk_extents
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import FileReader, MappedReader
from atoll.blocks.vmfs import open_volumes
from atoll.model.errors import AtollError, UnsupportedFormatError
from atoll.model.extents import Extent, merge
from atoll_lab.vmfs import Volume, format_volume
from atoll_lab.vmfs.volume import Layout
from delta_chains import (
    LAYOUTS,
    Chain,
    add_delta,
    base,
    by_dissect,
    by_qemu,
    put_delta,
    put_on_volume,
    qemu_raw,
)
from sparse_deltas import SE_HEADER_BYTES, UNMAPPED, descriptor, write_cowd, write_sesparse

_DATA = Path(__file__).parents[2] / "data" / "vmdk"
_MIB = 1 << 20
_SIZE = 18 * _MIB + 3 * 512
KINDS = ("SESPARSE", "VMFSSPARSE")

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is missing")


def on_volume(image: Path, chain: Chain, layouts: Sequence[Layout] = LAYOUTS) -> Path:
    format_volume(image, 560 * _MIB, "deltas")
    with Volume(image) as volume:
        volume.mkdir("/vm")
        put_on_volume(volume, chain, "/vm", layouts)
    return image


def disk_map(image: Path, name: str, raw: DiskMap | None = None) -> DiskMap:
    reader = FileReader(image)
    try:
        (volume,) = open_volumes({"lun": reader})
        return volume.disk_map(f"/vm/{name}", raw)
    finally:
        reader.close()


def content(image: Path, disk: DiskMap) -> bytes:
    reader = FileReader(image)
    try:
        return MappedReader(disk, {"lun": reader}).read(0, disk.size_bytes)
    finally:
        reader.close()


def random_chain(
    folder: Path, rng: random.Random, levels: int, kinds=KINDS, size_bytes: int = _SIZE
) -> Chain:
    folder.mkdir()
    chain = base(folder, size_bytes, rng)
    for _ in range(levels):
        add_delta(chain, rng.choice(kinds), rng)
    return chain


@pytest.mark.parametrize("seed", range(6))
def test_a_random_chain_reads_as_qemu_reads_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    chain = random_chain(tmp_path / "plain", rng, levels=1 + seed % 4)
    assert by_qemu(chain) == chain.content
    image = on_volume(tmp_path / "lun.img", chain)
    assert content(image, disk_map(image, chain.top)) == chain.content
    middle = chain.names[len(chain.names) // 2]
    assert content(image, disk_map(image, middle)) == by_qemu(chain, middle)


def test_a_delta_that_esx_wrote_lies_on_a_disk_of_ours(tmp_path: Path) -> None:
    size, rng = 512 * _MIB, random.Random(6)
    places = (0, 17 * _MIB, 300 * _MIB + 512, size - _MIB)
    with (tmp_path / "vm-flat.vmdk").open("wb") as flat:
        flat.truncate(size)
        for at in places:
            flat.seek(at)
            flat.write(rng.randbytes(_MIB))
    file = "vm-000001-sesparse.vmdk"
    with gzip.open(_DATA / "sesparse.vmdk.gz") as packed:
        (tmp_path / file).write_bytes(packed.read())
    text = descriptor("vm-flat.vmdk", "VMFS", size, "00000001")
    (tmp_path / "vm.vmdk").write_bytes(text)
    text = descriptor(file, "SESPARSE", size, "00000002", ("vm.vmdk", "00000001"))
    (tmp_path / "vm-000001.vmdk").write_bytes(text)
    chain = Chain(tmp_path, size, ["vm.vmdk", "vm-000001.vmdk"], ["vm-flat.vmdk", file], b"")
    image = on_volume(tmp_path / "lun.img", chain, ("thin", "fragmented"))
    disk, lun = disk_map(image, chain.top), FileReader(image)
    ours, theirs = MappedReader(disk, {"lun": lun}), FileReader(qemu_raw(chain))
    assert ours.read(0, 16 * _MIB) == b"a" * (16 * _MIB)
    for at in (*places, 15 * _MIB + 512, 100 * _MIB):
        length = min(2 * _MIB, size - at)
        assert ours.read(at, length) == theirs.read(at, length), at
    lun.close()
    theirs.close()


@pytest.mark.parametrize("kind", KINDS)
def test_dissect_is_of_the_same_opinion_but_for_unmapped_grains(tmp_path: Path, kind: str) -> None:
    rng = random.Random(5)
    chain = random_chain(tmp_path / "plain", rng, 0)
    for number in (1, 2):
        grains = {rng.randrange(4500): rng.randbytes(4096 if kind == "SESPARSE" else 512)}
        put_delta(
            chain,
            kind,
            {**grains, 17: b"\1" * (4096 if kind == "SESPARSE" else 512)},
            rng,
            f"vm-{number:06d}",
        )
    image = on_volume(tmp_path / "lun.img", chain)
    assert by_dissect(chain) == content(image, disk_map(image, chain.top)) == chain.content
    if kind == "SESPARSE":
        put_delta(chain, kind, {0: UNMAPPED}, rng, "vm-000003")
        image = on_volume(tmp_path / "lun2.img", chain)
        ours = content(image, disk_map(image, chain.top))
        assert ours == by_qemu(chain) == chain.content
        assert ours[:4096] == bytes(4096) != by_dissect(chain)[:4096]


def test_what_qemu_itself_writes_into_a_redo_log_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(11)
    chain = random_chain(tmp_path / "plain", rng, 0)
    file = chain.folder / "vm-000001-delta.vmdk"
    write_cowd(file, chain.size_bytes, {}, rng, all_tables=True)
    (chain.folder / "vm-000001.vmdk").write_bytes(
        descriptor(file.name, "VMFSSPARSE", chain.size_bytes, "00000002", ("vm.vmdk", "00000001"))
    )
    writes = [(rng.randrange(chain.size_bytes // 512 - 200), rng.randrange(1, 200), n + 1)
              for n in range(12)]  # fmt: skip
    commands = [
        argument
        for at, length, value in writes
        for argument in ("-c", f"write -P {value} {at * 512} {length * 512}")
    ]
    subprocess.run(
        ["qemu-io", "-f", "vmdk", *commands, str(chain.folder / "vm-000001.vmdk")],
        check=True,
        capture_output=True,
    )
    expected = bytearray(chain.content)
    for at, length, value in writes:
        expected[at * 512 : (at + length) * 512] = bytes([value]) * (length * 512)
    chain.names.append("vm-000001.vmdk")
    chain.files.append(file.name)
    image = on_volume(tmp_path / "lun.img", chain)
    assert content(image, disk_map(image, chain.top)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_increment_holds_every_byte_that_changed(tmp_path: Path, kind: str) -> None:
    rng = random.Random(21)
    chain = random_chain(tmp_path / "plain", rng, 1, (kind,))
    before = on_volume(tmp_path / "before.img", chain)
    old, was = disk_map(before, chain.top), chain.content
    states = {
        "more grains": lambda: add_delta(_without_top(chain), kind, rng, 30),
        "one more snapshot": lambda: add_delta(chain, kind, rng, 9),
        "back to the base": lambda: _without_top(_without_top(chain)),
    }
    for name, change in states.items():
        change()
        after = tmp_path / "after.img"
        subprocess.run(["cp", "--sparse=always", str(before), str(after)], check=True)
        with Volume(after) as volume:
            for file in volume.listdir("/vm"):
                volume.delete(f"/vm/{file}")
            put_on_volume(volume, chain, "/vm")
        now = content(after, new := disk_map(after, chain.top))
        assert now == chain.content, name
        found = changed_disk_extents(old, new, {"lun": _lun_changes(before, after)})
        built = bytearray(was)
        for extent in found:
            built[extent.offset : extent.end] = now[extent.offset : extent.end]
        assert bytes(built) == now, name


def _without_top(chain: Chain) -> Chain:
    """Take the newest delta away again; the content is then QEMU's."""
    chain.names.pop()
    chain.files.pop()
    chain.content = by_qemu(chain)
    return chain


def _lun_changes(old: Path, new: Path) -> list[Extent]:
    step = 64 << 10
    with old.open("rb") as a, new.open("rb") as b:
        found, at = [], 0
        while piece := b.read(step):
            if a.read(step) != piece:
                found.append(Extent(at, len(piece)))
            at += step
    return merge(found)


def test_a_raw_mapping_with_a_snapshot_lies_on_both_luns(tmp_path: Path) -> None:
    rng = random.Random(3)
    chain = random_chain(tmp_path / "plain", rng, 1, ("SESPARSE",))
    raw = tmp_path / "raw.img"
    shutil.copy(chain.folder / "vm-flat.vmdk", raw)
    with raw.open("r+b") as file:
        file.truncate(chain.size_bytes + _MIB)
    text = descriptor("vm-rdm.vmdk", "VMFSRDM", chain.size_bytes, "00000001")
    (chain.folder / "vm.vmdk").write_bytes(text)
    image = on_volume(tmp_path / "lun.img", chain)
    luns = {"lun": FileReader(image), "raw": FileReader(raw)}
    below = DiskMap.of(raw.stat().st_size, ("raw",), [(0, raw.stat().st_size, 0, 0)])
    (volume,) = open_volumes({"lun": luns["lun"]})
    disk = volume.disk_map(f"/vm/{chain.top}", below)
    assert disk.size_bytes == chain.size_bytes and set(disk.luns) == {"lun", "raw"}
    assert MappedReader(disk, luns).read(0, disk.size_bytes) == chain.content
    with pytest.raises(UnsupportedFormatError, match="raw device mapping"):
        volume.disk_map(f"/vm/{chain.top}")
    with pytest.raises(UnsupportedFormatError, match="of a LUN that has 512"):
        volume.disk_map(f"/vm/{chain.top}", DiskMap.of(512, ("raw",), [(0, 512, 0, 0)]))
    for reader in luns.values():
        reader.close()


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Chain]:
    folder = tmp_path_factory.mktemp("links")
    chain = random_chain(folder / "plain", random.Random(2), 2)
    return on_volume(folder / "lun.img", chain), chain


def replaced(image: Path, tmp_path: Path, files: dict[str, bytes]) -> Path:
    after = tmp_path / "changed.img"
    subprocess.run(["cp", "--sparse=always", str(image), str(after)], check=True)
    with Volume(after) as volume:
        for name, data in files.items():
            volume.write_file(f"/vm/{name}", data)
    return after


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("parentCID=00000002", "parentCID=00000009", "content id"),
        ('Hint="vm-000001.vmdk"', 'Hint="vm-000002.vmdk"', "content id|no end"),
        ('Hint="vm-000001.vmdk"', 'Hint="/vmfs/volumes/x/base/base.vmdk"', "another folder"),
        ('Hint="vm-000001.vmdk"', 'Hint="../base/base.vmdk"', "another folder"),
        ('Hint="vm-000001.vmdk"', 'Hint="gone.vmdk"', "has no /vm/gone.vmdk"),
        ('parentFileNameHint="vm-000001.vmdk"\n', "", "does not say which"),
        ('isNativeSnapshot="no"', 'isNativeSnapshot="yes"', "native"),
        (f"RW {_SIZE // 512}", f"RW {_SIZE // 512 + 8}", "disk of"),
    ],
)
def test_a_broken_link_is_named(
    links: tuple[Path, Chain], tmp_path: Path, old: str, new: str, says: str
) -> None:
    image, chain = links
    text = (chain.folder / chain.top).read_text()
    assert old in text
    image = replaced(image, tmp_path, {chain.top: text.replace(old, new).encode()})
    with pytest.raises(AtollError, match=says):
        disk_map(image, chain.top)


def test_an_absolute_hint_into_the_own_folder_is_followed(
    links: tuple[Path, Chain], tmp_path: Path
) -> None:
    image, chain = links
    reader = FileReader(image)
    (volume,) = open_volumes({"lun": reader})
    reader.close()
    text = (chain.folder / chain.top).read_text()
    full = f'Hint="/vmfs/volumes/{volume.uuid}/vm/vm-000001.vmdk"'
    changed = text.replace('Hint="vm-000001.vmdk"', full).encode()
    image = replaced(image, tmp_path, {chain.top: changed})
    assert content(image, disk_map(image, chain.top)) == chain.content


def test_chains_end_where_vsphere_ends_them(tmp_path: Path) -> None:
    chain = random_chain(tmp_path / "plain", random.Random(1), 0)
    for number in range(1, 34):
        put_delta(chain, "VMFSSPARSE", {number: bytes([number]) * 512}, random.Random(1),
                  f"vm-{number:06d}")  # fmt: skip
    image = on_volume(tmp_path / "lun.img", chain)
    assert content(image, disk_map(image, chain.names[32])) == by_qemu(chain, chain.names[32])
    with pytest.raises(UnsupportedFormatError, match="more than 32 disks"):
        disk_map(image, chain.names[33])
    loop = descriptor("vm-000001-delta.vmdk", "VMFSSPARSE", _SIZE, "00000002",
                      ("vm-000002.vmdk", "00000003"))  # fmt: skip
    image = replaced(image, tmp_path, {"vm-000001.vmdk": loop})
    with pytest.raises(UnsupportedFormatError, match="has no end"):
        disk_map(image, "vm-000002.vmdk")


def test_a_delta_with_a_journal_to_be_replayed_is_refused_with_what_to_do(tmp_path: Path) -> None:
    chain = random_chain(tmp_path / "plain", random.Random(4), 1, ("SESPARSE",))
    write_sesparse(chain.folder / chain.files[1], _SIZE, {3: b"x" * 4096}, random.Random(4), 1)
    image = on_volume(tmp_path / "lun.img", chain)
    with pytest.raises(
        UnsupportedFormatError, match=r"journal .* hold the VM by a VMware snapshot"
    ):
        disk_map(image, chain.top)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grain_in_a_block_that_the_datastore_does_not_know_is_never_read_as_zeros(
    tmp_path: Path, kind: str
) -> None:
    chain = random_chain(tmp_path / "plain", random.Random(4), 0)
    step = 4096 if kind == "SESPARSE" else 512
    grains = dict.fromkeys(range(4 * _MIB // step), b"x" * step)
    put_delta(chain, kind, grains, random.Random(4), "vm-000001")
    # A hole in the file, two blocks from its end on, which a thin file on VMFS has too.
    file = chain.folder / chain.files[1]
    end = file.stat().st_size // _MIB * _MIB
    hole = ["-o", str(end - 2 * _MIB), "-l", str(2 * _MIB)]
    subprocess.run(["fallocate", "--punch-hole", *hole, str(file)], check=True)
    image = on_volume(tmp_path / "lun.img", chain, ("thin",))
    with pytest.raises(UnsupportedFormatError, match="not noted as its own yet; run again"):
        disk_map(image, chain.top)


def test_a_grain_table_in_such_a_block_is_never_read_as_nothing_written(tmp_path: Path) -> None:
    chain = random_chain(tmp_path / "plain", random.Random(4), 0)
    put_delta(chain, "SESPARSE", {0: b"x" * 4096}, random.Random(4), "vm-000001")
    file = chain.folder / chain.files[1]
    (tables,) = struct.unpack_from("<Q", file.read_bytes(), 18 * 8)
    hole = ["-o", str(tables * 512), "-l", str(_MIB)]
    subprocess.run(["fallocate", "--punch-hole", *hole, str(file)], check=True)
    image = on_volume(tmp_path / "lun.img", chain, ("thin",))
    with pytest.raises(UnsupportedFormatError, match="grain tables in blocks"):
        disk_map(image, chain.top)


def _mutations(chain: Chain, rng: random.Random) -> list[tuple[int, int]]:
    """(offset in the delta file, new byte): each byte of each header field, and some of the tables."""
    data = (chain.folder / chain.files[1]).read_bytes()
    if data[:4] == b"COWD":
        places = [*range(32), *range(2048, 2048 + 12), *rng.sample(range(len(data)), 24)]
    else:
        gd = int.from_bytes(data[16 * 8 : 17 * 8], "little") * 512
        gt = int.from_bytes(data[18 * 8 : 19 * 8], "little") * 512
        places = [*range(SE_HEADER_BYTES), 300, *range(512, 512 + 40), *range(gd, gd + 24)]
        places += rng.sample(range(gt, gt + 3 * 32768), 24)
    return [(at, data[at] ^ (1 << rng.randrange(8))) for at in places]


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_of_metadata_ends_in_a_sentence_or_in_what_qemu_reads(
    tmp_path: Path, kind: str
) -> None:
    rng = random.Random(77)
    chain = random_chain(tmp_path / "plain", rng, 0, size_bytes=_MIB)
    add_delta(chain, kind, rng, 25)
    image = on_volume(tmp_path / "lun.img", chain)
    with Volume(image) as volume:
        where = volume.extents(f"/vm/{chain.files[1]}")
    named = same = 0
    for at, value in _mutations(chain, rng):
        (extent,) = (e for e in where if e.file_offset <= at < e.file_offset + e.length)
        lun_at = extent.lun_offset + at - extent.file_offset
        with image.open("r+b") as file:
            file.seek(lun_at)
            (original,) = file.read(1)
            file.seek(lun_at)
            file.write(bytes([value]))
        try:
            read = content(image, disk_map(image, chain.top))
        except AtollError as error:
            assert str(error).endswith("."), str(error)
            named += 1
        else:
            if read == chain.content:
                same += 1
            else:
                # Nothing in the format could tell: QEMU believes it too.
                plain = chain.folder / chain.files[1]
                data = plain.read_bytes()
                plain.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
                assert read == by_qemu(chain), at
                plain.write_bytes(data)
        with image.open("r+b") as file:
            file.seek(lun_at)
            file.write(bytes([original]))
    assert named > 20 and same > 5
