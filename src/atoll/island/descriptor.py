"""The text descriptor of a served disk, as ESX writes one.

Format: VMware, "Virtual Disk Format 5.0", section "The Descriptor File".
"""

import re
import zlib

_SECTOR = 512
_HEADS, _SECTORS = 255, 63
_MAX_CYLINDERS = 65535


def flat_name(descriptor: str) -> str:
    """The name of the file with the disk's bytes: `db1.vmdk` describes `db1-flat.vmdk`."""
    return f"{descriptor.removesuffix('.vmdk')}-flat.vmdk"


def descriptor_text(flat: str, size_bytes: int) -> bytes:
    """A flat disk of one extent in the file `flat`, whose name holds no quotation mark."""
    # Any number but those that VMware gives a meaning of its own; the same for the same disk.
    content_id = zlib.crc32(flat.encode("utf-8", "surrogateescape")) & 0x7FFFFFFF
    sectors = size_bytes // _SECTOR
    cylinders = min(sectors // (_HEADS * _SECTORS), _MAX_CYLINDERS)
    return f"""# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={content_id:08x}
parentCID=ffffffff
createType="vmfs"

# Extent description
RW {sectors} VMFS "{flat}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "13"
ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{_HEADS}"
ddb.geometry.sectors = "{_SECTORS}"
""".encode("utf-8", "surrogateescape")


def safe_name(name: str) -> str:
    """A file name that stands for itself in a directory and in a descriptor."""
    kept = re.sub(r'[/"\x00-\x1f]', "_", name)[:200]
    return kept if kept not in ("", ".", "..") else "_"
