"""Chunks and packs: names, compression, seals, nonces."""

from pathlib import Path

import pytest

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import RAW, ZSTD, ChunkCodec
from atoll.repository.keys import MasterKey
from atoll.repository.local import LocalStore
from atoll.repository.packs import OpenPack, PackKeys, check_pack, object_name, read_listing
from repository_parts import noise

MASTER = MasterKey(bytes(range(32)))


def test_a_chunk_comes_back_and_is_raw_when_it_would_not_shrink() -> None:
    codec = ChunkCodec(MASTER)
    for data, kind in ((b"a" * 5000, ZSTD), (noise(1, 5000), RAW)):
        chunk = codec.pack(memoryview(data))
        assert chunk.codec == kind
        assert codec.unpack(codec.name(data), chunk) == data


def test_names_depend_on_the_key() -> None:
    assert ChunkCodec(MASTER).name(b"x") != ChunkCodec(MasterKey(bytes(32))).name(b"x")


@pytest.mark.parametrize("length", [1, 4096, (1 << 20) + 1])
def test_zero_means_every_byte(length: int) -> None:
    codec = ChunkCodec(MASTER)
    assert codec.is_zero(memoryview(bytes(length)))
    for at in (0, length // 2, length - 1):
        data = bytearray(length)
        data[at] = 1
        assert not codec.is_zero(memoryview(data))


def test_a_chunk_under_another_name_is_refused() -> None:
    codec = ChunkCodec(MASTER)
    with pytest.raises(RepositoryDamagedError, match="does not hash"):
        codec.unpack(codec.name(b"other"), codec.pack(b"data" * 100))
    with pytest.raises(RepositoryDamagedError, match="codec 7"):
        codec.unpack(codec.name(b"x"), codec.pack(b"x")._replace(codec=7))


def _filled() -> tuple[PackKeys, OpenPack, ChunkCodec]:
    keys, codec = PackKeys(MASTER), ChunkCodec(MASTER)
    pack = OpenPack(keys)
    for seed in range(5):
        data = noise(seed, 700)
        pack.add(codec.name(data), codec.pack(data))
    return keys, pack, codec


def test_a_footer_lists_what_the_pack_holds(tmp_path: Path) -> None:
    keys, pack, codec = _filled()
    listing, parts = pack.finish()
    store = LocalStore.create(tmp_path / "s")
    store.put(object_name(pack.name), parts)
    data = b"".join(parts)
    assert len(data) == listing.size_bytes
    assert read_listing(store, keys, pack.name, len(data)) == listing
    assert check_pack(keys, pack.name, data, codec.unpack, None).problems == ()


def test_a_footer_longer_than_the_first_look_is_read(tmp_path: Path) -> None:
    keys, codec = PackKeys(MASTER), ChunkCodec(MASTER)
    pack = OpenPack(keys)
    for number in range(2000):  # 96,000 bytes of footer
        data = number.to_bytes(4, "little")
        pack.add(codec.name(data), codec.pack(data))
    listing, parts = pack.finish()
    store = LocalStore.create(tmp_path / "s")
    store.put(object_name(pack.name), parts)
    assert read_listing(store, keys, pack.name, listing.size_bytes) == listing


def test_every_byte_of_a_pack_is_guarded() -> None:
    keys, pack, codec = _filled()
    listing, parts = pack.finish()
    data = b"".join(parts)
    for indexed in (None, listing.entries):
        for at in range(len(data)):
            broken = bytearray(data)
            broken[at] ^= 0x10
            assert check_pack(keys, pack.name, bytes(broken), codec.unpack, indexed).problems
    for cut in (0, 10, len(data) - 1):
        assert check_pack(keys, pack.name, data[:cut], codec.unpack, None).problems
    assert check_pack(keys, pack.name, data + b"x", codec.unpack, None).problems


def test_no_nonce_is_used_twice_under_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[tuple[bytes, bytes]] = set()
    count = 0

    class Recorder:
        def __init__(self, key: bytes) -> None:
            self._key = key

        def encrypt(self, nonce: bytes, data: bytes, _: bytes) -> bytes:
            nonlocal count
            count += 1
            used.add((self._key, nonce))
            return bytes(data) + bytes(16)

    monkeypatch.setattr("atoll.repository.packs.AESGCM", Recorder)
    for _ in range(3):
        _filled()[1].finish()
    assert count == 3 * 6
    assert len(used) == count


def test_zeros_of_any_length_are_known_and_nothing_else_is() -> None:
    codec = ChunkCodec(MASTER)
    for length in (1, 4096, 4095, 4096, 1 << 20, 3 << 20):
        data = bytearray(length)
        assert codec.is_zero(bytes(data))
        assert codec.is_zero(memoryview(data))
        for at in {0, length // 2, length - 1}:
            data[at] = 1
            assert not codec.is_zero(memoryview(data))
            data[at] = 0


def test_chunks_of_every_level_are_read_alike() -> None:
    data = b"".join(number.to_bytes(4, "little") for number in range(16 << 10))
    reading = ChunkCodec(MASTER)
    sizes = []
    for level in (1, 3, 19):
        packed = ChunkCodec(MASTER, level).pack(data)
        sizes.append(len(packed.body))
        assert reading.unpack(reading.name(data), packed) == data
    assert sizes[0] > sizes[-1]
