"""Whole jobs made of the other packages' steps, and the journal that survives a crash."""
