"""The memory of chunks is not given back to be cleared anew for the next."""

import subprocess
import sys

COUNT = """
import resource, sys
if sys.argv[1] == "keep":
    from atoll.repository.memory import keep_memory
    keep_memory()
    keep_memory()
def faults():
    for _ in range(10):
        buffers = [bytes([1]) * (4 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_pages_are_taken_once() -> None:
    assert _faults("keep") * 10 < _faults("leave")
