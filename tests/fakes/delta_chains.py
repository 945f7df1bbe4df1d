"""Random chains of deltas in plain files, their content by three readers, and a VMFS volume of them."""

import io
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dissect.hypervisor.disk.vmdk import SparseDisk

from atoll_lab.vmfs import Volume
from atoll_lab.vmfs.volume import Layout
from sparse_deltas import (
    SE_GRAIN,
    SECTOR,
    UNMAPPED,
    ZERO,
    State,
    descriptor,
    write_cowd,
    write_sesparse,
)

LAYOUTS: tuple[Layout, ...] = ("thick", "thin", "fragmented")


@dataclass
class Chain:
    """`names` are descriptors in `folder`, the base first; `content` is what a guest would read."""

    folder: Path
    size_bytes: int
    names: list[str]
    files: list[str]
    content: bytes

    @property
    def top(self) -> str:
        return self.names[-1]


def base(folder: Path, size_bytes: int, rng: random.Random) -> Chain:
    """A flat disk with some data at both ends and in between."""
    content = bytearray(size_bytes)
    for at in (0, size_bytes // 3 // SECTOR * SECTOR, size_bytes - 64 * SECTOR):
        content[at : at + 64 * SECTOR] = rng.randbytes(64 * SECTOR)
    flat = "vm-flat.vmdk"
    with (folder / flat).open("wb") as file:
        file.truncate(size_bytes)
        for at in range(0, size_bytes, 1 << 16):
            piece = bytes(content[at : at + (1 << 16)])
            if any(piece):
                file.seek(at)
                file.write(piece)
    (folder / "vm.vmdk").write_bytes(descriptor(flat, "VMFS", size_bytes, "00000001"))
    return Chain(folder, size_bytes, ["vm.vmdk"], [flat], bytes(content))


def add_delta(chain: Chain, kind: str, rng: random.Random, grains: int | None = None) -> None:
    """Put a delta of random grains on top."""
    number = len(chain.names)
    step = SE_GRAIN if kind == "SESPARSE" else SECTOR
    count = -(-chain.size_bytes // step)
    chosen: dict[int, State] = {}
    for _ in range(rng.randrange(12) if grains is None else grains):
        first, length = rng.randrange(count), rng.choice((1, 1, 2, 5, 40))
        state = rng.choice(("data", "data", "data", ZERO, UNMAPPED))
        for n in range(first, min(first + length, count)):
            if state == "data" or kind != "SESPARSE":
                chosen[n] = rng.randbytes(min(step, chain.size_bytes - n * step))
            else:
                chosen[n] = state
    put_delta(chain, kind, chosen, rng, f"vm-{number:06d}")


def put_delta(
    chain: Chain, kind: str, chosen: dict[int, State], rng: random.Random, stem: str
) -> None:
    """Put a delta of these grains on top."""
    step = SE_GRAIN if kind == "SESPARSE" else SECTOR
    number = len(chain.names)
    file = f"{stem}-{'sesparse' if kind == 'SESPARSE' else 'delta'}.vmdk"
    if kind == "SESPARSE":
        write_sesparse(chain.folder / file, chain.size_bytes, chosen, rng)
    else:
        held = {n: state for n, state in chosen.items() if isinstance(state, bytes)}
        write_cowd(chain.folder / file, chain.size_bytes, held, rng)
    parent = (chain.names[-1], f"{number:08x}")
    text = descriptor(file, kind, chain.size_bytes, f"{number + 1:08x}", parent)
    (chain.folder / f"{stem}.vmdk").write_bytes(text)
    content = bytearray(chain.content)
    for n, state in chosen.items():
        end = min((n + 1) * step, chain.size_bytes)
        content[n * step : end] = state if isinstance(state, bytes) else bytes(end - n * step)
    chain.names.append(f"{stem}.vmdk")
    chain.files.append(file)
    chain.content = bytes(content)


def qemu_raw(chain: Chain, name: str | None = None) -> Path:
    """The chain in its plain files, from a disk of it on down, as QEMU converts it."""
    out = chain.folder / "qemu.raw"
    source = chain.folder / (name or chain.top)
    subprocess.run(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(source), str(out)],
        check=True,
        capture_output=True,
    )
    return out


def by_qemu(chain: Chain, name: str | None = None) -> bytes:
    """What QEMU reads of the chain in its plain files."""
    return qemu_raw(chain, name).read_bytes()


def by_dissect(chain: Chain) -> bytes:
    """What dissect reads; it does not see grains that the guest has unmapped."""
    below: SparseDisk | _Flat = _Flat((chain.folder / chain.files[0]).read_bytes())
    for file in chain.files[1:]:
        below = SparseDisk(io.BytesIO((chain.folder / file).read_bytes()), parent=below)
    return below.read_sectors(0, chain.size_bytes // SECTOR)


class _Flat:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_sectors(self, sector: int, count: int) -> bytes:
        return self._data[sector * SECTOR : (sector + count) * SECTOR]


def put_on_volume(
    volume: Volume, chain: Chain, path: str, layouts: Sequence[Layout] = LAYOUTS
) -> None:
    """Copy the chain's files into a folder of a VMFS volume, each placed by the next layout."""
    for number, file in enumerate(chain.files):
        layout = layouts[number % len(layouts)]
        source = chain.folder / file
        size = -(-source.stat().st_size // SECTOR) * SECTOR
        volume.create_disk(f"{path}/put.vmdk", size, source, layout)
        volume.rename(f"{path}/put-flat.vmdk", f"{path}/{file}")
        volume.delete(f"{path}/put.vmdk")
    for name in chain.names:
        volume.write_file(f"{path}/{name}", (chain.folder / name).read_bytes())
