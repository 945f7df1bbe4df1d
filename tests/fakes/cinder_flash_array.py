"""A FlashArray as Cinder's own driver for it uses one: more of its REST API than Atoll's driver needs."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from array_http import Reply, Request, now_milliseconds
from pure_array import GroupSnapshot, PureArray, RefusedError, VolumeSnapshot


class CinderFlashArray(PureArray):
    """Snapshots of single volumes, filters by any field, counts of items, and what is measured."""

    def settings(self, directory: Path) -> dict[str, Any]:
        """The driver's part of a `[[storage]]` section."""
        token = directory / "api-token"
        token.write_text(f"{self.api_token}\n")
        return {
            "driver": "cinder",
            "volume_driver": "cinder.volume.drivers.pure.PureISCSIDriver",
            "options": {
                "san_ip": f"127.0.0.1:{self.server.port}",
                # Its SDK does not hand the authority on to the request for versions.
                "driver_ssl_cert_verify": False,
                "pure_eradicate_on_delete": True,
            },
            "option_files": {"pure_api_token": str(token)},
        }

    def _list(self, request: Request, kind: str, items: list[dict[str, Any]]) -> Reply:
        wanted = request.query.pop("filter", None)
        items = [item for item in items if wanted is None or _matches(item, wanted)]
        reply = super()._list(request, kind, items)
        if request.method == "GET" and reply.body is not None:
            reply.body["total_item_count"] = len(items)
        return reply

    def _get_arrays_performance(self, _: Request) -> list[dict[str, Any]]:
        figures = [
            f"{figure}_per_{kind}_op"
            for figure in ("usec", "queue_usec", "service_usec", "san_usec", "bytes")
            for kind in ("read", "write", "mirrored_write")
        ]
        rates = [f"{kind}{what}_per_sec" for kind in ("read", "write") for what in ("s", "_bytes")]
        return [dict.fromkeys((*figures, *rates, "queue_depth", "bytes_per_op"), 0)]

    def _get_arrays_space(self, request: Request) -> list[dict[str, Any]]:
        (space,) = super()._get_arrays_space(request)
        space["space"].update(total_provisioned=0, data_reduction=1.0, total_reduction=1.0)
        return [space]

    def _get_array_connections(self, _: Request) -> list[dict[str, Any]]:
        return []

    def _get_controllers(self, _: Request) -> list[dict[str, Any]]:
        return [{"name": "CT0", "status": "ready"}, {"name": "CT1", "status": "ready"}]

    def _get_network_interfaces(self, _: Request) -> list[dict[str, Any]]:
        return [
            {
                "name": port["name"],
                "enabled": True,
                "interface_type": "eth",
                "services": ["iscsi"],
                "eth": {"address": port["portal"].rpartition(":")[0], "subtype": "physical"},
            }
            for port in self._get_ports(_)
            if "portal" in port
        ]

    def _post_volume_snapshots(self, request: Request) -> list[dict[str, Any]]:
        source = request.query["source_names"]
        if source not in self.volumes or self.volumes[source].destroyed:
            raise RefusedError(source, "Volume does not exist.")
        name = f"{source}.{request.body['suffix']}"
        if name in self.snapshots:
            raise RefusedError(name, "Snapshot already exists.")
        key = secrets.token_hex(16)
        self.blocks.copy(self.volumes[source].key, key)
        taken = VolumeSnapshot(name, source, key, self.blocks.size(key))
        self.snapshots[name] = GroupSnapshot(name, source, now_milliseconds(), [taken])
        return [{"name": name}]

    def _patch_volume_snapshots(self, request: Request) -> list[dict[str, Any]]:
        return self._patch_protection_group_snapshots(request)

    def _delete_volume_snapshots(self, request: Request) -> list[dict[str, Any]]:
        return self._delete_protection_group_snapshots(request)


def _matches(item: dict[str, Any], expression: str) -> bool:
    """Filters as the API's guide has them: `field='pattern'`, in a list's case of any, and and or."""
    return any(
        all(_holds(item, term.strip()) for term in part.split(" and "))
        for part in expression.split(" or ")
    )


def _holds(item: dict[str, Any], term: str) -> bool:
    if term == "is_local":
        return True
    found = re.fullmatch(r"([a-z_.]+)=['\"]([^'\"]*)['\"]", term)
    assert found is not None, term
    value: Any = item
    for part in found[1].split("."):
        value = (value or {}).get(part)
    pattern = re.escape(found[2]).replace(r"\*", ".*")
    values = value if isinstance(value, list) else [value]
    return any(re.fullmatch(pattern, str(each), re.IGNORECASE) for each in values)


@contextmanager
def cinder_flash_array(directory: Path) -> Iterator[CinderFlashArray]:
    """An array whose media are in a directory with reflinks."""
    array = CinderFlashArray(directory)
    try:
        yield array
    finally:
        array.close()
