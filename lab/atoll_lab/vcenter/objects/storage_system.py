"""A host's storage system: software iSCSI, rescans, LUNs seen and volumes mounted."""

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, answers, exposes
from atoll_lab.vcenter.objects.volume_life import VolumeLife, scsi_uuid
from atoll_lab.vcenter.scan import visible_luns, volume_on
from atoll_lab.vcenter.state import DatastoreState, HostState, LunState, VolumeState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

ISCSI_HBA = "vmhba64"
_BLOCK_BYTES = 512
_DEFAULT_PORT = 3260


class StorageSystem(VolumeLife):
    """What a host sees is what it saw at its last rescan, exactly as with ESX."""

    kind = vim.host.StorageSystem

    def __init__(self, site: "Site", host: HostState) -> None:
        super().__init__(site, f"storageSystem-{host.moid.rpartition('-')[2]}", host)

    @property
    def display_name(self) -> str:
        """Its host's name."""
        return self._host.name

    @exposes("storageDeviceInfo")
    def device_info(self) -> Any:
        """Adapters and LUNs."""
        host = self._host
        hba = vim.host.InternetScsiHba(
            key=f"key-vim.host.InternetScsiHba-{ISCSI_HBA}",
            device=ISCSI_HBA,
            bus=0,
            status="online",
            model="iSCSI Software Adapter",
            driver="iscsi_vmk",
            storageProtocol="scsi",
            isSoftwareBased=True,
            canBeDisabled=True,
            discoveryCapabilities=vim.host.InternetScsiHba.DiscoveryCapabilities(
                iSnsDiscoverySettable=False,
                slpDiscoverySettable=False,
                staticTargetDiscoverySettable=True,
                sendTargetsDiscoverySettable=True,
            ),
            discoveryProperties=vim.host.InternetScsiHba.DiscoveryProperties(
                iSnsDiscoveryEnabled=False,
                slpDiscoveryEnabled=False,
                staticTargetDiscoveryEnabled=False,
                sendTargetsDiscoveryEnabled=True,
            ),
            authenticationCapabilities=vim.host.InternetScsiHba.AuthenticationCapabilities(
                chapAuthSettable=False,
                krb5AuthSettable=False,
                srpAuthSettable=False,
                spkmAuthSettable=False,
            ),
            authenticationProperties=vim.host.InternetScsiHba.AuthenticationProperties(
                chapAuthEnabled=False
            ),
            ipCapabilities=vim.host.InternetScsiHba.IPCapabilities(
                addressSettable=False,
                ipConfigurationMethodSettable=False,
                subnetMaskSettable=False,
                defaultGatewaySettable=False,
                primaryDnsServerAddressSettable=False,
                alternateDnsServerAddressSettable=False,
            ),
            ipProperties=vim.host.InternetScsiHba.IPProperties(),
            iScsiName=host.iqn,
            configuredSendTarget=[
                vim.host.InternetScsiHba.SendTarget(address=address, port=int(port))
                for address, _, port in (portal.rpartition(":") for portal in host.portals)
            ],
        )
        local = vim.host.BlockHba(
            key="key-vim.host.BlockHba-vmhba0",
            device="vmhba0",
            bus=0,
            status="unknown",
            model="Local disk controller",
        )
        return vim.host.StorageDeviceInfo(
            hostBusAdapter=[local, hba],
            scsiLun=[
                self._local_disk(),
                *(_scsi_disk(lun, detached=lun.naa in host.detached) for lun in host.luns),
            ],
            softwareInternetScsiEnabled=True,
        )

    @answers("AddInternetScsiSendTargets")
    def add_send_targets(self, call: Call, iScsiHbaDevice: str, targets: list[Any]) -> None:
        """Configure portals to discover at; seen only after a rescan."""
        self._require_hba(iScsiHbaDevice)
        for target in targets:
            self.add_portal(f"{target.address}:{target.port or _DEFAULT_PORT}")

    @answers("RemoveInternetScsiSendTargets")
    def remove_send_targets(
        self, call: Call, iScsiHbaDevice: str, targets: list[Any], force: bool = False
    ) -> None:
        """Forget portals; NotFound for one that is not configured."""
        self._require_hba(iScsiHbaDevice)
        gone = [f"{target.address}:{target.port or _DEFAULT_PORT}" for target in targets]
        with self.site.change():
            for portal in gone:
                if portal not in self._host.portals:
                    raise vim.fault.NotFound(msg=f"{portal} is not configured")
            self._host.portals = [kept for kept in self._host.portals if kept not in gone]

    @answers("RescanAllHba")
    def rescan_all(self, call: Call) -> None:
        """Discover and log in anew: LUNs come and go."""
        # The network is asked without the lock, so that clients are answered meanwhile.
        with self.site.registry.reading():
            portals = list(self._host.portals)
        found = visible_luns(self.site.fabric, portals, self._host.iqn)
        with self.site.change():
            known = {lun.naa: lun.volume for lun in self._host.luns}
            for lun in found:
                lun.volume = known.get(lun.naa)
            self._host.luns = found

    @answers("RescanHba")
    def rescan_one(self, call: Call, hbaDevice: str) -> None:
        """The same for one adapter; only the iSCSI adapter has anything to find."""
        if hbaDevice != "vmhba0":
            self._require_hba(hbaDevice)
            self.rescan_all(call)

    @answers("RescanVmfs")
    def rescan_vmfs(self, call: Call) -> None:
        """Read the headers of the visible LUNs and mount what is theirs."""
        with self.site.registry.reading():
            luns = list(self._host.luns)
        volumes = {lun.naa: volume_on(self.site.fabric, lun, self._host.iqn) for lun in luns}
        with self.site.change():
            for lun in self._host.luns:
                lun.volume = volumes.get(lun.naa)
            self._remount()

    @answers("RefreshStorageSystem")
    def refresh(self, call: Call) -> None:
        """Nothing is cached."""

    @answers("QueryUnresolvedVmfsVolume")
    def unresolved(self, call: Call) -> list[Any]:
        """Copies of volumes the host sees."""
        return self.unresolved_volumes()

    def add_portal(self, portal: str) -> None:
        """Configure one portal (`address:port`); known ones stay as they are."""
        with self.site.change():
            if portal not in self._host.portals:
                self._host.portals.append(portal)

    def unresolved_volumes(self) -> list[Any]:
        """Volumes whose header was written for another LUN: snapshots and clones."""
        with self.site.registry.reading():
            return [
                _unresolved(extents)
                for extents in _volumes(self._attached())
                if not all(_is_own(lun) for lun, _ in extents)
            ]

    def _remount(self) -> None:
        """Mount complete volumes that are no copies; let go of lost ones that nobody needs."""
        host, site = self._host, self.site
        mounted = []
        for extents in _volumes(self._attached()):
            head = extents[0][1]
            complete = head.ordinal == 0 and len(extents) >= head.extent_count
            if not complete or not all(_is_own(lun) for lun, _ in extents):
                continue
            if head.uuid in host.unmounted:
                continue
            known = {store.uuid: store for store in site.state.datastores}
            if head.uuid not in known:
                site.add_datastore(
                    DatastoreState(
                        moid=site.new_id("datastore"),
                        name=head.label or f"vmfs-{head.uuid[:8]}",
                        uuid=head.uuid,
                        extents=[lun.naa for lun, _ in extents],
                        size_bytes=sum(volume.size_bytes for _, volume in extents),
                        major_version=head.major_version,
                    )
                )
            mounted.append(head.uuid)
        needed = {
            site.datastore(store).state.uuid
            for vm in site.state.vms
            if vm.host == host.moid
            for store in (vm.datastore, *(disk.datastore for disk in vm.disks))
        }
        lost = [kept for kept in host.mounts if kept not in mounted and kept in needed]
        host.mounts = mounted + lost
        seen = {volume.uuid for lun in host.luns if (volume := lun.volume)}
        host.unmounted = [uuid for uuid in host.unmounted if uuid in seen]
        for store in list(site.state.datastores):
            if store.local_to is None and not site.datastore(store.moid).mounted_by():
                site.remove_datastore(store.moid)

    def _attached(self) -> list[LunState]:
        return [lun for lun in self._host.luns if lun.naa not in self._host.detached]

    def _require_hba(self, device: str) -> None:
        if device != ISCSI_HBA:
            raise vim.fault.NotFound(msg=f"{self._host.name} has no iSCSI adapter {device}")

    def _local_disk(self) -> Any:
        return vim.host.ScsiDisk(
            deviceName="/vmfs/devices/disks/mpx.vmhba0:C0:T0:L0",
            deviceType="disk",
            key="key-vim.host.ScsiDisk-local",
            uuid="0000000000766d686261303a303a30",
            canonicalName="mpx.vmhba0:C0:T0:L0",
            displayName=f"Local disk of {self._host.name}",
            lunType="disk",
            vendor="VMware",
            model="Virtual disk",
            operationalState=["ok"],
            capacity=vim.host.DiskDimensions.Lba(
                blockSize=_BLOCK_BYTES, block=(100 << 30) // _BLOCK_BYTES
            ),
            devicePath="/vmfs/devices/disks/mpx.vmhba0:C0:T0:L0",
            localDisk=True,
        )


def _scsi_disk(lun: LunState, *, detached: bool) -> Any:
    path = f"/vmfs/devices/disks/{lun.naa}"
    return vim.host.ScsiDisk(
        deviceName=path,
        deviceType="disk",
        key=f"key-vim.host.ScsiDisk-{lun.naa}",
        uuid=scsi_uuid(lun),
        canonicalName=lun.naa,
        displayName=f"{lun.vendor} iSCSI Disk ({lun.naa})",
        lunType="disk",
        vendor=lun.vendor,
        model=lun.product,
        serialNumber=lun.serial,
        operationalState=["off" if detached else "ok"],
        capacity=vim.host.DiskDimensions.Lba(
            blockSize=_BLOCK_BYTES, block=lun.size_bytes // _BLOCK_BYTES
        ),
        devicePath=path,
        localDisk=False,
    )


def _volumes(luns: list[LunState]) -> list[list[tuple[LunState, VolumeState]]]:
    """The extents the LUNs hold, one list a volume and origin, each in the volume's order."""
    grouped: dict[tuple[str, bool], list[tuple[LunState, VolumeState]]] = {}
    for lun in luns:
        if lun.volume is not None:
            key = (lun.volume.volume_id, _is_own(lun))
            grouped.setdefault(key, []).append((lun, lun.volume))
    return [sorted(extents, key=lambda each: each[1].ordinal) for extents in grouped.values()]


def _is_own(lun: LunState) -> bool:
    """Whether the header on a LUN was written for that LUN."""
    return lun.volume is not None and lun.naa == f"naa.{lun.volume.device_id}"


def _unresolved(extents: list[tuple[LunState, VolumeState]]) -> Any:
    head = extents[0][1]
    naas = [lun.naa for lun, _ in extents]
    ordinals = [volume.ordinal for _, volume in extents]
    incomplete = head.ordinal != 0 or len(set(ordinals)) < head.extent_count
    multiple = len(set(ordinals)) < len(ordinals)
    return vim.host.UnresolvedVmfsVolume(
        extent=[
            vim.host.UnresolvedVmfsExtent(
                device=vim.host.ScsiDisk.Partition(diskName=naa, partition=1),
                devicePath=f"/vmfs/devices/disks/{naa}:1",
                vmfsUuid=head.uuid,
                isHeadExtent=volume.ordinal == 0,
                ordinal=volume.ordinal,
                startBlock=0,
                endBlock=volume.size_bytes >> 20,
                reason="diskIdMismatch",
            )
            for naa, (_, volume) in zip(naas, extents, strict=True)
        ],
        vmfsLabel=head.label,
        vmfsUuid=head.uuid,
        totalBlocks=sum(volume.size_bytes for _, volume in extents) >> 20,
        resolveStatus=vim.host.UnresolvedVmfsVolume.ResolveStatus(
            resolvable=not incomplete and not multiple,
            incompleteExtents=incomplete,
            multipleCopies=multiple,
        ),
    )
