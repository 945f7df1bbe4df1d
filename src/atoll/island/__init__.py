"""Away from production: map the snapshot, copy its disks, retire it."""
