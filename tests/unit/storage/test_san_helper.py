"""The helper is one file that runs under the distribution's Python with nothing installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.drivers.san import package
from atoll.storage.drivers.san.helper.pool import ThinPool, clipped


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    path = tmp_path / "atoll-san"
    assert package.main([str(path)]) == 0
    return path


def test_it_is_the_same_file_each_time_and_needs_the_standard_library_alone(helper: Path) -> None:
    assert helper.read_bytes() == package.build_helper()
    # -I and -S: neither the environment nor installed packages can help.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(helper), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "restore" in done.stdout


def test_it_speaks_over_pipes_as_sshd_gives_them(helper: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from atoll.storage.drivers.san.helper.channel import on_a_socket\n"
        "from atoll.storage.sidecar.server import serve\n"
        "with on_a_socket(): serve({'size': lambda text: len(text), 'give': lambda n: bytes(n)})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", script, str(helper)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("x", "y" * 1_000_000):
            request = {"call": "size", "arguments": {"text": text}}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"result": len(text)}
        process.stdin.write(b'{"call": "give", "arguments": {"n": 3000000}}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"bytes": 3_000_000}
        assert process.stdout.read(3_000_000) == bytes(3_000_000)
        process.stdin.close()
        assert process.wait(timeout=30) == 0


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ThinPool:
    """A pool whose metadata programs are shell scripts in `tmp_path`."""
    made = object.__new__(ThinPool)
    made.volume_group, made.pool, made.chunk_bytes = "vg", "pool", 65536
    monkeypatch.setattr(ThinPool, "_metadata_copy", lambda _: Copy())
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return made


class Copy:
    def __enter__(self) -> Path:
        return Path("/dev/null")

    def __exit__(self, *_: object) -> None:
        pass


def program(path: Path, name: str, *lines: str, status: int = 0) -> None:
    text = "\n".join(lines)
    (path / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    (path / name).chmod(0o755)


def test_differences_are_all_that_is_not_the_same(pool: ThinPool, tmp_path: Path) -> None:
    program(
        tmp_path,
        "thin_delta",
        '<superblock uuid="" time="1" transaction="0" data_block_size="128" nr_data_blocks="0">',
        '  <diff left="1" right="2">',
        '    <same begin="0" length="2"/>',
        '    <different begin="2" length="1"/>',
        '    <right_only begin="3" length="2"/>',
        '    <left_only begin="9" length="1"/>',
        "  </diff>",
        "</superblock>",
    )
    chunk = pool.chunk_bytes
    assert list(pool.differences(1, 2)) == [
        Extent(2 * chunk, 3 * chunk),
        Extent(9 * chunk, chunk),
    ]


def test_mappings_are_where_data_is(pool: ThinPool, tmp_path: Path) -> None:
    program(
        tmp_path,
        "thin_dump",
        '<device dev_id="1" mapped_blocks="4" transaction="0" creation_time="0" snap_time="0">',
        '  <range_mapping origin_begin="0" data_begin="7" length="3" time="0"/>',
        '  <single_mapping origin_block="8" data_block="1" time="1"/>',
        "</device>",
    )
    chunk = pool.chunk_bytes
    assert list(pool.mapped(1)) == [Extent(0, 3 * chunk), Extent(8 * chunk, chunk)]


def test_a_program_that_fails_is_told_with_its_words(pool: ThinPool, tmp_path: Path) -> None:
    program(tmp_path, "thin_dump", status=1)
    with pytest.raises(StorageUnreachableError, match="thin_dump"):
        list(pool.mapped(1))


def test_ranges_end_where_the_volume_does() -> None:
    extents = iter([Extent(0, 10), Extent(20, 10), Extent(40, 10)])
    assert list(clipped(extents, 25)) == [Extent(0, 10), Extent(20, 5)]
