"""The names and the text descriptor of a served disk, as ESX has them."""

import re
import zlib

from atoll.blocks.vmdk import descriptor_text

_SECTOR = 512


def flat_name(descriptor: str) -> str:
    """The name of the file with the disk's bytes: `db1.vmdk` describes `db1-flat.vmdk`."""
    return f"{descriptor.removesuffix('.vmdk')}-flat.vmdk"


def flat_descriptor(flat: str, size_bytes: int) -> bytes:
    """A flat disk of one extent in the file `flat`, whose name holds no quotation mark."""
    return descriptor_text(
        size_bytes,
        "vmfs",
        [f'RW {size_bytes // _SECTOR} VMFS "{flat}"'],
        hardware_version=13,
        # The same for the same disk.
        content_id=zlib.crc32(flat.encode("utf-8", "surrogateescape")) & 0x7FFFFFFF,
    )


def safe_name(name: str) -> str:
    """A file name that stands for itself in a directory and in a descriptor."""
    kept = re.sub(r'[/"\x00-\x1f]', "_", name)[:200]
    return kept if kept not in ("", ".", "..") else "_"
