"""What a VMX calls things, in the words of vSphere's API."""

import pytest
from pyVmomi import vim

from atoll.vsphere.import_spec import guest_id


@pytest.mark.parametrize(
    ("vmx", "api"),
    [
        ("debian12-64", "debian12_64Guest"),
        ("ubuntu-64", "ubuntu64Guest"),
        ("centos7-64", "centos7_64Guest"),
        ("rhel9-64", "rhel9_64Guest"),
        ("sles15-64", "sles15_64Guest"),
        ("other", "otherGuest"),
        ("other-64", "otherGuest64"),
        ("other5xlinux-64", "other5xLinux64Guest"),
        ("otherlinux", "otherLinuxGuest"),
        ("windows9srv-64", "windows9Server64Guest"),
        ("windows2019srv-64", "windows2019srv_64Guest"),
        ("windows2019srvNext-64", "windows2019srvNext_64Guest"),
        ("winNetEnterprise-64", "winNetEnterprise64Guest"),
        ("longhorn-64", "winLonghorn64Guest"),
        ("freebsd13-64", "freebsd13_64Guest"),
        ("oraclelinux8-64", "oracleLinux8_64Guest"),
        ("vmware-photon-64", "vmwarePhoton64Guest"),
        ("toaster", None),
        ("", None),
    ],
)
def test_guests(vmx: str, api: str | None) -> None:
    assert guest_id(vmx) == api
    assert api is None or api in vim.vm.GuestOsDescriptor.GuestOsIdentifier.values
