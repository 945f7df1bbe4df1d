"""What drivers of storage arrays call things, and the numbers and secrets they keep."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from atoll.model.errors import ConfigurationError, StorageConflictError
from atoll.storage.backend import Place
from atoll.storage.drivers import ontap, pure
from atoll.storage.drivers.array import LunNumbers, proxy_of, read_secret
from atoll.storage.drivers.ontap.flexvols import OntapLun
from atoll.storage.drivers.ontap.names import Names as OntapNames
from atoll.storage.drivers.pure.names import Names as PureNames

SYSTEM = "0123456789ab"
ONE, OTHER = "1" * 32, "2" * 32
TOKEN = "f" * 16
INITIATORS = (
    "iqn.1998-01.com.vmware:esx1",
    "iqn.1998-01.com.vmware:esx2",
    "iqn.1998-01.com.vmware:ESX-Host_With.A-Very-Long-Name-Of-Its-Own-And-More-Than-That",
    "eui.02004567A425678D",
    "naa.21000024ff0a1b2c",
    "iqn.2001-04.com.example:---",
)


class Memory:
    """Notes that last as long as this."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}

    def note(self, key: str) -> str | None:
        return self._notes.get(key)

    def notes(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self._notes.items() if key.startswith(prefix)}

    def put_note(self, key: str, value: str | None) -> None:
        if value is None:
            self._notes.pop(key, None)
        else:
            self._notes[key] = value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, Memory(), SYSTEM)


@pytest.mark.parametrize("pod", [None, "pod1"])
@pytest.mark.parametrize("volume_group", [None, "vg1"])
def test_names_on_a_flasharray_keep_its_rules_and_are_known_again(
    pod: str | None, volume_group: str | None
) -> None:
    names, stranger = PureNames(SYSTEM, pod, volume_group), PureNames("f" * 12, pod, volume_group)
    rule = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
    volume, group, copy = names.volume(ONE), names.group(ONE), names.reading_copy(TOKEN)
    for name in (volume, group, copy, *map(names.host, INITIATORS)):
        assert rule.fullmatch(re.split("::|/", name)[-1]), name
    snapshot = f"{group}.{names.snapshot_suffix(OTHER)}"
    assert (names.volume_id(volume), names.group_id(group)) == (ONE, ONE)
    assert (names.copy_token(copy), names.snapshot_id(snapshot)) == (TOKEN, OTHER)
    inside = f"{snapshot}.{volume.removeprefix('pod1::')}"
    assert names.volume_in_snapshot(inside) == ONE
    for read in (stranger.volume_id, stranger.group_id, stranger.copy_token, stranger.snapshot_id):
        assert not any(map(read, (volume, group, copy, snapshot)))
    assert names.volume_id(copy) is None
    assert names.snapshot_id(f"{group}.by-hand") is None
    assert names.snapshot_id(f"prod.{names.snapshot_suffix(OTHER)}") is None


def test_names_on_ontap_keep_its_rules_and_are_known_again() -> None:
    names, stranger = OntapNames(SYSTEM), OntapNames("f" * 12)
    flexvol, copy = names.flexvol(ONE), names.copy(TOKEN)
    for name in (flexvol, copy, *map(names.igroup, INITIATORS)):
        assert re.fullmatch(r"[a-z_][a-z0-9_]{0,95}", name), name
    assert (names.group_id(flexvol), names.copy_token(copy)) == (ONE, TOKEN)
    assert names.snapshot_id(names.snapshot(OTHER)) == OTHER
    assert names.snapshot_id("daily.2026-11-25_0010") is None
    assert (names.group_id(copy), names.copy_token(flexvol)) == (None, None)
    assert (stranger.group_id(flexvol), stranger.copy_token(copy)) == (None, None)
    assert OntapLun("u", names.lun(ONE, OTHER), "a" * 12, 1, True).volume == OTHER
    assert OntapLun("u", "/vol/prod/db", "a" * 12, 1, True).volume is None


def test_hosts_have_names_of_their_own() -> None:
    for host in (PureNames(SYSTEM, None, None).host, OntapNames(SYSTEM).igroup):
        assert len({host(initiator) for initiator in INITIATORS}) == len(INITIATORS)
        assert "esx1" in host(INITIATORS[0])
        assert host(INITIATORS[0]) == host(INITIATORS[0].upper().replace("IQN", "iqn"))


def test_an_ontap_luns_naa_is_its_serial_in_hexadecimal() -> None:
    lun = OntapLun("u", "/vol/v/x", "wf0Iq+N4uck3", 1, True)
    assert lun.identity.naa == "naa.600a0980776630497" + "12b4e3475636b33"


def test_a_number_is_chosen_once_and_kept(place: Place) -> None:
    numbers = LunNumbers(place)
    first = numbers.of(ONE, lambda: ())
    assert 1 <= first <= 1023
    assert numbers.of(ONE, lambda: {first}) == first
    assert LunNumbers(place).of(OTHER, lambda: {first % 1023 + 1}) not in (first, first % 1023 + 1)
    numbers.forget(ONE)
    assert numbers.known(ONE) is None
    with pytest.raises(StorageConflictError, match="All LUN numbers"):
        numbers.of(ONE, lambda: range(1, 1024))


def test_secrets_are_the_first_line_of_their_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with pytest.raises(ConfigurationError, match="must exist"):
        read_secret(file)
    file.write_text("")
    with pytest.raises(ConfigurationError, match="empty"):
        read_secret(file)
    file.write_text("the secret\nand a remark\n")
    assert read_secret(file) == "the secret"


def test_who_reads_snapshots_is_the_systems_own_unless_set(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a-long-secret\n")
    keys = {"host": "array", "api_token_file": "token"}
    proxy = proxy_of(pure.Settings.model_validate(keys), place)
    assert (proxy.initiator, proxy.chap) == (f"iqn.2026-11.org.atoll:proxy.{SYSTEM}", None)
    keys |= {"initiator": "iqn.1998-01.org.example:b", "initiator_secret_file": tmp_path / "secret"}
    proxy = proxy_of(pure.Settings.model_validate(keys), place)
    assert proxy.chap is not None
    assert (proxy.chap.user, proxy.chap.secret) == ("iqn.1998-01.org.example:b", "a-long-secret")
    assert "a-long-secret" not in repr(proxy)


def test_settings_say_what_is_missing() -> None:
    with pytest.raises(ValidationError, match="api_token_file"):
        pure.Settings.model_validate({"host": "array"})
    with pytest.raises(ValidationError, match="initiator_secret_file"):
        pure.Settings.model_validate(
            {"host": "array", "api_token_file": "t", "initiator_user": "me"}
        )
    with pytest.raises(ValidationError, match="pod"):
        pure.Settings.model_validate({"host": "array", "api_token_file": "t", "pod": "a::b"})
    with pytest.raises(ValidationError, match="svm"):
        ontap.Settings.model_validate(
            {"host": "array", "user": "u", "password_file": "p", "aggregate": "a"}
        )
