"""The files of one VM at one instant: its volumes, what it mounts where, and looking around in them."""
