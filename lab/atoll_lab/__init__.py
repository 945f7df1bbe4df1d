"""A whole site in a box: storage, VMFS volumes, guests, vCenter and ESX."""
