"""Disks served over NBD: `server.NbdServer` serves `exports.Export`s at a `listening.Address`."""
