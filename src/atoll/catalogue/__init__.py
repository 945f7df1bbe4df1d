"""What files a restore point has: made in the same pass as its copy, searched over points and VMs."""
