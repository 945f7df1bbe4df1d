"""Shadow copies of a Windows guest, over a fake of diskshadow and of VSS behind it."""

import json
import re

import pytest

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.windows.vss import Plan, ShadowCopies, plan_from
from vendor_benches import soon
from vendors import diskshadow as fake_diskshadow
from vendors.product import create

LONG = 30.0
EXCHANGE = "Microsoft Exchange Writer"


class Guest:
    """A Windows guest with its fake, and an application for each plan."""

    def __init__(self, directory):
        self.directory = directory / "Atoll"
        self.fake = create(
            directory / "server", ("diskshadow.exe",), "diskshadow", **fake_diskshadow.START
        )
        self.made = []

    def application(self, truncate=False, writers=(), volumes=("C:\\", "E:\\")):
        plan = Plan(tuple(volumes), tuple(writers), truncate)
        program = str(self.fake.directory / "bin/diskshadow.exe")
        self.made.append(ShadowCopies(lambda: plan, program, self.directory))
        return self.made[-1]

    def shadows(self):
        return self.fake.state()["shadows"]


@pytest.fixture
def guest(tmp_path):
    made = Guest(tmp_path)
    yield made
    made.fake.set(hang=[])
    for application in made.made:
        application.close()
    assert soon(lambda: made.shadows() == [])


@pytest.mark.parametrize("truncate", [False, True])
def test_the_copies_are_there_from_the_arming_to_the_close(guest, truncate):
    application = guest.application(truncate)
    assert guest.shadows() == []
    assert application.open(Deadline(LONG)) == []
    assert [copy["volume"] for copy in guest.shadows()] == ["C:\\", "E:\\"]
    assert application.still_ready(Deadline(LONG))
    held = application.hold(Deadline(LONG))
    assert held.held
    assert held.position == f"shadow copy set {guest.shadows()[0]['set']}"
    assert "as after a power cut" in held.detail
    assert application.still_held(Deadline(LONG)) == ""
    application.close()
    assert soon(lambda: guest.shadows() == [])
    assert soon(lambda: not (guest.directory / "held.json").exists())


def test_writers_hear_of_a_full_backup_only_when_there_is_a_snapshot(guest):
    application = guest.application(truncate=True)
    application.open(Deadline(LONG))
    assert application.hold(Deadline(LONG)).held
    application.note_snapshot(True)
    assert application.still_held(Deadline(LONG)) == ""
    application.close()
    assert soon(lambda: guest.fake.state()["events"][-1:] == ["delete"])
    assert EXCHANGE in guest.fake.state()["truncated"]
    assert guest.fake.state()["events"] == ["create in a full backup", "end backup", "delete"]


@pytest.mark.parametrize("taken", [None, False])
def test_writers_hear_nothing_when_there_is_no_snapshot(guest, taken):
    application = guest.application(truncate=True)
    application.open(Deadline(LONG))
    if taken is not None:
        application.note_snapshot(taken)
    application.close()
    assert soon(lambda: guest.shadows() == [])
    assert guest.fake.state()["truncated"] == []


def test_a_copy_backup_never_truncates(guest):
    application = guest.application()
    application.open(Deadline(LONG))
    application.note_snapshot(True)
    application.close()
    assert soon(lambda: guest.shadows() == [])
    assert guest.fake.state()["events"] == ["create", "delete"]


def test_a_writer_whose_time_was_over_makes_it_no_hold(guest):
    """Exchange gives up after 20 seconds, the others after 60."""
    guest.fake.set(freeze_seconds=25)
    with pytest.raises(ApplicationError, match=f"writers failed: {EXCHANGE} \\(0x800423f2\\)"):
        guest.application().open(Deadline(LONG))
    assert soon(lambda: guest.shadows() == [])


def test_a_provider_whose_ten_seconds_were_over_makes_no_copies(guest):
    guest.fake.set(commit_seconds=11)
    with pytest.raises(ApplicationError, match="HOLD_WRITES_TIMEOUT"):
        guest.application().open(Deadline(LONG))
    assert guest.shadows() == []


def test_a_writer_that_must_take_part_and_is_not_there_is_named(guest):
    with pytest.raises(ApplicationError, match="NTDS is not included"):
        guest.application(writers=["NTDS"]).open(Deadline(LONG))
    application = guest.application(writers=["SqlServerWriter"])
    application.open(Deadline(LONG))
    application.close()


@pytest.mark.parametrize("truncate", [False, True])
def test_a_diskshadow_that_hangs_ends_with_the_deadline(guest, truncate):
    guest.fake.set(hang=["create"])
    with pytest.raises(ApplicationError, match="in time"):
        guest.application(truncate).open(Deadline(2))
    assert guest.shadows() == []


def test_copies_deleted_by_somebody_else_break_the_hold(guest):
    application = guest.application()
    application.open(Deadline(LONG))
    assert application.hold(Deadline(LONG)).held
    guest.fake.set(shadows=guest.shadows()[:1])
    assert "1 of its shadow copies were deleted" in application.still_held(Deadline(LONG))


def test_copies_of_somebody_else_are_left_alone(guest):
    theirs = {"id": "{1}", "set": "{2}", "volume": "C:\\"}
    guest.fake.set(shadows=[theirs])
    application = guest.application()
    application.open(Deadline(LONG))
    application.close()
    assert soon(lambda: guest.shadows() == [theirs])
    guest.fake.set(shadows=[])


def test_what_a_killed_agent_left_is_deleted_by_the_next(guest):
    killed = guest.application()
    killed.open(Deadline(LONG))
    guest.made.clear()  # nobody closes it
    assert guest.shadows()
    application = guest.application()
    application.recover(Deadline(LONG))
    assert guest.shadows() == []
    application.recover(Deadline(LONG))


def test_a_restored_guest_names_the_copies_it_was_restored_with(guest):
    application = guest.application()
    application.open(Deadline(LONG))
    record = json.loads((guest.directory / "held.json").read_text())
    testimony = application.testify(Deadline(LONG))
    assert testimony.answering
    assert testimony.position == f"shadow copy set {record['set']}"
    guest.fake.set(status={EXCHANGE: ["FAILED_AT_FREEZE", "0x800423f2"]})
    assert EXCHANGE in application.testify(Deadline(LONG)).detail
    application.close()


def test_a_guest_without_volumes_or_without_diskshadow_says_so(guest, tmp_path):
    with pytest.raises(ApplicationError, match="no volume"):
        guest.application(volumes=()).open(Deadline(LONG))
    absent = ShadowCopies(
        lambda: Plan(("C:\\",), (), False), "/none/diskshadow.exe", tmp_path / "a"
    )
    assert "could not be started" in absent.remark(Deadline(LONG))


def test_the_script_is_what_microsoft_documents(guest):
    application = guest.application(truncate=True, writers=["SqlServerWriter"])
    application.open(Deadline(LONG))
    script = (guest.directory / "create.dsh").read_bytes().decode()
    assert re.sub(r'"[^"]*[/\\]([a-z]+\.\w+)"', r"\1", script).split("\r\n") == [
        "set verbose on",
        "set context persistent",
        "set metadata writers.cab",
        "begin backup",
        'writer verify "SqlServerWriter"',
        'add volume "C:\\" alias Atoll1',
        'add volume "E:\\" alias Atoll2',
        "create",
        "exec await.cmd",
        "end backup",
        "",
    ]


def test_the_configuration_says_what_is_copied():
    assert plan_from(None, lambda: ["C:\\"]) == Plan(("C:\\",), (), False)
    entry = ApplicationConfig(
        "vss", "it", {"volumes": "D:\\,E:\\", "writers": EXCHANGE, "truncate": 1}
    )
    assert plan_from(entry, list) == Plan(("D:\\", "E:\\"), (EXCHANGE,), True)


def test_the_next_hold_waits_until_the_copies_of_the_last_are_deleted(guest):
    first = guest.application()
    first.open(Deadline(LONG))
    guest.fake.set(hang=["delete shadows"])
    first.close()
    with pytest.raises(ApplicationError, match="still being deleted"):
        guest.application().open(Deadline(0.5))
    guest.fake.set(hang=[])
    second = guest.application()
    second.open(Deadline(LONG))
    assert len(guest.shadows()) == 2
    assert second.hold(Deadline(LONG)).held
