"""Volumes written by ESX hosts, unpacked sparsely once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

_DATA = Path(__file__).parents[2] / "data" / "vmfs"
_PIECE = 1 << 20


@pytest.fixture(scope="session")
def esx_volume(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of an unpacked image by its name, e.g. `vmfs6`."""
    folder = tmp_path_factory.mktemp("esx-volumes")

    def unpack(name: str) -> Path:
        image = folder / f"{name}.img"
        if not image.exists():
            with (_DATA / f"{name}.zst").open("rb") as packed, image.open("wb") as out:
                size = 0
                with zstandard.ZstdDecompressor().stream_reader(packed) as stream:
                    while piece := stream.read(_PIECE):
                        if piece.count(0) != len(piece):
                            out.seek(size)
                            out.write(piece)
                        size += len(piece)
                out.truncate(size)
        return image

    return unpack
