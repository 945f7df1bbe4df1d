"""Files, disks and restore tests from restore points."""
