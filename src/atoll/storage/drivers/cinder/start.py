"""Runs a module of Atoll under another interpreter: `start.py MODULE ARGUMENT…`.

Only the package `atoll` is made known to it. Atoll's own environment must not be on its path: the
libraries there have other versions than the other environment's lock file names.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[3]


def main() -> None:
    """Run the module named first as the main program."""
    spec = importlib.util.spec_from_file_location(
        "atoll", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    if spec is None or spec.loader is None:
        raise AssertionError("a path was given")
    package = importlib.util.module_from_spec(spec)
    sys.modules["atoll"] = package
    spec.loader.exec_module(package)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
