"""Plan, hold, snapshot, release, proof."""
