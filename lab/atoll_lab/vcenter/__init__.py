"""A vCenter and its ESX hosts, simulated: pyVmomi's own types answer the stock pyVmomi client."""
