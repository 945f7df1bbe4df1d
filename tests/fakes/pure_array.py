"""A FlashArray: REST 2.26 as its documentation and SDK have it, over volumes that hold data."""

import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from array_blocks import Blocks
from array_http import ArrayServer, Fault, Reply, Request, now_milliseconds, paged, wildcard
from array_iscsi import Account, IscsiTarget
from array_scsi import Disk
from atoll.model.extents import Extent, intersect

VERSION = "2.26"
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LAST_LUN = 4095


class RefusedError(Exception):
    """HTTP status 400, about `context`."""

    def __init__(self, context: str, message: str) -> None:
        super().__init__(message)
        self.context = context


@dataclass
class Volume:
    name: str
    serial: str
    key: str
    created: int
    destroyed: bool = False
    tags: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass
class VolumeSnapshot:
    name: str
    source: str
    key: str
    provisioned: int


@dataclass
class GroupSnapshot:
    name: str
    source: str
    created: int
    volumes: list[VolumeSnapshot]
    destroyed: bool = False


@dataclass
class ProtectionGroup:
    name: str
    members: list[str] = field(default_factory=list)
    destroyed: bool = False


@dataclass
class Host:
    name: str
    iqns: list[str] = field(default_factory=list)
    wwns: list[str] = field(default_factory=list)
    personality: str | None = None
    account: Account | None = None


class PureArray:
    """Its state, its REST API and its iSCSI target. `page_size` is the most items of an answer."""

    def __init__(self, directory: Path, *, api_token: str = "", page_size: int = 1000) -> None:
        self.blocks = Blocks(directory / "blocks")
        self.api_token = api_token or secrets.token_hex(18)
        self.page_size = page_size
        self.volumes: dict[str, Volume] = {}
        self.groups: dict[str, ProtectionGroup] = {}
        self.snapshots: dict[str, GroupSnapshot] = {}
        self.hosts: dict[str, Host] = {}
        self.connections: dict[tuple[str, str], int] = {}
        self.pods: set[str] = set()
        self.volume_groups: set[str] = set()
        self.default_groups: list[str] = []
        self.safe_mode = False
        self.versions = ["1.19", "2.0", "2.16", VERSION]
        self.has_iscsi = True
        self.wwns: list[str] = []
        self._directory = directory
        self._array = secrets.token_hex(8).upper()
        self._count = itertools.count(0x11010)
        self._sessions: set[str] = set()
        iqn = f"iqn.2010-06.com.purestorage:flasharray.{secrets.token_hex(8)}"
        self.target = IscsiTarget(iqn, self, ("127.0.0.1", "127.0.0.2"))
        self.server = ArrayServer(self, directory / "tls")

    def close(self) -> None:
        self.server.close()
        self.target.close()
        self.blocks.close()

    def settings(self, directory: Path) -> dict[str, Any]:
        """The driver's part of a `[[storage]]` section; the secret is put into `directory`."""
        token = directory / "api-token"
        token.write_text(f"{self.api_token}\n")
        return {
            "driver": "pure",
            "host": "127.0.0.1",
            "port": self.server.port,
            "ca_file": str(self.server.ca_file),
            "api_token_file": str(token),
        }

    def end_sessions(self) -> None:
        """As after a while without requests: tokens are no longer taken."""
        self._sessions.clear()

    # Towards initiators

    def admits(self, initiator: str) -> bool:
        return self._host_of(initiator) is not None

    def account(self, initiator: str) -> Account | None:
        host = self._host_of(initiator)
        return host.account if host else None

    def disks(self, initiator: str) -> dict[int, Disk]:
        host = self._host_of(initiator)
        return {
            number: self._disk(self.volumes[volume])
            for (volume, name), number in list(self.connections.items())
            if host is not None and name == host.name
        }

    def _disk(self, volume: Volume) -> Disk:
        naa = f"naa.624a9370{volume.serial.lower()}"
        return Disk(self.blocks, volume.key, naa, volume.serial, "PURE", "FlashArray")

    def _host_of(self, initiator: str) -> Host | None:
        wanted = initiator.lower()
        for host in list(self.hosts.values()):
            if wanted in (iqn.lower() for iqn in host.iqns):
                return host
        return None

    # Towards administrators

    def answer(self, request: Request) -> Reply:
        if request.path == "/api/api_version":
            return Reply(200, {"version": self.versions})
        found = re.fullmatch(r"/api/(2\.\d+)/(.+)", request.path)
        if found is None or found[1] not in self.versions:
            return Reply(404, _errors("", "Not found."))
        kind = found[2]
        if kind == "login":
            if request.headers.get("api-token") != self.api_token:
                return Reply(401, _errors("", "Invalid credentials."))
            token = secrets.token_hex(16)
            self._sessions.add(token)
            return Reply(200, {"items": [{"username": "atoll"}]}, {"x-auth-token": token})
        token = request.headers.get("x-auth-token", "")
        if token not in self._sessions:
            return Reply(401, _errors("", "Unauthorized."))
        if kind == "logout":
            self._sessions.discard(token)
            return Reply(200, {"items": []})
        name = f"_{request.method.lower()}_{re.sub('[/-]', '_', kind)}"
        handler: Callable[[Request], Any] | None = getattr(self, name, None)
        if handler is None:
            return Reply(404, _errors("", "Not found."))
        try:
            items = handler(request)
        except RefusedError as error:
            return Reply(400, _errors(error.context, str(error)))
        return self._list(request, kind, items)

    def _list(self, request: Request, kind: str, items: list[dict[str, Any]]) -> Reply:
        query = request.query
        if request.method != "GET":
            return Reply(200, {"items": items}) if items else Reply(200)
        items = [
            item for item in items if _matches(item, query.get("filter"), query.get("destroyed"))
        ]
        start = int(query.get("continuation_token") or query.get("offset") or 0)
        limit = int(query["limit"]) if "limit" in query else None
        page, more = paged(items, start, limit, self.page_size)
        answer: dict[str, Any] = {"items": page, "more_items_remaining": bool(more)}
        if more:
            # Of differences no next page can be asked for but by offset.
            answer["continuation_token"] = str(more) if kind != "volumes/diff" else "opaque"
        return Reply(200, answer)

    def _get_arrays(self, _: Request) -> list[dict[str, Any]]:
        return [{"id": self._array, "name": "fake", "os": "Purity//FA", "version": "6.4.10"}]

    def _get_arrays_space(self, _: Request) -> list[dict[str, Any]]:
        status = os.statvfs(self._directory)
        total = status.f_blocks * status.f_frsize
        used = total - status.f_bavail * status.f_frsize
        space = {"total_used": used, "total_physical": used}
        return [{"id": self._array, "name": "fake", "capacity": total, "space": space}]

    def _get_ports(self, _: Request) -> list[dict[str, Any]]:
        ports: list[dict[str, Any]] = [
            {"name": f"CT{number}.ETH4", "iqn": self.target.name, "portal": f"{host}:{port}"}
            for number, (host, port) in enumerate(self.target.portals if self.has_iscsi else ())
        ]
        return ports + [
            {"name": f"CT0.FC{number}", "wwn": wwn} for number, wwn in enumerate(self.wwns)
        ]

    def _get_pods(self, request: Request) -> list[dict[str, Any]]:
        return [{"name": name} for name in _named(request, self.pods, "Pod")]

    def _get_volume_groups(self, request: Request) -> list[dict[str, Any]]:
        return [{"name": name} for name in _named(request, self.volume_groups, "Volume group")]

    def _post_volume_groups(self, request: Request) -> list[dict[str, Any]]:
        for name in _names(request):
            self._check_name(name.rpartition("::")[2], name)
            self.volume_groups.add(name)
        return [{"name": name} for name in _names(request)]

    def _get_volumes(self, request: Request) -> list[dict[str, Any]]:
        return [
            self._show_volume(self.volumes[name])
            for name in _named(request, self.volumes, "Volume")
        ]

    def _show_volume(self, volume: Volume) -> dict[str, Any]:
        return {
            "id": volume.key,
            "name": volume.name,
            "serial": volume.serial,
            "provisioned": self.blocks.size(volume.key),
            "created": volume.created,
            "destroyed": volume.destroyed,
            "connection_count": sum(each[0] == volume.name for each in self.connections),
            "subtype": "regular",
        }

    def _post_volumes(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _names(request)
        self._check_place(name)
        overwrite = request.query.get("overwrite") == "true"
        if overwrite and "with_default_protection" in request.query:
            raise RefusedError(name, "Cannot specify default protection when overwriting.")
        taken = next((one for one in self.volumes if one.lower() == name.lower()), None)
        if taken and not overwrite:
            raise RefusedError(name, "Volume already exists.")
        source = (request.body.get("source") or {}).get("name")
        if source is None:
            size = int(request.body.get("provisioned") or 1 << 20)
            if size % 512 or size < 1 << 20:
                raise RefusedError(name, "Invalid volume size.")
            volume = self._new_volume(name)
            self.blocks.create(volume.key, size)
        else:
            key = self._source_key(source)
            volume = self.volumes[taken] if taken else self._new_volume(name)
            self.blocks.copy(key, volume.key)
        if not overwrite and request.query.get("with_default_protection") != "false":
            for group in self.default_groups:
                self.groups[group].members.append(name)
        return [self._show_volume(volume)]

    def _new_volume(self, name: str) -> Volume:
        serial = f"{self._array}{next(self._count):08X}"
        volume = Volume(name, serial, secrets.token_hex(16), now_milliseconds())
        self.volumes[name] = volume
        return volume

    def _source_key(self, name: str) -> str:
        if name in self.volumes:
            return self.volumes[name].key
        for snapshot in self.snapshots.values():
            for each in snapshot.volumes:
                if each.name == name and not snapshot.destroyed:
                    return each.key
        raise RefusedError(name, "No such volume or snapshot.")

    def _patch_volumes(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.volumes, "Volume")
        volume = self.volumes[name]
        if request.body.get("destroyed") is True:
            if volume.destroyed:
                raise RefusedError(name, "Volume has been destroyed.")
            if any(each[0] == name for each in self.connections):
                raise RefusedError(name, "Volume cannot be deleted due to existing connections.")
            volume.destroyed = True
        if "provisioned" in request.body:
            size = int(request.body["provisioned"])
            if size < self.blocks.size(volume.key):
                raise RefusedError(name, "Implicit truncation not permitted.")
            self.blocks.resize(volume.key, size)
        return [self._show_volume(volume)]

    def _delete_volumes(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.volumes, "Volume")
        self._check_eradication(name, self.volumes[name].destroyed, "Volume")
        self.blocks.delete(self.volumes.pop(name).key)
        for group in self.groups.values():
            group.members = [member for member in group.members if member != name]
        return []

    def _check_eradication(self, name: str, destroyed: bool, kind: str) -> None:
        if not destroyed:
            raise RefusedError(name, f"{kind} is not destroyed.")
        if self.safe_mode:
            raise RefusedError(name, "Eradication is disabled.")

    def _put_volumes_tags_batch(self, request: Request) -> list[dict[str, Any]]:
        name = request.query["resource_names"]
        if name not in self.volumes:
            raise RefusedError(name, "Volume does not exist.")
        for tag in request.body:
            assert isinstance(tag, dict)
            self.volumes[name].tags[tag.get("namespace", "default"), tag["key"]] = tag["value"]
        return list(request.body)  # type: ignore[arg-type]

    def _get_volumes_diff(self, request: Request) -> list[dict[str, Any]]:
        query = request.query
        unit, length = int(query["block_size"]), int(query["segment_length"])
        start = int(query.get("segment_offset", 0))
        if unit % 512 or start % unit:
            raise RefusedError(query["names"], "Invalid block size or offset.")
        key = self._source_key(query["names"])
        if start + length > self.blocks.size(key):
            raise RefusedError(query["names"], "Segment exceeds the volume.")
        if "base_name" in query:
            base = self._source_key(query["base_name"])
            if start + length > self.blocks.size(base):
                raise RefusedError(query["base_name"], "Segment exceeds the volume.")
            found = self.blocks.differences(base, key, unit)
        else:
            found = self.blocks.mapped(key)
        within = intersect(found, [Extent(start, length)])
        return [{"offset": each.offset, "length": each.length} for each in within]

    def _get_protection_groups(self, request: Request) -> list[dict[str, Any]]:
        return [
            {"name": name, "destroyed": self.groups[name].destroyed}
            for name in _named(request, self.groups, "Protection group")
        ]

    def _post_protection_groups(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _names(request)
        pod, _, own = name.rpartition("::")
        self._check_name(own, name)
        self._check_pod(pod, name)
        if name in self.groups:
            raise RefusedError(name, "Protection group already exists.")
        self.groups[name] = ProtectionGroup(name)
        return [{"name": name, "destroyed": False}]

    def _patch_protection_groups(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.groups, "Protection group")
        if self.groups[name].destroyed:
            raise RefusedError(name, "Protection group has been destroyed.")
        self.groups[name].destroyed = bool(request.body["destroyed"])
        for snapshot in self.snapshots.values():
            snapshot.destroyed |= snapshot.source == name
        return [{"name": name, "destroyed": True}]

    def _delete_protection_groups(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.groups, "Protection group")
        self._check_eradication(name, self.groups[name].destroyed, "Protection group")
        del self.groups[name]
        for snapshot in [each for each in self.snapshots.values() if each.source == name]:
            self._forget(snapshot)
        return []

    def _get_protection_groups_volumes(self, request: Request) -> list[dict[str, Any]]:
        wanted = request.query.get("group_names")
        if wanted is not None and wanted not in self.groups:
            raise RefusedError(wanted, "Protection group does not exist.")
        return [
            {"group": {"name": group.name}, "member": {"name": member}}
            for group in self.groups.values()
            for member in group.members
            if wanted in (None, group.name)
        ]

    def _post_protection_groups_volumes(self, request: Request) -> list[dict[str, Any]]:
        group = self._group(request.query["group_names"])
        for name in request.query["member_names"].split(","):
            if name not in self.volumes or self.volumes[name].destroyed:
                raise RefusedError(name, "Volume does not exist.")
            if name not in group.members:
                group.members.append(name)
        return [{"group": {"name": group.name}, "member": {"name": each}} for each in group.members]

    def _delete_protection_groups_volumes(self, request: Request) -> list[dict[str, Any]]:
        group = self._group(request.query["group_names"])
        for name in request.query["member_names"].split(","):
            if name not in group.members:
                raise RefusedError(name, "Volume is not a member of the protection group.")
            group.members.remove(name)
        return []

    def _group(self, name: str) -> ProtectionGroup:
        group = self.groups.get(name)
        if group is None:
            raise RefusedError(name, "Protection group does not exist.")
        if group.destroyed:
            raise RefusedError(name, "Protection group has been destroyed.")
        return group

    def _get_protection_group_snapshots(self, request: Request) -> list[dict[str, Any]]:
        source = request.query.get("source_names")
        if source is not None and source not in self.groups:
            raise RefusedError(source, "Protection group does not exist.")
        return [
            _show_group_snapshot(each)
            for each in self.snapshots.values()
            if source in (None, each.source)
        ]

    def _post_protection_group_snapshots(self, request: Request) -> list[dict[str, Any]]:
        group = self._group(request.query["source_names"])
        suffix = str(request.body["suffix"])
        self._check_name(suffix, suffix)
        name = f"{group.name}.{suffix}"
        if name in self.snapshots:
            raise RefusedError(name, "Protection group snapshot already exists.")
        members = [self.volumes[one] for one in group.members if not self.volumes[one].destroyed]
        if not members:
            raise RefusedError(group.name, "Protection group does not contain any members.")
        taken = GroupSnapshot(name, group.name, now_milliseconds(), [])
        with self.blocks.lock:  # no write is acknowledged until all are there
            for volume in members:
                key = secrets.token_hex(16)
                self.blocks.copy(volume.key, key)
                own = volume.name.rpartition("::")[2]
                taken.volumes.append(
                    VolumeSnapshot(f"{name}.{own}", volume.name, key, self.blocks.size(key))
                )
        self.snapshots[name] = taken
        return [_show_group_snapshot(taken)]

    def _patch_protection_group_snapshots(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.snapshots, "Protection group snapshot")
        if self.snapshots[name].destroyed:
            raise RefusedError(name, "Protection group snapshot has been destroyed.")
        self.snapshots[name].destroyed = bool(request.body["destroyed"])
        return [_show_group_snapshot(self.snapshots[name])]

    def _delete_protection_group_snapshots(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.snapshots, "Protection group snapshot")
        self._check_eradication(name, self.snapshots[name].destroyed, "Protection group snapshot")
        self._forget(self.snapshots[name])
        return []

    def _forget(self, snapshot: GroupSnapshot) -> None:
        for each in snapshot.volumes:
            self.blocks.delete(each.key)
        del self.snapshots[snapshot.name]

    def _get_volume_snapshots(self, _: Request) -> list[dict[str, Any]]:
        return [
            {
                "name": each.name,
                "source": {"name": each.source},
                "provisioned": each.provisioned,
                "created": snapshot.created,
                "destroyed": snapshot.destroyed,
                "suffix": each.name.partition(".")[2],
            }
            for snapshot in self.snapshots.values()
            for each in snapshot.volumes
        ]

    def _get_hosts(self, request: Request) -> list[dict[str, Any]]:
        return [_show_host(self.hosts[name]) for name in _named(request, self.hosts, "Host")]

    def _post_hosts(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _names(request)
        self._check_name(name, name)
        if name in self.hosts:
            raise RefusedError(name, "Host already exists.")
        host = Host(name, personality=request.body.get("personality"))
        host.iqns = list(request.body.get("iqns") or ())
        host.wwns = [_colons(wwn) for wwn in request.body.get("wwns") or ()]
        for other in self.hosts.values():
            if set(other.iqns) & set(host.iqns) or set(other.wwns) & set(host.wwns):
                raise RefusedError(name, "The specified initiator is already in use.")
        self.hosts[name] = host
        return [_show_host(host)]

    def _patch_hosts(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.hosts, "Host")
        chap = request.body.get("chap")
        if chap is not None:
            for word in (chap.get("host_password"), chap.get("target_password")):
                if word and not 12 <= len(word) <= 255:
                    raise RefusedError(name, "CHAP passwords have 12 to 255 characters.")
            self.hosts[name].account = (
                Account(
                    chap["host_user"],
                    chap["host_password"],
                    chap.get("target_user") or None,
                    chap.get("target_password") or None,
                )
                if chap.get("host_user")
                else None
            )
        return [_show_host(self.hosts[name])]

    def _delete_hosts(self, request: Request) -> list[dict[str, Any]]:
        (name,) = _named(request, self.hosts, "Host")
        if any(each[1] == name for each in self.connections):
            raise RefusedError(name, "Host cannot be deleted due to existing connections.")
        del self.hosts[name]
        return []

    def _get_connections(self, request: Request) -> list[dict[str, Any]]:
        volume, host = (request.query.get(f"{kind}_names") for kind in ("volume", "host"))
        if volume is not None and volume not in self.volumes:
            raise RefusedError(volume, "Volume does not exist.")
        if host is not None and host not in self.hosts:
            raise RefusedError(host, "Host does not exist.")
        return [
            {"volume": {"name": each[0]}, "host": {"name": each[1]}, "lun": number}
            for each, number in self.connections.items()
            if volume in (None, each[0]) and host in (None, each[1])
        ]

    def _post_connections(self, request: Request) -> list[dict[str, Any]]:
        volume, host = request.query["volume_names"], request.query["host_names"]
        if volume not in self.volumes or self.volumes[volume].destroyed:
            raise RefusedError(volume, "Volume does not exist.")
        if host not in self.hosts:
            raise RefusedError(host, "Host does not exist.")
        if (volume, host) in self.connections:
            raise RefusedError(volume, "Connection already exists.")
        used = {number for each, number in self.connections.items() if each[1] == host}
        number = request.body.get("lun")
        if number is None:
            number = next(each for each in range(1, _LAST_LUN) if each not in used)
        if number in used or not 1 <= number <= _LAST_LUN:
            raise RefusedError(volume, f"LUN {number} is already in use.")
        self.connections[volume, host] = number
        return [{"volume": {"name": volume}, "host": {"name": host}, "lun": number}]

    def _delete_connections(self, request: Request) -> list[dict[str, Any]]:
        place = request.query["volume_names"], request.query["host_names"]
        if place not in self.connections:
            raise RefusedError(place[0], "Connection does not exist.")
        del self.connections[place]
        return []

    def _check_place(self, name: str) -> None:
        pod, _, own = name.rpartition("::")
        group, _, last = own.rpartition("/")
        self._check_name(last, name)
        self._check_pod(pod, name)
        full = f"{pod}::{group}" if pod else group
        if group and full not in self.volume_groups:
            raise RefusedError(name, "Volume group does not exist.")

    def _check_pod(self, pod: str, name: str) -> None:
        if pod and pod not in self.pods:
            raise RefusedError(name, "Pod does not exist.")

    def _check_name(self, part: str, name: str) -> None:
        if not _NAME.fullmatch(part):
            raise RefusedError(name, "Invalid name.")


@contextmanager
def pure_array(directory: Path, *, page_size: int = 1000) -> Iterator[PureArray]:
    """A FlashArray whose media are in a directory with reflinks."""
    array = PureArray(directory, page_size=page_size)
    try:
        yield array
    finally:
        array.close()


def busy(method: str, path: str, times: int = 1) -> Fault:
    """The rate limiter's answer, from in front of the API."""
    return Fault(
        method,
        f"/api/{re.escape(VERSION)}/{path}",
        status=429,
        body={"message": "API rate limit exceeded"},
        headers={"Retry-After": "0"},
        times=times,
    )


def broken(method: str, path: str, times: int = 1) -> Fault:
    """An error inside the array."""
    body = _errors("", "Internal server error.")
    return Fault(method, f"/api/{re.escape(VERSION)}/{path}", status=500, body=body, times=times)


def _errors(context: str, message: str) -> dict[str, Any]:
    return {"errors": [{"context": context, "message": message}]}


def _names(request: Request) -> list[str]:
    return request.query["names"].split(",")


def _named(request: Request, there: Any, kind: str) -> list[str]:
    """The names asked for, all of which must be there; all when none is."""
    if "names" not in request.query:
        return sorted(there)
    for name in _names(request):
        if name not in there:
            raise RefusedError(name, f"{kind} does not exist.")
    return _names(request)


def _matches(item: dict[str, Any], expression: str | None, destroyed: str | None) -> bool:
    if destroyed is not None and item.get("destroyed", False) != (destroyed.lower() == "true"):
        return False
    if expression is None:
        return True
    found = re.fullmatch(r"name='([^']*)'", expression)
    assert found is not None, expression
    return wildcard(found[1], item["name"])


def _show_group_snapshot(snapshot: GroupSnapshot) -> dict[str, Any]:
    return {
        "name": snapshot.name,
        "source": {"name": snapshot.source},
        "created": snapshot.created,
        "destroyed": snapshot.destroyed,
        "suffix": snapshot.name.rpartition(".")[2],
    }


def _show_host(host: Host) -> dict[str, Any]:
    account = host.account
    return {
        "name": host.name,
        "iqns": host.iqns,
        "wwns": host.wwns,
        "nqns": [],
        "personality": host.personality,
        "chap": {
            "host_user": account.user if account else None,
            "host_password": "****" if account else None,
            "target_user": account.mutual_user if account else None,
            "target_password": "****" if account and account.mutual_secret else None,
        },
    }


def _colons(wwn: str) -> str:
    plain = wwn.replace(":", "").upper()
    return ":".join(plain[at : at + 2] for at in range(0, 16, 2))
