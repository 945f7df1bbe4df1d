"""Reads a repository by its format document alone; knows nothing of Atoll's code."""

import json
import struct
import unicodedata
from pathlib import Path

import zstandard
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ZERO = bytes(32)


class Stranger:
    def __init__(
        self,
        root: Path,
        *,
        passphrase: str = "",
        key_file: Path | None = None,
        recovery_key: str = "",
    ) -> None:
        self.root = root
        line, tag = self.block(root / "config").rsplit(b"|", 1)
        self.config = json.loads(line)
        assert (self.config["format"], self.config["version"]) == ("atoll-repository", 1)
        self.master = b""
        for path in (root / "keys").iterdir():
            slot = json.loads(self.block(path))
            wanted = "file" if key_file else "recovery" if recovery_key else "passphrase"
            if slot["repository"] == self.config["id"] and slot["kind"] == wanted:
                self.master = self.unwrap(slot, passphrase, key_file, recovery_key)
        assert self.derive("key id")[:8].hex() == self.config["key"]
        assert blake3(line, key=self.derive("config")).hexdigest().encode() == tag
        self.places: dict[bytes, tuple[str, int, int, int, int, int]] = {}
        for path in (root / "index").iterdir():
            self.read_index(self.unseal(b"ATOLIDX\x01", path.name, path.read_bytes()))

    @staticmethod
    def block(path: Path) -> bytes:
        both = path.read_bytes()
        half = both[: len(both) // 2]
        line, check = half.split(b"\n")[:2]
        assert blake3(line + b"\n").hexdigest().encode() == check
        return line

    @staticmethod
    def unwrap(slot: dict, passphrase: str, key_file: Path | None, recovery_key: str) -> bytes:
        salt = bytes.fromhex(slot["salt"])
        if key_file:
            secret = bytes.fromhex(key_file.read_text().strip().split(":")[1])
            context = "atoll repository v1 key file"
            key = blake3(secret + salt, derive_key_context=context).digest()
        elif recovery_key:
            context = "atoll repository v1 recovery key"
            secret = Stranger.typed(recovery_key)
            key = blake3(secret + salt, derive_key_context=context).digest()
        else:
            text = unicodedata.normalize("NFC", passphrase).encode()
            costs = (slot["passes"], slot["memory_kib"], slot["lanes"])
            key = hash_secret_raw(text, salt, *costs, 32, Type.ID, 0x13)
        names = ["repository", "key", "kind", "salt", "memory_kib", "passes", "lanes"]
        version = slot.get("version", 1)
        if version == 2:
            names += ["created_at", "label"]
        bound = "|".join([f"atoll key slot v{version}", *(str(slot[name]) for name in names)])
        return AESGCM(key).decrypt(bytes(12), bytes.fromhex(slot["wrapped"]), bound.encode())

    @staticmethod
    def typed(recovery_key: str) -> bytes:
        digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
        groups = recovery_key.split("-")
        bits = ["".join(f"{digits.index(digit):05b}" for digit in group) for group in groups]
        return b"".join(int(group[:32], 2).to_bytes(4, "big") for group in bits)

    def derive(self, purpose: str, salt: bytes = b"") -> bytes:
        context = "atoll repository v1 " + purpose
        return blake3(self.master + salt, derive_key_context=context).digest()

    def unseal(self, magic: bytes, name: str, data: bytes) -> bytes:
        assert data[:8] == magic
        unique = bytes.fromhex(name)
        key = AESGCM(self.derive(magic[4:7].decode(), unique))
        frame = key.decrypt(bytes(12), data[8:], magic + unique)
        return zstandard.ZstdDecompressor().decompressobj().decompress(frame)

    def read_index(self, plain: bytes) -> None:
        packs, rows = struct.unpack_from("<II", plain)
        names = [plain[8 + 24 * n : 24 + 24 * n].hex() for n in range(packs)]
        for n in range(rows):
            name, pack, *where = struct.unpack_from("<32s6I", plain, 8 + 24 * packs + 56 * n)
            self.places[name] = (names[pack], *where)

    def footer(self, pack: str) -> list[tuple[bytes, int, int, int, int]]:
        data = (self.root / "packs" / pack[:2] / pack).read_bytes()
        length, mark = struct.unpack("<I4s", data[-8:])
        assert (data[:24], mark) == (b"ATOLPCK\x01" + bytes.fromhex(pack), b"KCPA")
        key = AESGCM(self.derive("PCK", bytes.fromhex(pack)))
        rows = key.decrypt(b"\xff" * 12, data[-8 - length : -8], data[:24])
        return list(struct.iter_unpack("<32sIIIB3x", rows))

    def chunk(self, name: bytes) -> bytes:
        pack, number, offset, sealed, plain, codec = self.places[name]
        data = (self.root / "packs" / pack[:2] / pack).read_bytes()[offset : offset + sealed]
        key = AESGCM(self.derive("PCK", bytes.fromhex(pack)))
        body = key.decrypt(number.to_bytes(12, "little"), data, name)
        if codec == 1:
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        assert len(body) == plain
        assert blake3(body, key=self.derive("chunk name")).digest() == name
        return body

    def page(
        self, name: bytes, level: int, version: int, unit: int
    ) -> list[tuple[int, int, bytes]]:
        """Lengths, skips and names below a page of a disk that has no end."""
        if name == ZERO:
            return [(unit * 256 ** (level + 1), 0, ZERO)]
        page = self.chunk(name)
        if level == 0 and version == 2:
            count = len(page) // 40
            numbers = struct.unpack_from(f"<{2 * count}I", page)
            names = [page[at : at + 32] for at in range(8 * count, len(page), 32)]
            return list(zip(numbers[:count], numbers[count:], names, strict=True))
        names = [page[at : at + 32] for at in range(0, 8192, 32)]
        if level == 0:
            return [(unit, 0, n) for n in names]
        return [piece for below in names for piece in self.page(below, level - 1, version, unit)]

    def disk(self, root: str) -> bytes:
        magic, size, unit, levels, top = struct.unpack("<8sQII32s", self.chunk(bytes.fromhex(root)))
        assert (magic[:7], magic[7] in (1, 2)) == (b"ATOLDSK", True)
        content, at = [], 0
        for whole, skip, name in self.page(top, levels - 1, magic[7], unit):
            length = min(whole, size - at)
            if length > 0:
                chunk = bytes(length) if name == ZERO else self.chunk(name)
                content.append(chunk[skip : skip + length])
                assert len(content[-1]) == length
                at += length
        return b"".join(content)

    def blob(self, name: str) -> bytes:
        record = self.chunk(bytes.fromhex(name))
        assert record[:8] == b"ATOLBLB\x01"
        return b"".join(self.chunk(record[at : at + 32]) for at in range(16, len(record), 32))

    def documents(self, kind: str, magic: bytes) -> list[dict]:
        found = []
        for path in (self.root / kind).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                found.append(json.loads(self.unseal(magic, path.name, data[: len(data) // 2])))
        return found

    def points(self) -> dict[str, dict]:
        documents = self.documents("points", b"ATOLPTS\x01")
        return {point["id"]: point for document in documents for point in document["points"]}

    def evidence(self) -> dict[str, dict]:
        return {e["point"]: e["evidence"] for e in self.documents("evidence", b"ATOLEVD\x01")}
