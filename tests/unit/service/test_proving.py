"""How much a restore test may use."""

import pytest

from atoll.service.proving import limits_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("vmx", "memory"),
    [
        ("", 1024 * MIB),
        ('guestOS = "debian"\nmemSize = "2048"\n', 2048 * MIB),
        ('memsize = "1536"', 1536 * MIB),
        ('memSize = "64"', 512 * MIB),
        ('memSize = "nonsense"', 1024 * MIB),
    ],
)
def test_memory_is_the_vms_own(vmx: str, memory: int) -> None:
    assert limits_of(vmx).memory_bytes == memory


def test_a_test_never_takes_all_of_this_machines_memory() -> None:
    import os

    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits_of('memSize = "999999999"').memory_bytes <= machine
