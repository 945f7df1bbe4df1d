"""The text descriptor of a flat VMFS disk, as ESX writes it."""

import os

from atoll.model.errors import UnsupportedFormatError

_SECTOR = 512
_HEADS, _SECTORS = 255, 63
_KINDS = (["VMFS"], ["VMFSSPARSE"], ["SESPARSE"])


def descriptor_text(flat: str, size_bytes: int, thin: bool) -> bytes:
    """A descriptor with new ids for a disk whose data is in the file `flat` beside it."""
    if size_bytes % _SECTOR or size_bytes <= 0:
        raise ValueError(f"a disk of {size_bytes} bytes is not whole sectors")
    content_id = os.urandom(4).hex()
    ident = os.urandom(13).hex(" ").split(" ")
    disk = " ".join(["60", "00", "C2", *ident[:5]]) + "-" + " ".join(ident[5:])
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={content_id}",
        "parentCID=ffffffff",
        'createType="vmfs"',
        "",
        "# Extent description",
        f'RW {size_bytes // _SECTOR} VMFS "{flat}"',
        "",
        "# The Disk Data Base ",
        "#DDB",
        "",
        'ddb.adapterType = "lsilogic"',
        f'ddb.geometry.cylinders = "{_cylinders(size_bytes)}"',
        f'ddb.geometry.heads = "{_HEADS}"',
        f'ddb.geometry.sectors = "{_SECTORS}"',
        f'ddb.longContentID = "{os.urandom(12).hex()}{content_id}"',
        *(['ddb.thinProvisioned = "1"'] if thin else []),
        f'ddb.uuid = "{disk}"',
        'ddb.virtualHWVersion = "19"',
        "",
    ]
    return "\n".join(lines).encode()


def is_data(name: str) -> bool:
    """Whether a file is a disk's data or a delta, and no descriptor."""
    return name.endswith(("-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk"))


def flat_name(text: bytes, path: str) -> str:
    """The one file of data, flat or a delta, that a descriptor names."""
    for line in text.decode("utf-8", "replace").splitlines():
        parts = line.split('"')
        kind = parts[0].split()[2:]
        if line.startswith("RW ") and kind in _KINDS and len(parts) == 3:
            return parts[1]
    raise UnsupportedFormatError(f"{path} is not the descriptor of a VMFS disk; check it.")


def resized(text: bytes, size_bytes: int) -> bytes:
    """The same descriptor for another size."""
    lines = []
    for line in text.decode().split("\n"):
        if line.startswith("RW "):
            parts = line.split(" ", 2)
            lines.append(f"RW {size_bytes // _SECTOR} {parts[2]}")
        elif line.startswith("ddb.geometry.cylinders"):
            lines.append(f'ddb.geometry.cylinders = "{_cylinders(size_bytes)}"')
        else:
            lines.append(line)
    return "\n".join(lines).encode()


def _cylinders(size_bytes: int) -> int:
    return size_bytes // (_HEADS * _SECTORS * _SECTOR)
