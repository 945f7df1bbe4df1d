"""An ONTAP cluster with one SVM: REST 9.14 as its documentation and SDK have it, over real data."""

import base64
import itertools
import os
import re
import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from array_blocks import Blocks
from array_http import ArrayServer, Fault, Reply, Request, wildcard
from array_iscsi import Account, IscsiTarget
from array_scsi import Disk

_PORT = 3260
_SERIAL = string.ascii_letters + string.digits + "+-/<=>?@[]^_"
_FLEXVOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,202}")
_LEAST_FLEXVOL = 20 << 20
_CONTROL = {"fields", "max_records", "return_timeout", "return_records", "start", "force"}


class RefusedError(Exception):
    """An error of the API: status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class LunState:
    uuid: str
    path: str
    serial: str
    key: str
    os_type: str
    comment: str = ""
    thin: bool = False
    online: bool = True
    moving: int = 0

    @property
    def flexvol(self) -> str:
        return self.path.split("/")[2]


@dataclass
class SnapshotState:
    uuid: str
    name: str
    luns: dict[str, LunState]


@dataclass
class FlexVolState:
    uuid: str
    name: str
    size: int
    comment: str = ""
    parent: str | None = None
    base: str | None = None
    snapshots: dict[str, SnapshotState] = field(default_factory=dict)


@dataclass
class IgroupState:
    uuid: str
    name: str
    os_type: str
    protocol: str
    initiators: list[str]


@dataclass
class Job:
    polls: int
    failure: str | None = None


class OntapArray:
    """Its state, its REST API and its iSCSI target. `page_size` is the most records of an answer.

    `slow_jobs` is how often a job is still running when it is asked about.
    """

    def __init__(self, directory: Path, *, page_size: int = 10000) -> None:
        self.blocks = Blocks(directory / "blocks")
        self.user, self.password = "atoll", secrets.token_hex(12)
        self.svm, self.svm_uuid, self.aggregate = "svm1", str(uuid4()), "aggr1"
        self.page_size = page_size
        self.slow_jobs = 0
        self.fail_jobs: dict[str, str] = {}
        self.version = (9, 14, 1)
        self.flexvols: dict[str, FlexVolState] = {}
        self.luns: dict[str, LunState] = {}
        self.igroups: dict[str, IgroupState] = {}
        self.maps: dict[tuple[str, str], int] = {}
        self.credentials: dict[str, Account | None] = {}
        self.wwpns: list[str] = []
        self._jobs: dict[str, Job] = {}
        self._directory = directory
        iqn = f"iqn.1992-08.com.netapp:sn.{secrets.token_hex(16)}:vs.3"
        self.target = _listen(iqn, self)
        self.server = ArrayServer(self, directory / "tls")

    def close(self) -> None:
        self.server.close()
        self.target.close()
        self.blocks.close()

    def settings(self, directory: Path) -> dict[str, Any]:
        """The driver's part of a `[[storage]]` section; the secret is put into `directory`."""
        password = directory / "password"
        password.write_text(f"{self.password}\n")
        return {
            "driver": "ontap",
            "host": "127.0.0.1",
            "port": self.server.port,
            "ca_file": str(self.server.ca_file),
            "user": self.user,
            "password_file": str(password),
            "svm": self.svm,
            "aggregate": self.aggregate,
        }

    # Towards initiators

    def admits(self, initiator: str) -> bool:
        return True

    def account(self, initiator: str) -> Account | None:
        return self.credentials.get(initiator)

    def disks(self, initiator: str) -> dict[int, Disk]:
        groups = {each.uuid for each in list(self.igroups.values()) if initiator in each.initiators}
        return {
            number: self._disk(self.luns[lun])
            for (lun, igroup), number in list(self.maps.items())
            if igroup in groups and self.luns[lun].online
        }

    def _disk(self, lun: LunState) -> Disk:
        naa = "naa.600a0980" + lun.serial.encode().hex()
        return Disk(self.blocks, lun.key, naa, lun.serial, "NETAPP", "LUN C-Mode", lun.thin)

    # Towards administrators

    def answer(self, request: Request) -> Reply:
        said = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {said}":
            return Reply(401, _error("6691623", "User is not authorized."))
        for pattern, handlers in _ROUTES:
            found = re.fullmatch(pattern, request.path)
            if found is not None and request.method in handlers:
                handler: Callable[..., Reply] = getattr(self, handlers[request.method])
                try:
                    return handler(request, *found.groups())
                except RefusedError as error:
                    return Reply(error.status, _error(error.code, str(error)))
        return Reply(404, _error("3", f"Unknown API: {request.path}"))

    def _collection(
        self, request: Request, records: Sequence[dict[str, Any]], keys: Sequence[str]
    ) -> Reply:
        """Records that match the query, with their keys and the fields asked for, a page of them."""
        query = dict(request.query)
        fields = [each for each in query.pop("fields", "").split(",") if each]
        most = min(int(query.pop("max_records", self.page_size)), self.page_size)
        start = int(query.pop("start", 0))
        for name in _CONTROL:
            query.pop(name, None)
        matching = [
            record
            for record in records
            if all(_matches(record, name, value) for name, value in query.items())
        ]
        page = [_only(record, [*keys, *fields]) for record in matching[start : start + most]]
        answer: dict[str, Any] = {"records": page, "num_records": len(page)}
        if start + most < len(matching):
            rest = "&".join(f"{name}={value}" for name, value in request.query.items())
            rest = re.sub(r"(^|&)start=\d+", "", rest)
            answer["_links"] = {"next": {"href": f"{request.path}?{rest}&start={start + most}"}}
        return Reply(200, answer)

    def _job(self, what: str, action: Callable[[], None], location: str | None = None) -> Reply:
        """Begin a job. It is done at once, and says so when it was asked often enough."""
        uuid = str(uuid4())
        failure = self.fail_jobs.pop(what, None)
        if failure is None:
            action()
        self._jobs[uuid] = Job(self.slow_jobs, failure)
        link = {"uuid": uuid, "_links": {"self": {"href": f"/api/cluster/jobs/{uuid}"}}}
        return Reply(202, {"job": link}, {"Location": location} if location else {})

    def get_job(self, _: Request, uuid: str) -> Reply:
        job = self._jobs[uuid]
        if job.polls > 0:
            job.polls -= 1
            return Reply(200, {"uuid": uuid, "state": "running", "message": "working"})
        state = "failure" if job.failure else "success"
        return Reply(200, {"uuid": uuid, "state": state, "message": job.failure or "success"})

    def get_cluster(self, request: Request) -> Reply:
        generation, major, minor = self.version
        version = {"generation": generation, "major": major, "minor": minor, "full": "NetApp"}
        return Reply(200, {"name": "cluster1", "version": version})

    def get_svms(self, request: Request) -> Reply:
        return self._collection(request, [self._svm()], ["uuid", "name"])

    def get_aggregates(self, request: Request) -> Reply:
        status = os.statvfs(self._directory)
        space = {
            "size": status.f_blocks * status.f_frsize,
            "available": status.f_bavail * status.f_frsize,
        }
        record = {"uuid": "a1", "name": self.aggregate, "space": {"block_storage": space}}
        return self._collection(request, [record], ["uuid", "name"])

    def get_services(self, request: Request) -> Reply:
        record = {"svm": self._svm(), "enabled": True, "target": {"name": self.target.name}}
        return self._collection(request, [record], ["svm"])

    def get_ip_interfaces(self, request: Request) -> Reply:
        records = [
            {
                "uuid": f"lif{number}",
                "name": f"lif{number}",
                "ip": {"address": address},
                "enabled": True,
                "services": ["data_core", "data_iscsi"],
                "svm": self._svm(),
            }
            for number, (address, _) in enumerate(self.target.portals)
        ]
        nfs = {**records[0], "uuid": "nfs", "name": "nfs", "services": ["data_nfs"]}
        return self._collection(request, [*records, nfs], ["uuid", "name"])

    def get_fc_interfaces(self, request: Request) -> Reply:
        records = [
            {"uuid": wwpn, "name": "fc", "wwpn": wwpn, "enabled": True, "data_protocol": "fcp",
             "svm": self._svm()}
            for wwpn in self.wwpns
        ]  # fmt: skip
        return self._collection(request, records, ["uuid", "name"])

    # FlexVols and their snapshots

    def get_volumes(self, request: Request) -> Reply:
        records = []
        for each in self.flexvols.values():
            clone: dict[str, Any] = {"is_flexclone": each.base is not None}
            if each.base is not None:
                clone["parent_snapshot"] = {"name": each.base}
            records.append(
                {"uuid": each.uuid, "name": each.name, "size": each.size, "state": "online",
                 "comment": each.comment, "clone": clone, "svm": self._svm()}
            )  # fmt: skip
        return self._collection(request, records, ["uuid", "name"])

    def post_volume(self, request: Request) -> Reply:
        body = request.body
        name = body["name"]
        self._check_svm(body)
        if not _FLEXVOL.fullmatch(name):
            raise RefusedError(400, "917835", f"Invalid volume name {name}.")
        if self._flexvol(name):
            raise RefusedError(409, "917927", f"Volume {name} already exists.")
        if body.get("guarantee", {}).get("type") != "none":
            raise RefusedError(400, "787140", "Not enough space: the fake keeps thin volumes only.")
        fresh = FlexVolState(str(uuid4()), name, _LEAST_FLEXVOL, body.get("comment", ""))
        clone = body.get("clone")
        if clone:
            parent = self._flexvol(clone["parent_volume"]["name"])
            taken = parent.snapshots.get(clone["parent_snapshot"]["name"]) if parent else None
            if parent is None or taken is None:
                raise RefusedError(400, "524553", "The parent snapshot was not found.")
            fresh.size, fresh.parent, fresh.base = parent.size, parent.uuid, taken.name
        else:
            if [each["name"] for each in body.get("aggregates", ())] != [self.aggregate]:
                raise RefusedError(400, "787141", "The specified aggregate was not found.")
            fresh.size = int(body.get("size", _LEAST_FLEXVOL))
            taken = None

        def create() -> None:
            self.flexvols[fresh.uuid] = fresh
            for path, lun in taken.luns.items() if taken else ():
                own = f"/vol/{name}/{path.rpartition('/')[2]}"
                self._new_lun(own, lun.os_type, lun.key, comment=lun.comment, thin=lun.thin)
            if taken is not None:  # the clone shows the snapshot it stands on
                fresh.snapshots[taken.name] = SnapshotState(str(uuid4()), taken.name, {})

        return self._job("volume-create", create, f"/api/storage/volumes/{fresh.uuid}")

    def patch_volume(self, request: Request, uuid: str) -> Reply:
        flexvol = self._known_flexvol(uuid)

        def change() -> None:
            flexvol.size = int(request.body.get("size", flexvol.size))

        return self._job("volume-modify", change)

    def delete_volume(self, request: Request, uuid: str) -> Reply:
        flexvol = self._known_flexvol(uuid)
        luns = [each for each in self.luns.values() if each.flexvol == flexvol.name]
        if any(lun.uuid == mapped for lun in luns for mapped, _ in self.maps):
            raise RefusedError(409, "917736", "The volume holds mapped LUNs.")
        if any(each.parent == uuid for each in self.flexvols.values()):
            raise RefusedError(409, "13001", "The volume has one or more clones.")

        def remove() -> None:
            for lun in luns:
                self.blocks.delete(self.luns.pop(lun.uuid).key)
            for taken in flexvol.snapshots.values():
                for lun in taken.luns.values():
                    self.blocks.delete(lun.key)
            del self.flexvols[uuid]

        return self._job("volume-delete", remove)

    def get_snapshots(self, request: Request, uuid: str) -> Reply:
        records = [
            {"uuid": taken.uuid, "name": taken.name, "svm": self._svm(),
             "volume": {"uuid": flexvol.uuid, "name": flexvol.name}}
            for flexvol in self.flexvols.values()
            for taken in flexvol.snapshots.values()
            if uuid in ("*", flexvol.uuid)
        ]  # fmt: skip
        return self._collection(request, records, ["uuid", "name", "volume"])

    def post_snapshot(self, request: Request, uuid: str) -> Reply:
        flexvol, name = self._known_flexvol(uuid), request.body["name"]
        if name in flexvol.snapshots:
            raise RefusedError(409, "1638555", f"Snapshot {name} already exists.")
        taken = SnapshotState(str(uuid4()), name, {})

        def take() -> None:
            with self.blocks.lock:  # no write is acknowledged until all are there
                for lun in [one for one in self.luns.values() if one.flexvol == flexvol.name]:
                    key = secrets.token_hex(16)
                    self.blocks.copy(lun.key, key)
                    taken.luns[lun.path] = LunState(
                        lun.uuid, lun.path, lun.serial, key, lun.os_type, lun.comment, lun.thin
                    )
            flexvol.snapshots[name] = taken

        location = f"/api/storage/volumes/{uuid}/snapshots/{taken.uuid}"
        return self._job("snapshot-create", take, location)

    def delete_snapshot(self, request: Request, uuid: str, snapshot: str) -> Reply:
        flexvol = self._known_flexvol(uuid)
        taken = next((one for one in flexvol.snapshots.values() if one.uuid == snapshot), None)
        if taken is None:
            raise RefusedError(404, "4", "entry doesn't exist")
        users = [each.name for each in self.flexvols.values() if each.parent == uuid]
        based = [each.base for each in self.flexvols.values() if each.parent == uuid]
        if taken.name in based or flexvol.base == taken.name:
            raise RefusedError(
                409, "1638600", f"Snapshot {taken.name} is busy: it backs {', '.join(users)}."
            )

        def remove() -> None:
            for lun in taken.luns.values():
                self.blocks.delete(lun.key)
            del flexvol.snapshots[taken.name]

        return self._job("snapshot-delete", remove)

    # LUNs

    def get_luns(self, request: Request) -> Reply:
        records = []
        for lun in list(self.luns.values()):
            record: dict[str, Any] = {
                "uuid": lun.uuid,
                "name": lun.path,
                "serial_number": lun.serial,
                "os_type": lun.os_type,
                "comment": lun.comment,
                "enabled": lun.online,
                "status": {"state": "online" if lun.online else "offline"},
                "space": {
                    "size": self.blocks.size(lun.key),
                    "scsi_thin_provisioning_support_enabled": lun.thin,
                },
                "location": {"volume": {"name": lun.flexvol}},
                "svm": self._svm(),
            }
            if lun.moving:
                lun.moving -= 1
                record["movement"] = {"progress": {"state": "replicating"}}
            records.append(record)
        return self._collection(request, records, ["uuid", "name"])

    def post_lun(self, request: Request) -> Reply:
        body = request.body
        path, space = body["name"], body.get("space", {})
        self._check_svm(body)
        self._check_lun_path(path)
        if space.get("guarantee", {}).get("requested", False):
            raise RefusedError(400, "5374876", "Not enough space for a reservation.")
        lun = self._new_lun(
            path,
            body["os_type"],
            comment=body.get("comment", ""),
            thin=bool(space.get("scsi_thin_provisioning_support_enabled")),
        )
        self.blocks.create(lun.key, int(space["size"]))
        return Reply(201, {"num_records": 1}, {"Location": f"/api/storage/luns/{lun.uuid}"})

    def patch_lun(self, request: Request, uuid: str) -> Reply:
        lun, body = self._known_lun(uuid), request.body
        if "name" in body:
            if len(body) > 1:
                raise RefusedError(400, "5374864", "A name is changed on its own.")
            self._check_lun_path(body["name"])
            if body["name"].split("/")[2] != lun.flexvol:
                lun.moving = 2
            lun.path = body["name"]
        if "clone" in body:
            source = body["clone"]["source"]["name"]
            found = re.fullmatch(r"/vol/([^/]+)/\.snapshot/([^/]+)/([^/]+)", source)
            flexvol = self._flexvol(found[1]) if found else None
            taken = flexvol.snapshots.get(found[2]) if flexvol and found else None
            there = taken.luns.get(f"/vol/{found[1]}/{found[3]}") if taken and found else None
            if there is None:
                raise RefusedError(400, "5374875", f"LUN {source} was not found.")
            if found is not None and found[1] != lun.flexvol:
                raise RefusedError(400, "5374927", "Source and clone are in different volumes.")
            self.blocks.copy(there.key, lun.key)
        size = body.get("space", {}).get("size")
        if size is not None:
            if int(size) < self.blocks.size(lun.key):
                raise RefusedError(400, "5374859", "Reducing a LUN needs force.")
            self.blocks.resize(lun.key, int(size))
        lun.comment = body.get("comment", lun.comment)
        lun.online = body.get("enabled", lun.online)
        return Reply(200, {})

    def delete_lun(self, request: Request, uuid: str) -> Reply:
        lun = self._known_lun(uuid)
        if any(mapped == uuid for mapped, _ in self.maps):
            raise RefusedError(409, "5374895", "The LUN is mapped.")
        self.blocks.delete(lun.key)
        del self.luns[uuid]
        return Reply(200, {})

    def _new_lun(
        self, path: str, os_type: str, source: str | None = None, *, comment: str, thin: bool
    ) -> LunState:
        serial = "".join(secrets.choice(_SERIAL) for _ in range(12))
        lun = LunState(str(uuid4()), path, serial, secrets.token_hex(16), os_type, comment, thin)
        if source is not None:
            self.blocks.copy(source, lun.key)
        self.luns[lun.uuid] = lun
        return lun

    def _check_lun_path(self, path: str) -> None:
        found = re.fullmatch(r"/vol/([^/]+)/([^/]+)", path)
        if found is None or self._flexvol(found[1]) is None:
            raise RefusedError(400, "5374860", f"The volume of {path} was not found.")
        if any(lun.path == path for lun in self.luns.values()):
            raise RefusedError(409, "5374127", f"LUN {path} already exists.")

    # Who reaches what

    def get_igroups(self, request: Request) -> Reply:
        records = []
        for each in self.igroups.values():
            record = {"uuid": each.uuid, "name": each.name, "svm": self._svm()}
            if each.initiators:
                record["initiators"] = [{"name": name} for name in each.initiators]
            records.append(record)
        return self._collection(request, records, ["uuid", "name"])

    def post_igroup(self, request: Request) -> Reply:
        body = request.body
        self._check_svm(body)
        if any(each.name == body["name"] for each in self.igroups.values()):
            raise RefusedError(409, "5374023", f"Igroup {body['name']} already exists.")
        names = [each["name"] for each in body.get("initiators", ())]
        for name in names:
            if not re.fullmatch(r"(iqn\.[a-z0-9:.-]+|([0-9a-f]{2}:){7}[0-9a-f]{2})", name):
                raise RefusedError(400, "5374029", f"Invalid initiator {name}.")
        made = IgroupState(str(uuid4()), body["name"], body["os_type"], body["protocol"], names)
        self.igroups[made.uuid] = made
        location = f"/api/protocols/san/igroups/{made.uuid}"
        return Reply(201, {"num_records": 1}, {"Location": location})

    def delete_igroup(self, request: Request, uuid: str) -> Reply:
        if uuid not in self.igroups:
            raise RefusedError(404, "5374852", "The igroup does not exist.")
        if any(igroup == uuid for _, igroup in self.maps):
            raise RefusedError(409, "5374024", "The igroup has LUN maps.")
        del self.igroups[uuid]
        return Reply(200, {})

    def get_maps(self, request: Request) -> Reply:
        records = [
            {
                "lun": {"uuid": lun, "name": self.luns[lun].path},
                "igroup": {"uuid": igroup, "name": self.igroups[igroup].name},
                "logical_unit_number": number,
                "svm": self._svm(),
            }
            for (lun, igroup), number in self.maps.items()
        ]
        return self._collection(request, records, ["lun", "igroup", "svm"])

    def post_map(self, request: Request) -> Reply:
        body = request.body
        self._check_svm(body)
        lun = self._known_lun(body["lun"]["uuid"])
        igroup = next(
            (each for each in self.igroups.values() if each.name == body["igroup"]["name"]), None
        )
        if igroup is None:
            raise RefusedError(400, "5374878", "The igroup does not exist.")
        kin = {
            each.uuid
            for each in self.igroups.values()
            if set(each.initiators) & set(igroup.initiators)
        }
        if any(mapped == lun.uuid and other in kin for mapped, other in self.maps):
            raise RefusedError(409, "5374922", "The LUN is already mapped to this initiator.")
        used = {number for (_, other), number in self.maps.items() if other in kin}
        number = body.get("logical_unit_number")
        if number is None:
            number = next(each for each in itertools.count() if each not in used)
        if number in used or not 0 <= number <= 4095:
            raise RefusedError(409, "5374903", f"LUN ID {number} is already in use.")
        self.maps[lun.uuid, igroup.uuid] = number
        location = f"/api/protocols/san/lun-maps/{lun.uuid}/{igroup.uuid}"
        return Reply(201, {"num_records": 1}, {"Location": location})

    def delete_map(self, request: Request, lun: str, igroup: str) -> Reply:
        if (lun, igroup) not in self.maps:
            raise RefusedError(404, "5374922", "The LUN map does not exist.")
        del self.maps[lun, igroup]
        return Reply(200, {})

    def get_credentials(self, request: Request) -> Reply:
        records: list[dict[str, Any]] = []
        for initiator, account in [("default", None), *self.credentials.items()]:
            record: dict[str, Any] = {"initiator": initiator, "svm": self._svm()}
            record["authentication_type"] = "chap" if account else "none"
            if account:
                record["chap"] = {"inbound": {"user": account.user}}
            records.append(record)
        return self._collection(request, records, ["initiator", "svm"])

    def post_credentials(self, request: Request) -> Reply:
        initiator = request.body["initiator"]
        self._check_svm(request.body)
        if initiator in self.credentials:
            raise RefusedError(409, "5374148", f"Credentials of {initiator} already exist.")
        self.credentials[initiator] = _account(request.body)
        location = f"/api/protocols/san/iscsi/credentials/{self.svm_uuid}/{initiator}"
        return Reply(201, {"num_records": 1}, {"Location": location})

    def patch_credentials(self, request: Request, svm: str, initiator: str) -> Reply:
        if svm != self.svm_uuid or initiator not in self.credentials:
            raise RefusedError(404, "5374895", "The credentials do not exist.")
        self.credentials[initiator] = _account(request.body)
        return Reply(200, {})

    def delete_credentials(self, request: Request, svm: str, initiator: str) -> Reply:
        if svm != self.svm_uuid or initiator not in self.credentials:
            raise RefusedError(404, "5374895", "The credentials do not exist.")
        del self.credentials[initiator]
        return Reply(200, {})

    def _svm(self) -> dict[str, Any]:
        return {"name": self.svm, "uuid": self.svm_uuid}

    def _check_svm(self, body: Any) -> None:
        if body.get("svm", {}).get("name") != self.svm:
            raise RefusedError(400, "2621462", "The SVM was not found.")

    def _flexvol(self, name: str) -> FlexVolState | None:
        return next((each for each in self.flexvols.values() if each.name == name), None)

    def _known_flexvol(self, uuid: str) -> FlexVolState:
        if uuid not in self.flexvols:
            raise RefusedError(404, "917927", "The volume was not found.")
        return self.flexvols[uuid]

    def _known_lun(self, uuid: str) -> LunState:
        if uuid not in self.luns:
            raise RefusedError(404, "5374875", "The LUN was not found.")
        return self.luns[uuid]


_ROUTES: list[tuple[str, dict[str, str]]] = [
    (r"/api/cluster", {"GET": "get_cluster"}),
    (r"/api/cluster/jobs/([^/]+)", {"GET": "get_job"}),
    (r"/api/svm/svms", {"GET": "get_svms"}),
    (r"/api/storage/aggregates", {"GET": "get_aggregates"}),
    (r"/api/storage/volumes", {"GET": "get_volumes", "POST": "post_volume"}),
    (r"/api/storage/volumes/([^/]+)", {"PATCH": "patch_volume", "DELETE": "delete_volume"}),
    (
        r"/api/storage/volumes/([^/]+)/snapshots",
        {"GET": "get_snapshots", "POST": "post_snapshot"},
    ),
    (r"/api/storage/volumes/([^/]+)/snapshots/([^/]+)", {"DELETE": "delete_snapshot"}),
    (r"/api/storage/luns", {"GET": "get_luns", "POST": "post_lun"}),
    (r"/api/storage/luns/([^/]+)", {"PATCH": "patch_lun", "DELETE": "delete_lun"}),
    (r"/api/protocols/san/igroups", {"GET": "get_igroups", "POST": "post_igroup"}),
    (r"/api/protocols/san/igroups/([^/]+)", {"DELETE": "delete_igroup"}),
    (r"/api/protocols/san/lun-maps", {"GET": "get_maps", "POST": "post_map"}),
    (r"/api/protocols/san/lun-maps/([^/]+)/([^/]+)", {"DELETE": "delete_map"}),
    (
        r"/api/protocols/san/iscsi/credentials",
        {"GET": "get_credentials", "POST": "post_credentials"},
    ),
    (
        r"/api/protocols/san/iscsi/credentials/([^/]+)/([^/]+)",
        {"PATCH": "patch_credentials", "DELETE": "delete_credentials"},
    ),
    (r"/api/protocols/san/iscsi/services", {"GET": "get_services"}),
    (r"/api/network/ip/interfaces", {"GET": "get_ip_interfaces"}),
    (r"/api/network/fc/interfaces", {"GET": "get_fc_interfaces"}),
]


@contextmanager
def ontap_array(directory: Path, *, page_size: int = 10000) -> Iterator[OntapArray]:
    """A cluster whose media are in a directory with reflinks."""
    array = OntapArray(directory, page_size=page_size)
    try:
        yield array
    finally:
        array.close()


def busy(method: str, path: str, times: int = 1) -> Fault:
    """Too many requests at once."""
    body = _error("1", "Too many requests.")
    return Fault(
        method, f"/api/{path}", status=429, body=body, headers={"Retry-After": "1"}, times=times
    )


def broken(method: str, path: str, times: int = 1) -> Fault:
    """An error inside the cluster."""
    body = _error("4", "Internal error.")
    return Fault(method, f"/api/{path}", status=500, body=body, times=times)


def _listen(iqn: str, door: OntapArray) -> IscsiTarget:
    """An SVM's interfaces all listen on port 3260, so each array has addresses of its own."""
    while True:
        first, second = secrets.randbelow(250) + 1, secrets.randbelow(250) + 1
        addresses = (f"127.32.{first}.{second}", f"127.33.{first}.{second}")
        try:
            return IscsiTarget(iqn, door, addresses, _PORT)
        except OSError:
            continue


def _account(body: Any) -> Account | None:
    if body["authentication_type"] != "chap":
        return None
    inbound, outbound = body["chap"]["inbound"], body["chap"].get("outbound") or {}
    return Account(
        inbound["user"], inbound["password"], outbound.get("user"), outbound.get("password")
    )


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": code}}


def _look(record: Any, path: str) -> list[Any]:
    """All values of a dotted name, in lists too."""
    found = [record]
    for key in path.split("."):
        found = [
            each[key]
            for place in found
            for each in (place if isinstance(place, list) else [place])
            if isinstance(each, dict) and key in each
        ]
    return [one for each in found for one in (each if isinstance(each, list) else [each])]


def _matches(record: dict[str, Any], name: str, pattern: str) -> bool:
    shown = [
        str(value).lower() if isinstance(value, bool) else str(value)
        for value in _look(record, name)
    ]
    return any(wildcard(pattern, value) for value in shown)


def _only(record: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What of a record is asked for; what is not asked for is not there."""
    wanted: dict[str, list[str]] = {}
    for name in names:
        head, _, rest = name.partition(".")
        if head in record:
            wanted.setdefault(head, []).append(rest)
    result: dict[str, Any] = {}
    for head, rests in wanted.items():
        value = record[head]
        if "" in rests:
            result[head] = value
        elif isinstance(value, list):
            result[head] = [_only(each, rests) for each in value]
        elif isinstance(value, dict):
            result[head] = _only(value, rests)
    return result
