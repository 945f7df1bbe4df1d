"""The VSS writers of a Windows guest, as one application; see `windows.vss`."""

from collections.abc import Sequence

from atoll_agent.application import Application, ApplicationConfig
from atoll_agent.system import is_windows


def discover(configured: Sequence[ApplicationConfig], look: bool) -> list[Application]:
    """All writers together, with the first entry's word; nothing elsewhere than on Windows."""
    if not is_windows() or not (look or configured):
        return []
    from atoll_agent.windows.volumes import fixed_volumes
    from atoll_agent.windows.vss import ShadowCopies, plan_from

    entry = next(iter(configured), None)
    return [ShadowCopies(lambda: plan_from(entry, fixed_volumes))]
