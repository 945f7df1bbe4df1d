"""Which VMs are no workloads."""

import pytest

from atoll.vsphere.placeholders import skip_reason

UUID = "0a1b2c3d-1111-4222-8333-444455556666"


@pytest.mark.parametrize(
    ("name", "manager", "disks"),
    [
        (f"vCLS-{UUID}", None, 1),
        ("vCLS (3)", None, 1),
        ("whatever", "com.vmware.vim.eam", 1),
        ("db1-phVm", None, 0),
        ("db1", "com.vmware.vcDr", 0),
        ("db1", "com.vmware.vcDr-site2", 0),
    ],
)
def test_what_vsphere_keeps_for_itself_is_left_out(name, manager, disks):
    assert skip_reason(name, manager, disks)


@pytest.mark.parametrize(
    ("name", "manager", "disks"),
    [
        ("db1", None, 1),
        ("db1", None, 0),
        ("vCLS-migration-notes", None, 1),
        ("billing-phVm", None, 2),
        ("db1", "com.vmware.vcDr", 1),
        ("db1", "com.example.portal", 1),
    ],
)
def test_somebodys_vm_counts_whatever_it_is_called(name, manager, disks):
    assert skip_reason(name, manager, disks) is None
