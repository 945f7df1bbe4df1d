"""Reading what LUNs tell of themselves."""

from atoll.storage.initiator.vital import Inquiry, block_limits, inquiry_of

STANDARD = bytes(8) + b"ATOLL   " + b"LUN             " + b"0001"
SERIAL = bytes((0, 0x80, 0, 8)) + b"  4711  "
NAA = bytes.fromhex("6001405f4f628aafb394953a118a6c62")


def designator(kind: int, name: bytes) -> bytes:
    return bytes((1, kind, 0, len(name))) + name


def page(*designators: bytes) -> bytes:
    content = b"".join(designators)
    return bytes((0, 0x83, 0, len(content))) + content


def test_the_naa_name_is_found_among_others() -> None:
    others = (designator(1, b"ATOLL   x"), designator(3, bytes.fromhex("3000000000000001")))
    found = inquiry_of(STANDARD, SERIAL, page(*others, designator(3, NAA)))
    assert found == Inquiry("naa." + NAA.hex(), "4711", "ATOLL", "LUN")


def test_a_lun_without_one_has_none() -> None:
    assert inquiry_of(STANDARD, SERIAL, page()).naa == "naa."
    assert inquiry_of(STANDARD, SERIAL, page(designator(2, NAA))).naa == "naa."
    assert inquiry_of(STANDARD, SERIAL, page(designator(3, NAA))[:10]).naa == "naa."


def test_transfers_keep_to_what_the_lun_takes() -> None:
    told = bytes(8) + (128).to_bytes(4, "big") + bytes(52)
    assert block_limits(told).transfer(256 << 10, 512) == 64 << 10
    assert block_limits(told).transfer(4096, 512) == 4096
    assert block_limits(bytes(64)).transfer(256 << 10, 512) == 256 << 10
    assert block_limits(b"").transfer(256 << 10, 512) == 256 << 10
