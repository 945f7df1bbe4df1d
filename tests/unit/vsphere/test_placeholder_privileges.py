"""The role that everybody has on placeholders: enough for a backup, too little to start one."""

from atoll.vsphere.placeholder_folder import PRIVILEGES

NEEDED_BY_BACKUP = {
    "Global.DisableMethods",
    "Global.EnableMethods",
    "VirtualMachine.Config.ChangeTracking",
    "VirtualMachine.Config.DiskLease",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
}
"""As VMware's guide to its disk library lists them, and the disk lease, which SAN needs."""


def test_backup_software_may_do_on_placeholders_what_it_has_to() -> None:
    assert set(PRIVILEGES) >= NEEDED_BY_BACKUP


def test_a_refresh_may_write_what_it_says_of_the_run_into_the_notes() -> None:
    assert "VirtualMachine.Config.Annotation" in PRIVILEGES


def test_nobody_may_power_on_a_placeholder_or_write_to_its_disks() -> None:
    assert not [each for each in PRIVILEGES if each.startswith("VirtualMachine.Interact.")]
    assert "VirtualMachine.Provisioning.DiskRandomAccess" not in PRIVILEGES
    assert "VirtualMachine.State.RevertToSnapshot" not in PRIVILEGES
    assert len(PRIVILEGES) == len(set(PRIVILEGES))
