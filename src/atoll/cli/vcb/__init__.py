"""The commands of VMware Consolidated Backup, served from a run (docs/operations/vcb.md).

Options, layouts and messages follow VMware's "Virtual Machine Backup Guide" (ESX Server 3.5) as it
is commonly known, and scripts that people published; they were compared with no real VCB.
"""
