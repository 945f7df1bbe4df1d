"""The simulator's managed objects, one kind a file."""
