"""Who reaches which LUN of an SVM: igroups, LUN maps, CHAP, and the SVM's interfaces."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from atoll.model.errors import StorageConflictError
from atoll.model.storage import Portal
from atoll.storage.backend import Chap, Export, Place
from atoll.storage.drivers.array import LunNumbers, is_fibre_channel, numbered
from atoll.storage.drivers.ontap.names import Names
from atoll.storage.drivers.ontap.session import Ontap, OntapRefusedError, at
from atoll.storage.locks import Locks

_ISCSI_PORT = 3260


@dataclass(frozen=True, slots=True)
class LunMap:
    """A LUN shown to an igroup."""

    lun: str
    igroup: str
    igroup_uuid: str
    number: int


class Igroups:
    """One igroup per initiator, all of them ours: ONTAP lets an initiator be in several."""

    def __init__(self, ontap: Ontap, svm: str, names: Names, place: Place, os_type: str) -> None:
        self._ontap = ontap
        self._svm = svm
        self._names = names
        self._notes = place.notes
        self._locks = Locks(place.run)
        self._numbers = LunNumbers(place)
        self._os_type = os_type

    @cached_property
    def _target(self) -> str | None:
        """The SVM's iSCSI name, None when it has no iSCSI service."""
        found = self._ontap.find("IscsiService", "target.name,enabled", **{"svm.name": self._svm})
        return at(found[0], "target", "name") if found and at(found[0], "enabled") else None

    @cached_property
    def _addresses(self) -> list[str]:
        found = self._ontap.find(
            "IpInterface",
            "ip.address,enabled,services",
            **{"svm.name": self._svm, "services": "data_iscsi"},
        )
        return sorted(at(each, "ip", "address") for each in found if at(each, "enabled"))

    @cached_property
    def _wwpns(self) -> list[str]:
        found = self._ontap.find(
            "FcInterface",
            "wwpn,enabled",
            **{"svm.name": self._svm, "data_protocol": "fcp"},
        )
        return sorted(_plain(each["wwpn"]) for each in found if at(each, "enabled"))

    def protocols(self) -> frozenset[str]:
        """What the SVM's interfaces speak, of what we do."""
        found = {"iscsi"} if self._target and self._addresses else set()
        return frozenset(found | ({"fc"} if self._wwpns else set()))

    def portals(self, initiators: Iterable[str]) -> tuple[Portal, ...]:
        """The SVM's interfaces that these can log in to, all for LUN 0.

        A Fibre Channel port is `naa.` and its WWPN, without a port number.
        """
        kinds = {is_fibre_channel(initiator) for initiator in initiators}
        found = []
        if False in kinds and self._target:
            found += [Portal(address, _ISCSI_PORT, self._target, 0) for address in self._addresses]
        if True in kinds:
            found += [Portal(f"naa.{wwpn}", 0, f"naa.{wwpn}", 0) for wwpn in self._wwpns]
        return tuple(found)

    def portals_of(self, export: Export) -> tuple[Portal, ...]:
        """Where an export is reached."""
        return numbered(self.portals(export.initiators), self._number(export))

    def maps(self, luns: str) -> list[LunMap]:
        """The maps of LUNs whose path is like this."""
        found = self._ontap.find(
            "LunMap",
            "igroup.name,igroup.uuid,logical_unit_number,lun.uuid",
            **{"svm.name": self._svm, "lun.name": luns},
        )
        return [
            LunMap(
                each["lun"]["uuid"],
                each["igroup"]["name"],
                each["igroup"]["uuid"],
                int(each["logical_unit_number"]),
            )
            for each in found
        ]

    def serve(self, exports: Sequence[tuple[Export, str]], maps: Iterable[LunMap]) -> list[str]:
        """Map LUNs, by UUID, to exactly their initiators, and no others; one sentence per change.

        `maps` are those of all LUNs the exports stand for, wanted or not.
        """
        now = list(maps)
        done: list[str] = []
        idle: set[str] = set()
        with self._locks.held("_hosts"):  # or another might drop an igroup between its two steps
            igroups = self._igroups_of(each for each, _ in exports)
            for export, lun in exports:
                number = self._number(export)
                wanted = {igroups[initiator] for initiator in export.initiators}
                mine = [each for each in now if each.lun == lun]
                gone = [each for each in mine if each.igroup not in wanted or each.number != number]
                fresh = wanted - ({each.igroup for each in mine} - {each.igroup for each in gone})
                # First what goes: it may be another igroup with the same initiator, which can have
                # a LUN only once.
                self._unmap(gone)
                for igroup in sorted(fresh):
                    self._map(lun, igroup, number)
                if gone or fresh:
                    done.append(f"Mapped LUN {export.identity.naa} anew.")
                idle |= {each.igroup for each in gone} - wanted
            shown = {lun for _, lun in exports}
            stray = [each for each in now if each.lun not in shown]
            for lun in sorted({each.lun for each in stray}):
                done.append(f"Unmapped LUN {lun}, which is presented to nobody.")
            self._unmap(stray)
            self._drop_idle(idle | {each.igroup for each in stray})
        return done

    def withdraw(self, luns: str) -> None:
        """Unmap all LUNs whose path is like this."""
        with self._locks.held("_hosts"):
            gone = self.maps(luns)
            self._unmap(gone)
            self._drop_idle({each.igroup for each in gone})

    def map_proxy(self, lun: str, path: str, initiator: str, chap: Chap | None) -> int:
        """Show a LUN to this machine; the number ONTAP gave it."""
        with self._locks.held("_hosts"):
            self._map(lun, self._igroup(self._there(), initiator, chap, os_type="linux"), None)
        return self.maps(path)[0].number

    def forget(self, volume: str) -> None:
        """A volume is gone, and its LUN number free."""
        self._numbers.forget(volume)

    def _number(self, export: Export) -> int:
        return self._numbers.of(export.volume, lambda: self._taken(export.initiators))

    def _taken(self, initiators: Collection[str]) -> set[int]:
        """LUN numbers under which these initiators see anything."""
        wanted = {_written(initiator) for initiator in initiators}
        igroups = self._ontap.find("Igroup", "name,initiators.name", **{"svm.name": self._svm})
        theirs = {
            each["name"]
            for each in igroups
            if wanted & {str(one["name"]).lower() for one in each.get("initiators") or ()}
        }
        maps = self._ontap.find(
            "LunMap", "igroup.name,logical_unit_number", **{"svm.name": self._svm}
        )
        return {
            int(each["logical_unit_number"]) for each in maps if each["igroup"]["name"] in theirs
        }

    def _map(self, lun: str, igroup: str, number: int | None) -> None:
        """Show a LUN to an igroup, under a number of ONTAP's choice if None."""
        body: dict[str, Any] = {
            "svm": {"name": self._svm},
            "lun": {"uuid": lun},
            "igroup": {"name": igroup},
        }
        if number is not None:
            body["logical_unit_number"] = number
        try:
            self._ontap.make("LunMap", f"map LUN {lun} to {igroup}", body)
        except OntapRefusedError:
            # A call that was cut short may have done it before.
            found = self._ontap.find(
                "LunMap",
                "logical_unit_number",
                **{"svm.name": self._svm, "lun.uuid": lun, "igroup.name": igroup},
            )
            if not any(number in (None, each["logical_unit_number"]) for each in found):
                raise

    def _unmap(self, maps: Iterable[LunMap]) -> None:
        for each in maps:
            self._ontap.remove(
                "LunMap",
                f"unmap LUN {each.lun} from {each.igroup}",
                {"lun.uuid": each.lun, "igroup.uuid": each.igroup_uuid},
            )

    def _drop_idle(self, igroups: Iterable[str]) -> None:
        """Delete those igroups of ours that map nothing any more, and their initiators' accounts."""
        for name in sorted(igroup for igroup in igroups if self._names.is_igroup(igroup)):
            where = {"svm.name": self._svm}
            if self._ontap.find("LunMap", "lun.uuid", **where, **{"igroup.name": name}):
                continue
            for found in self._ontap.find("Igroup", "uuid,initiators.name", name=name, **where):
                for each in found.get("initiators") or ():
                    self._set_chap(str(each["name"]), None)
                self._ontap.remove("Igroup", f"delete igroup {name}", {"uuid": found["uuid"]})

    def _there(self) -> set[str]:
        found = self._ontap.find("Igroup", "name", **{"svm.name": self._svm})
        return {str(each["name"]) for each in found}

    def _igroups_of(self, exports: Iterable[Export]) -> dict[str, str]:
        """Igroups by initiator, all of which are there then."""
        accounts = {
            initiator: export.chap.get(initiator)
            for export in exports
            for initiator in export.initiators
        }
        there = self._there() if accounts else set()
        return {
            initiator: self._igroup(there, initiator, chap) for initiator, chap in accounts.items()
        }

    def _igroup(
        self,
        there: Collection[str],
        initiator: str,
        chap: Chap | None,
        os_type: str | None = None,
    ) -> str:
        """The name of the initiator's igroup, which is there then, and so is its account."""
        name = self._names.igroup(initiator)
        if name not in there:
            try:
                self._ontap.make(
                    "Igroup",
                    f"create igroup {name}",
                    {
                        "svm": {"name": self._svm},
                        "name": name,
                        "os_type": os_type or self._os_type,
                        "protocol": "fcp" if is_fibre_channel(initiator) else "iscsi",
                        "initiators": [{"name": _written(initiator)}],
                    },
                )
            except OntapRefusedError:
                if name not in self._there():
                    raise
        if not is_fibre_channel(initiator):
            self._set_chap(initiator, chap)
        return name

    def _set_chap(self, initiator: str, chap: Chap | None) -> None:
        """Give an initiator an account, or take away the one we gave it.

        ONTAP never shows secrets, so a digest of what it was given is noted; an
        account without a note is somebody else's.
        """
        initiator = _written(initiator)
        key = f"chap:{initiator}"
        noted = self._notes.note(key)
        if chap is None and noted is None:
            return
        found = self._credentials(initiator)
        if chap is None:
            if found is not None:
                self._ontap.remove(
                    "IscsiCredentials",
                    f"forget the CHAP account of {initiator}",
                    _place_of(found),
                )
            self._notes.put_note(key, None)
            return
        told = _digest(initiator, chap)
        if found is not None and noted == told:
            return
        if found is not None and noted is None:
            if at(found, "chap", "inbound", "user") != chap.user:
                raise StorageConflictError(
                    f"SVM {self._svm} has iSCSI credentials for {initiator} that Atoll did not "
                    "make; give them what the settings say by hand, or correct the settings."
                )
            return
        self._notes.put_note(key, "")  # ours, whatever becomes of this call
        account: dict[str, object] = {"inbound": {"user": chap.user, "password": chap.secret}}
        if chap.mutual_user is not None:
            account["outbound"] = {"user": chap.mutual_user, "password": chap.mutual_secret}
        body: dict[str, object] = {"authentication_type": "chap", "chap": account}
        doing = f"set the CHAP account of {initiator}"
        if found is None:
            where = {"svm": {"name": self._svm}, "initiator": initiator}
            try:
                self._ontap.make("IscsiCredentials", doing, {**where, **body})
            except OntapRefusedError:
                # A call whose answer got lost may have made it before.
                found = self._credentials(initiator)
                if found is None:
                    raise
        if found is not None:
            self._ontap.change("IscsiCredentials", doing, _place_of(found), body)
        self._notes.put_note(key, told)

    def _credentials(self, initiator: str) -> dict[str, Any] | None:
        found = self._ontap.find(
            "IscsiCredentials",
            "authentication_type,chap.inbound.user,svm.uuid",
            **{"svm.name": self._svm, "initiator": initiator},
        )
        return next(iter(found), None)


def _place_of(credentials: dict[str, Any]) -> dict[str, str]:
    """The keys of iSCSI credentials."""
    return {"svm.uuid": credentials["svm"]["uuid"], "initiator": credentials["initiator"]}


def _written(initiator: str) -> str:
    """An initiator as ONTAP writes it: a WWPN is in pairs of digits between colons."""
    if not is_fibre_channel(initiator):
        return initiator.lower()
    plain = initiator.removeprefix("naa.").lower()
    return ":".join(plain[start : start + 2] for start in range(0, len(plain), 2))


def _plain(wwn: str) -> str:
    return wwn.replace(":", "").lower()


def _digest(initiator: str, chap: Chap) -> str:
    text = f"{initiator}\t{chap.user}\t{chap.secret}\t{chap.mutual_user}\t{chap.mutual_secret}"
    return hashlib.sha256(text.encode()).hexdigest()
