"""Atoll's repository against itself: the limits of its stages, and many writers against one."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench.repo_peers import Atoll, Cost, remove, timed
from bench.repo_set import DiskSet
from bench.report import Figure, figure, say

WRITERS = 16
_PIECE_BYTES = 96 << 20


def limits(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """Processor seconds of the stages by themselves over those of the whole copy."""
    turns = json.loads(
        timed([sys.executable, "-m", "bench.repo_stages", disks.vm2, at, str(rounds)]).output
    )
    found = [
        figure(f"full_stage_cpu_seconds_{stage}", [turn["stages"][stage] for turn in turns], "s")
        for stage in turns[0]["stages"]
    ]
    sums = [sum(turn["stages"].values()) for turn in turns]
    whole = [turn["pipeline"] for turn in turns]
    found.append(figure("full_stages_cpu_seconds", sums, "s"))
    found.append(figure("full_pipeline_cpu_seconds", whole, "s"))
    ratios = [limit / used for limit, used in zip(sums, whole, strict=True)]
    found.append(figure("full_limit_ratio", ratios, "ratio"))
    return found


def writers(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """Sixteen processes at once into one repository, each a disk of its own, against one for all.

    The one has the sixteen disks end to end as one. All are open and wait for the word before the clock
    starts, so it is what they cost each other that is measured, not Python's sixteen starts.
    """
    pieces = _pieces(disks.vm2, at)
    whole = at / "whole.raw"
    with whole.open("wb") as target:
        for piece in pieces:
            target.write(piece.read_bytes())
    atoll = Atoll(at / "atoll")
    alone: list[Cost] = []
    together: list[Cost] = []
    for _ in range(rounds):
        for disks_at_once, costs in (([whole], alone), (pieces, together)):
            remove(atoll)
            atoll.create()
            costs.append(_at_once(atoll, disks_at_once))
            last = costs[-1]
            say(f"{len(disks_at_once)} writers: {last.wall:.2f} s, {last.cpu:.2f} s CPU")
    for piece in pieces:
        restored = at / "restored"
        atoll.restore(piece, piece.stem, restored)
        if restored.read_bytes() != piece.read_bytes():
            raise SystemExit(f"{piece.stem} came back as other bytes.")
        restored.unlink()
    return [
        figure("one_writer_wall_seconds", [cost.wall for cost in alone], "s"),
        figure("one_writer_cpu_seconds", [cost.cpu for cost in alone], "s"),
        figure("sixteen_writers_wall_seconds", [cost.wall for cost in together], "s"),
        figure("sixteen_writers_cpu_seconds", [cost.cpu for cost in together], "s"),
        figure(
            "sixteen_writers_ratio",
            [one.wall / many.wall for one, many in zip(alone, together, strict=True)],
            "ratio",
        ),
        figure(
            "sixteen_writers_cpu_ratio",
            [one.cpu / many.cpu for one, many in zip(alone, together, strict=True)],
            "ratio",
        ),
    ]


def _pieces(disk: Path, at: Path) -> list[Path]:
    """Data of a disk, cut; without its holes."""
    pieces: list[Path] = []
    data = bytearray()
    with disk.open("rb") as file:
        while block := file.read(4 << 20):
            if block.count(0) == len(block):
                continue
            data += block
            if len(data) < _PIECE_BYTES:
                continue
            piece = at / f"piece-{len(pieces)}.raw"
            piece.write_bytes(data)
            pieces.append(piece)
            data.clear()
            if len(pieces) == WRITERS:
                return pieces
    raise SystemExit(f"{disk} holds no {WRITERS} pieces of {_PIECE_BYTES >> 20} MiB.")


def _at_once(atoll: Atoll, disks: list[Path]) -> Cost:
    """Time until all are done, and the processor time that their copies took."""
    with ExitStack() as running:
        processes = []
        for disk in disks:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "bench.repo_atoll", "backup", "--wait"),
                    *(str(atoll.place), str(disk), disk.stem),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            running.enter_context(process)
            running.callback(process.kill)
            processes.append((process, process.stdin, process.stdout))
        for _, _, said in processes:
            if said is None or said.readline() != "ready\n":
                raise SystemExit("A writer could not open the repository.")
        began = time.perf_counter()
        for _, told, _ in processes:
            assert told is not None
            told.write("go\n")
            told.flush()
        used = 0.0
        for process, _, said in processes:
            assert said is not None
            output = said.read()
            if process.wait():
                raise SystemExit("A writer failed.")
            used += json.loads(output)["cpu_seconds"]
        return Cost(time.perf_counter() - began, used)
