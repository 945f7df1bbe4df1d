"""Builds the agent as one executable file, the same bytes from the same source.

`python -m atoll.guests.package OUT` writes it. The agent's source is treated as
files: the director never imports what runs in guests.
"""

import argparse
import importlib.util
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from atoll.guests.files import write_atomically
from atoll.model.errors import ConfigurationError

PACKAGE = "atoll_agent"
UNIT = "atoll-agent.service"

_SHEBANG = b"#!/usr/bin/python3\n"
# The oldest time a zip can hold, so that no build differs from another by its clock.
_TIME = (1980, 1, 1, 0, 0, 0)
_MAIN = b"import sys\n\nfrom atoll_agent.__main__ import main\n\nsys.exit(main())\n"


def find_source() -> Path:
    """The directory of the agent's package, installed beside atoll or in the checkout."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ConfigurationError(
            "The agent's source is not installed; install the whole atoll distribution again."
        )
    return Path(found.origin).parent


def build_agent() -> bytes:
    """The zipapp: every module of the agent, in the order of names, without times or owners."""
    source = find_source()
    members = {
        str(path.relative_to(source.parent)): path.read_bytes() for path in source.rglob("*.py")
    }
    members["__main__.py"] = _MAIN
    buffer = io.BytesIO()
    buffer.write(_SHEBANG)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, members[name])
    return buffer.getvalue()


def unit_file() -> bytes:
    """The systemd unit that runs the agent in a guest."""
    return (find_source() / UNIT).read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the agent to the path given."""
    parser = argparse.ArgumentParser(prog="python -m atoll.guests.package")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args(argv).out
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, build_agent(), 0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
