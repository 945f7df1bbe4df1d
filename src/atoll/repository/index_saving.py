"""When an index is worth saving to its cache, and how."""

import numpy as np

from atoll.repository.index_cache import CacheLimits, IndexCache, Saved
from atoll.repository.index_merge import first_to_merge, merge
from atoll.repository.index_state import DEAD, State


def worth_saving(state: State, saved: Saved, limits: CacheLimits) -> bool:
    """Whether so much has come or gone since `saved`, which the state has grown from."""
    unsaved = sum(each.rows for each in state.tables[len(saved.tables) :])
    changes = len(state.held.keys() ^ saved.state.held.keys())
    return (
        unsaved >= limits.save_rows
        or changes >= limits.save_segments
        or _first_to_merge(state, saved, 0) < len(saved.tables)
    )


def save_state(state: State, saved: Saved, cache: IndexCache) -> Saved:
    """Save all of a state that has grown from what the cache has now. Only in one's turn.

    OSError if the cache's directory is full or refuses; then what was saved before is still there.
    """
    cache.tidy(saved.tables)
    unsaved = sum(each.rows for each in state.tables[len(saved.tables) :])
    kept = _first_to_merge(state, saved, unsaved)
    merging = state.tables[kept:]
    first = len(saved.state.records) if kept == len(saved.tables) else merging[0].first
    living = state.live[state.live >= first]
    renumbered = np.full(len(state.records), DEAD)
    renumbered[living] = np.arange(len(living))
    names = list(saved.tables[:kept])
    tables = [(each.table, each.first) for each in state.tables[:kept]]
    rows = int(state.records["rows"][living].sum())
    if rows:
        table = cache.new_table(rows, lambda file: merge(merging, renumbered, file))
        names.append(table.name)
        tables.append((table, first))
    renumbered += first
    renumbered[:first] = np.arange(first)
    records = np.concatenate([state.records[:first], state.records[living]])
    held = {segment: renumbered[listed] for segment, listed in state.held.items()}
    return cache.save(names, State(tables, records, held))


def _first_to_merge(state: State, saved: Saved, unsaved: int) -> int:
    """The first saved table to make one with all after it and with this many unsaved rows."""
    tables = state.tables[: len(saved.tables)]
    firsts = [each.first for each in tables]
    ends = [*firsts[1:], len(saved.state.records)][: len(tables)]
    dead = [state.dead_rows(first, end) for first, end in zip(firsts, ends, strict=True)]
    return min(first_to_merge([*(each.rows for each in tables), unsaved], [*dead, 0]), len(tables))
