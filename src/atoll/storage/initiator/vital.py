"""What a LUN tells of itself: INQUIRY data and vital product data pages (SPC-4, SBC-3)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Inquiry:
    """How a LUN introduces itself; `naa` is `naa.` and 32 hex digits, as ESX shows it.

    A LUN without an NAA-6 name has the bare `naa.`.
    """

    naa: str
    serial: str
    vendor: str
    product: str


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """How many blocks one command may transfer; 0 is not told."""

    transfer_blocks: int

    def transfer(self, wanted_bytes: int, block_bytes: int) -> int:
        """The most bytes to transfer at once, at most those wanted."""
        if not self.transfer_blocks:
            return wanted_bytes
        return min(wanted_bytes, self.transfer_blocks * block_bytes)


def inquiry_of(standard: bytes, serial: bytes, identification: bytes) -> Inquiry:
    """From standard INQUIRY data and pages 80h and 83h."""
    return Inquiry(
        "naa." + _naa(identification),
        serial[4 : 4 + int.from_bytes(serial[2:4], "big")]
        .decode("ascii", "replace")
        .strip(" \0"),  # LIO ends it by a NUL
        standard[8:16].decode("ascii", "replace").strip(),
        standard[16:32].decode("ascii", "replace").strip(),
    )


def block_limits(page: bytes) -> BlockLimits:
    """From page B0h (SBC-3, 6.6.4)."""
    return BlockLimits(int.from_bytes(page[8:12], "big"))


def _naa(page: bytes) -> str:
    """The LUN's NAA-6 name in a device identification page (SPC-4, 7.8.6), in hex; else empty."""
    position = 4
    while position + 4 <= len(page):
        kind, length = page[position + 1] & 0xF, page[position + 3]
        name = page[position + 4 : position + 4 + length]
        if kind == 3 and length == len(name) == 16 and name[0] >> 4 == 6:
            return name.hex()
        position += 4 + length
    return ""
