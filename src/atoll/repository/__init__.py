"""Where restore points live: chunks, packs, index, restore points, keys."""
