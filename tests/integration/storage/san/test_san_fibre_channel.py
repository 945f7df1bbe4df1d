"""The way to Fibre Channel, run over the kernel's loopback fabric in place of an HBA."""

import pytest

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll_lab.iscsi import IscsiLun
from san_system import HOST, MIB, SanSystem

pytestmark = pytest.mark.needs_root

PORT = "naa.6001405aa0000001"
HBA, OTHER = "naa.10000090fa000001", "naa.10000090fa000002"
LOOPBACK = {"fc_fabric": "loopback", "fc_ports": [PORT]}


def disks(system: SanSystem) -> list[str]:
    """The guest's SCSI disks as their own initiator sees them after a scan."""
    return system.guest.shell.check(
        "for host in /sys/class/scsi_host/host*/scan; do echo '- - -' >$host; done; "
        "ls /sys/block | grep '^sd' || true"
    ).split()


def test_a_lun_is_reached_over_the_fabric_by_those_named(system: SanSystem) -> None:
    engine = system.open(**LOOPBACK)
    engine.create_group("fc")
    lun = engine.create_lun("fc", "a", 16 * MIB)
    engine.create_lun("fc", "b", 16 * MIB)
    [portal] = engine.present("fc", "a", [HBA]).portals
    assert (portal.address, portal.target) == (PORT, PORT)
    assert portal.lun_number == 0, "the loopback fabric finds no other by a scan"
    assert engine.present("fc", "b", [OTHER]).portals[0].lun_number == 1
    # The one that was named logs in, and sees its LUN alone.
    place = f"/sys/kernel/config/target/loopback/{PORT}/tpgt_1"
    system.guest.shell.check(f"echo {HBA} >{place}/nexus")
    [disk] = disks(system)
    facts = system.guest.shell.check(
        f"cd /sys/block/{disk}/device && cat vendor model wwid; "
        f"readlink -f . | sed 's/.*://'; tail -c +5 vpd_pg80 | tr -d '\\0'"
    ).split("\n")
    assert [fact.strip() for fact in facts[:4]] == [
        lun.vendor,
        lun.product,
        lun.naa,
        "0",
    ]
    assert facts[4] == lun.serial
    system.guest.shell.check(
        f"printf 'over the fabric' | dd of=/dev/{disk} conv=sync bs=512 oflag=direct 2>/dev/null"
    )
    # Both ways lead to the same bytes.
    shown = engine.present("fc", "a", [HOST, HBA]).portals[0]
    portal = f"{shown.address}:{shown.port}"
    with IscsiLun(portal, shown.target, shown.lun_number, HOST) as session:
        assert session.read(0, 512)[:15] == b"over the fabric"
    assert engine.reconcile() == []
    # With no ports in the settings any more, nobody reaches it there.
    system.engine.present("fc", "a", [HOST])
    assert disks(system) == []
    engine.withdraw("fc", "a")
    assert disks(system) == []
    engine.delete_group("fc", force=True)


def test_a_port_the_server_lacks_is_told(system: SanSystem) -> None:
    with pytest.raises(StorageUnreachableError, match="has no Fibre Channel port"):
        system.open(fc_ports=[PORT])


def test_without_ports_nobody_is_let_in_over_fibre_channel(system: SanSystem) -> None:
    engine = system.engine
    engine.create_group("nofc")
    engine.create_lun("nofc", "a", 16 * MIB)
    with pytest.raises(StorageConflictError):
        engine.present("nofc", "a", [HBA])
    engine.delete_group("nofc", force=True)
