"""Where servers are that Debian does not have: what `scripts/test-products` fetched, or a given one."""

import os
import shutil
from pathlib import Path

_FETCHED = Path(os.environ.get("ATOLL_TEST_PRODUCTS") or Path.home() / ".cache/atoll-tests")


def product(program: str, variable: str) -> str | None:
    """The program that the environment's `variable` names, else one fetched, else one in the path."""
    fetched = sorted(_FETCHED.glob(f"*/{program}"))
    return os.environ.get(variable) or (str(fetched[-1]) if fetched else shutil.which(program))
