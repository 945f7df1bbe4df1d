"""The Promela model of the hold protocol, compiled and searched, or simulated."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import atoll.director

MODEL = Path(atoll.director.__file__).with_name("hold.pml")

_DEPTH = 100_000
_MEMORY_MIB = 4096


@dataclass(frozen=True)
class Search:
    """What spin found. `error` is empty, or the first rule that broke."""

    error: str
    states: int
    output: str


def search(
    where: Path, options: Iterable[str], *, liveness: bool = False, short: bool = False
) -> Search:
    """Search every state of the model under `options`, e.g. `FAULTS=1`; exhaustive or an AssertionError.

    Without `liveness` for assertions and invalid end states, with it for the
    model's LTL claim under weak fairness. `short` is for searches that end soon,
    for which compiling well would take longer.
    """
    defines = [f"-D{option}" for option in options]
    if liveness:
        defines.append("-DLIVENESS")
    _run(where, "spin", "-a", *defines, str(MODEL))
    # NFAIR: a bit for each process, of which there are ten at most.
    kind = "-DNFAIR=3" if liveness else "-DSAFETY"
    limits = (f"-DMEMLIM={_MEMORY_MIB}", "-DCOLLAPSE")
    _run(where, "gcc", "-O0" if short else "-O2", "-w", *limits, kind, "-o", "pan", "pan.c")
    claim = ("-a", "-f") if liveness else ()
    output = _run(where, "./pan", f"-m{_DEPTH}", "-w22", *claim)
    found = re.search(r"^pan:1: (.*?) \(at depth", output, re.MULTILINE)
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d[\d.e+]*) states, stored", output)
    assert errors is not None and states is not None, output
    assert (found is None) == (errors[1] == "0"), output
    # An error ends the search; nothing else may, or it proves nothing.
    incomplete = re.search(r"not completed|depth too small|out of memory", output)
    assert found is not None or incomplete is None, output
    return Search(found[1] if found else "", int(float(states[1])), output)


def simulate(options: Iterable[str], seed: int) -> list[str]:
    """One run at random: what it printed in lines that begin with @, without that."""
    defines = [f"-D{option}" for option in options]
    # -T: no indentation by process; -u: a limit that no run comes near.
    with tempfile.TemporaryDirectory() as where:  # for files of its own that always have one name
        said = _run(Path(where), "spin", f"-n{seed}", "-T", "-u20000", *defines, str(MODEL))
    return [line.strip()[2:] for line in said.splitlines() if line.strip().startswith("@ ")]


def _run(where: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
