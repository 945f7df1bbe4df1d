"""vCenter and ESX. The only importer of pyVmomi."""
