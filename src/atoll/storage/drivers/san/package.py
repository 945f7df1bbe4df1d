"""Builds the SAN server's helper as one executable file, the same bytes from the same source.

`python -m atoll.storage.drivers.san.package OUT` writes it.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

_SOURCE = Path(__file__).parents[4]
_SINGLE = (
    "atoll/__init__.py",
    "atoll/model/__init__.py",
    "atoll/model/errors.py",
    "atoll/model/extents.py",
    "atoll/storage/__init__.py",
    "atoll/storage/drivers/__init__.py",
    "atoll/storage/drivers/san/__init__.py",
    "atoll/storage/sidecar/__init__.py",
    "atoll/storage/sidecar/server.py",
)
_HELPER = "atoll/storage/drivers/san/helper"
_MAIN = (
    b"import sys\n\nfrom atoll.storage.drivers.san.helper.main import main\n\nsys.exit(main())\n"
)
_SHEBANG = b"#!/usr/bin/python3\n"
# The oldest time a zip can hold, so that no build differs from another by its clock.
_TIME = (1980, 1, 1, 0, 0, 0)


def helper_members() -> dict[str, bytes]:
    """Every file the helper needs, by its path below the directory that Python searches."""
    names = [*_SINGLE, *(f"{_HELPER}/{path.name}" for path in (_SOURCE / _HELPER).glob("*.py"))]
    return {name: (_SOURCE / name).read_bytes() for name in sorted(names)}


def build_helper() -> bytes:
    """The zipapp, in the order of names, without times or owners."""
    buffer = io.BytesIO()
    buffer.write(_SHEBANG)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted({**helper_members(), "__main__.py": _MAIN}.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the helper to the path given."""
    parser = argparse.ArgumentParser(prog="python -m atoll.storage.drivers.san.package")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args(argv).out
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.new")
    fresh.write_bytes(build_helper())
    fresh.chmod(0o755)
    fresh.replace(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
