"""The agent as a Debian package, the same bytes from the same source, without Debian's tools.

A binary package is an `ar` archive of `debian-binary`, `control.tar.gz` and
`data.tar.gz` (deb(5)). Its maintainer scripts lie beside the agent's source.
"""

import ast
import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from atoll.guests.package import UNIT, build_agent, find_source, unit_file
from atoll.model.errors import ConfigurationError

PACKAGE = "atoll-agent"

# The moment all files bear: one that no clock decides and no checker takes for a mistake.
_TIME = 1767225600
_SCRIPTS = ("postinst", "prerm", "postrm")
_DOC = f"usr/share/doc/{PACKAGE}"
_CONTROL = """\
Package: {package}
Version: {version}
Architecture: all
Maintainer: The Atoll authors <atoll@localhost>
Installed-Size: {kibibytes}
Depends: python3 (>= 3.11)
Suggests: open-vm-tools
Section: admin
Priority: optional
Description: holds a guest still for a storage snapshot
 Atoll backs up VMware farms from storage snapshots. Its agent holds
 databases and freezes file systems for the second such a snapshot takes,
 and lets go by itself should nobody else do so.
 .
 It listens on a port only after this guest was enrolled with
 `atoll-agent enrol`.
"""


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    mode: int = 0o644


def agent_version() -> str:
    """The version the agent's source says it has, read without running it."""
    for node in ast.parse((find_source() / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["__version__"]:
                return str(node.value.value)
    raise ConfigurationError(
        "The agent's source does not say its version; install the whole atoll distribution again."
    )


def package_name() -> str:
    """The file name Debian expects."""
    return f"{PACKAGE}_{agent_version()}_all.deb"


def build_package() -> bytes:
    """The `.deb`. Nothing in it depends on the clock, the user or the machine."""
    source = find_source() / "debian"
    version = agent_version()
    changelog = (
        f"{PACKAGE} ({version}) unstable; urgency=medium\n\n  * Version {version}.\n\n"
        " -- The Atoll authors <atoll@localhost>  Thu, 01 Jan 2026 00:00:00 +0000\n"
    )
    files = {
        "usr/bin/atoll-agent": _File((source / PACKAGE).read_bytes(), 0o755),
        "usr/lib/atoll/atoll-agent.pyz": _File(build_agent(), 0o755),
        f"lib/systemd/system/{UNIT}": _File(unit_file()),
        f"{_DOC}/copyright": _File((source / "copyright").read_bytes()),
        f"{_DOC}/changelog.gz": _File(_gzip(changelog.encode())),
        "usr/share/man/man8/atoll-agent.8.gz": _File(
            _gzip((source / "atoll-agent.8").read_bytes())
        ),
    }
    # A directory of secrets, whose files belong to the guest and not to the package.
    data = _tar(files, {"etc/atoll": 0o700})
    size = sum(len(file.data) for file in files.values())
    control = _CONTROL.format(package=PACKAGE, version=version, kibibytes=-(-size // 1024))
    sums = "".join(
        f"{hashlib.md5(file.data, usedforsecurity=False).hexdigest()}  {path}\n"
        for path, file in sorted(files.items())
    )
    members = {
        "control": _File(control.encode()),
        "md5sums": _File(sums.encode()),
        **{name: _File((source / name).read_bytes(), 0o755) for name in _SCRIPTS},
    }
    return _ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.gz": _gzip(_tar(members, {})),
            "data.tar.gz": _gzip(data),
        }
    )


def _tar(files: Mapping[str, _File], directories: Mapping[str, int]) -> bytes:
    """Files with all directories above them, as dpkg wants them: `./` first, parents before."""
    modes = {"": 0o755, **directories}
    for path in (*files, *directories):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            modes.setdefault("/".join(parts[:depth]), 0o755)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted({*modes, *files}):
            entry = tarfile.TarInfo(f"./{path}")
            entry.uname = entry.gname = "root"
            entry.mtime = _TIME
            if path in files:
                entry.size, entry.mode = len(files[path].data), files[path].mode
                archive.addfile(entry, io.BytesIO(files[path].data))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, modes[path]
                archive.addfile(entry)
    return buffer.getvalue()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _ar(members: Mapping[str, bytes]) -> bytes:
    """The archive format of ar(5), as deb(5) narrows it."""
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        parts.append(f"{name:<16}{_TIME:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)
