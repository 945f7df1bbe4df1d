"""What each vendor's procedure asks beyond what all products have in common."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules import db2, domino, informix, load_module, oracle
from atoll_agent.modules.oraclelog import judge_alert_log
from atoll_agent.strangers import count_servers
from vendor_benches import (
    ase_bench,
    db2_bench,
    domino_bench,
    hana_bench,
    informix_bench,
    maxdb_bench,
    mssql_bench,
    oracle_bench,
    soon,
)

LONG = 30.0


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where a bench is made, with its programs on PATH, and its applications closed at the end."""
    made = []

    def make(bench, **state):
        found = bench(tmp_path, **state)
        monkeypatch.setenv(
            "PATH", os.pathsep.join([str(found.fake.directory / "bin"), os.environ["PATH"]])
        )
        application = found.application()
        made.append((found, application))
        return SimpleNamespace(bench=found, application=application, fake=found.fake)

    yield make
    for found, application in made:
        found.fake.set(hang=[])
        application.close()
    assert soon(lambda: not list(tmp_path.glob("*.held")))


def hold(application):
    application.open(Deadline(LONG))
    return application.hold(Deadline(LONG))


def let_go(application, taken=None):
    if taken is not None:
        application.note_snapshot(taken)
    broken = application.still_held(Deadline(LONG))
    application.close()
    return broken


def test_oracle_without_backup_mode_checkpoints_and_changes_nothing(place):
    made = place(oracle_bench, method=oracle.SNAPSHOT)
    made.application.prepare(Deadline(LONG))
    answer = hold(made.application)
    assert answer.held
    assert answer.position.startswith("scn ")
    assert let_go(made.application) == ""
    assert made.bench.events() == [
        "ALTER SYSTEM ARCHIVE LOG CURRENT",
        "ALTER SYSTEM CHECKPOINT",
        "ALTER SYSTEM CHECKPOINT",
    ]


def test_oracle_in_noarchivelog_mode_is_held_without_archiving_but_has_no_backup_mode(place):
    made = place(oracle_bench, method=oracle.SNAPSHOT, log_mode="NOARCHIVELOG")
    made.application.prepare(Deadline(LONG))
    assert hold(made.application).held
    made.application.close()
    assert "ALTER SYSTEM ARCHIVE LOG CURRENT" not in made.bench.events()
    product = oracle.Oracle(
        oracle.Instance(**{**made.bench.arguments, "method": oracle.BACKUP_MODE})
    )
    with pytest.raises(Exception, match="NOARCHIVELOG"):
        product.connect(Deadline(LONG))
    product.disconnect()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"role": "PHYSICAL STANDBY"}, "physical standby"),
        ({"open_mode": "MOUNTED"}, "mounted"),
        ({"instances": 2}, "2 instances of a cluster"),
        ({"files": ["+DATA/orcl/system.dbf"]}, "in ASM"),
        ({"files": ["/proc/oradata/system.dbf"]}, "on proc"),
        ({"authorised": False}, "ORA-01017"),
    ],
)
def test_oracle_that_no_freeze_holds_is_refused_before_the_hold(place, state, reason):
    made = place(oracle_bench, method=None, **state)
    with pytest.raises(Exception, match=reason.replace("(", r"\(")):
        made.application.open(Deadline(LONG))
    assert made.application.remark(Deadline(LONG)).startswith("cannot be held")


def test_oracle_restarted_during_the_hold_is_found_out(place):
    made = place(oracle_bench, method=oracle.SNAPSHOT)
    assert hold(made.application).held
    made.fake.set(started="20261125093000")
    assert "restarted" in let_go(made.application)


def test_oracle_with_a_slow_checkpoint_is_held_all_the_same(place):
    made = place(oracle_bench, method=oracle.SNAPSHOT)
    made.application.open(Deadline(LONG))
    made.fake.set(hang=["CHECKPOINT"])
    answer = made.application.hold(Deadline(4))
    assert answer.held
    assert "recovery will take longer" in answer.detail


def test_oracle_restored_in_backup_mode_says_what_to_do(place):
    made = place(oracle_bench, open_mode="MOUNTED", in_backup_since=9)
    testimony = made.application.testify(Deadline(LONG))
    assert not testimony.answering
    assert "END BACKUP" in testimony.detail
    made.fake.set(open_mode="READ WRITE", in_backup_since=0)
    testimony = made.application.testify(Deadline(LONG))
    assert testimony.answering
    assert testimony.wal_replayed_bytes == 40 << 10
    assert testimony.repair_ran is False


def test_an_alert_log_without_a_start_says_nothing(tmp_path):
    assert judge_alert_log(tmp_path / "none.log") is None
    (tmp_path / "alert.log").write_text("Thread 1 advanced to log sequence 9\n")
    assert judge_alert_log(tmp_path / "alert.log") is None


def test_sql_server_records_the_snapshot_only_when_there_is_one(place):
    made = place(mssql_bench)
    assert hold(made.application).held
    assert let_go(made.application, taken=True) == ""
    [record] = [event for event in made.bench.events() if event.startswith("BACKUP")]
    assert record.startswith("BACKUP SERVER TO DISK = N'/mnt/log-backups/atoll-")
    assert record.endswith("WITH METADATA_ONLY, FORMAT")
    assert not made.bench.is_held()

    made.fake.set(events=[])
    assert hold(made.application).held
    assert let_go(made.application, taken=False) == ""
    assert made.bench.events() == ["suspend", "resume"]


def test_sql_server_lets_go_when_the_record_cannot_be_written(place):
    made = place(mssql_bench)
    assert hold(made.application).held
    made.fake.set(refuse={"BACKUP SERVER": "Operating system error 112 (disk full)."})
    assert let_go(made.application, taken=True) == ""
    assert made.bench.events()[-1] == "resume"


def test_sql_server_let_go_and_suspended_again_was_not_held_throughout(place):
    made = place(mssql_bench)
    assert hold(made.application).held
    soon(lambda: False, seconds=1.5)
    again = (
        f"from vendors.product import Product; import time; from pathlib import Path; "
        f"Product(Path({str(made.fake.directory)!r})).set(suspended={{'orders': time.monotonic(), "
        f"'stock': time.monotonic()}})"
    )
    subprocess.run([sys.executable, "-c", again], check=True, env={"PYTHONPATH": "tests/fakes"})
    assert "somebody else" in let_go(made.application)


def test_sql_server_before_2022_is_refused_and_a_wrong_password_is_not_shown(place):
    made = place(mssql_bench, version="15")
    with pytest.raises(Exception, match="needs SQL Server 2022"):
        made.application.open(Deadline(LONG))
    made.fake.set(version="16", password="another")
    with pytest.raises(Exception, match="Login failed") as refused:
        made.application.open(Deadline(LONG))
    assert "s3cret" not in str(refused.value)


def test_db2_resumes_on_the_connections_that_suspended(place):
    made = place(db2_bench)
    answer = hold(made.application)
    assert answer.held
    assert "SAMPLE lsn 5000, STOCK lsn 5000" in answer.position
    assert let_go(made.application) == ""
    assert made.bench.events() == [
        "suspend SAMPLE",
        "suspend STOCK",
        "resume SAMPLE",
        "resume STOCK",
    ]


def test_db2_without_its_connections_is_resumed_by_a_restart(place):
    """IBM: new connections may hang while writes are suspended; RESTART … WRITE RESUME does not."""
    made = place(db2_bench, connects_hang=True, suspended=["SAMPLE", "STOCK"])
    product = db2.Db2(db2.Instance(**made.bench.arguments))
    product.resume(Deadline(8))
    product.disconnect()
    assert made.bench.events() == [
        "restart with write resume SAMPLE",
        "restart with write resume STOCK",
    ]


def test_db2_with_several_partitions_is_refused(place):
    made = place(db2_bench, partitions=4)
    with pytest.raises(Exception, match="4 partitions"):
        made.application.open(Deadline(LONG))


def test_db2_restored_from_a_split_image_says_what_to_do(place):
    made = place(db2_bench, split=True)
    testimony = made.application.testify(Deadline(LONG))
    assert not testimony.answering
    assert "db2inidb SAMPLE AS SNAPSHOT" in testimony.detail


def test_informix_whose_log_moved_was_not_blocked_throughout(place):
    made = place(informix_bench)
    assert hold(made.application).held
    made.fake.set(page=900)
    assert "its log moved on" in let_go(made.application)


def test_informix_that_is_not_on_line_is_refused(place):
    made = place(informix_bench, mode="Read-Only (Sec)")
    with pytest.raises(Exception, match="cannot be blocked"):
        made.application.open(Deadline(LONG))


@pytest.mark.parametrize(("taken", "state"), [(True, "successful"), (False, "unsuccessful")])
def test_hana_hears_of_a_snapshot_only_when_there_is_one(place, taken, state):
    made = place(hana_bench)
    assert hold(made.application).held
    assert let_go(made.application, taken=taken) == ""
    [entry] = made.fake.state()["catalogue"]
    assert entry["state"] == state


def test_hana_is_prepared_while_the_guest_is_armed(place):
    made = place(hana_bench)
    made.application.open(Deadline(LONG))
    assert made.bench.is_held()
    made.fake.set(hang=["CREATE SNAPSHOT"])
    assert made.application.hold(Deadline(3)).held


def test_hana_of_several_hosts_is_refused(place):
    made = place(hana_bench, hosts=3)
    with pytest.raises(Exception, match="3 hosts"):
        made.application.open(Deadline(LONG))


def test_ase_holds_more_databases_than_one_tag_takes(place):
    made = place(ase_bench)
    assert hold(made.application).held
    assert sorted(made.fake.state()["tags"]) == ["atoll_hold_0", "atoll_hold_1"]
    assert let_go(made.application) == ""
    assert made.fake.state()["tags"] == {}


def test_ase_that_refuses_half_way_releases_the_other_half(place):
    made = place(ase_bench)
    made.application.open(Deadline(LONG))
    made.fake.set(refuse={"atoll_hold_1 hold": "prepared transactions did not end in time"})
    answer = made.application.hold(Deadline(LONG))
    assert not answer.held
    assert "prepared transactions" in answer.detail
    assert soon(lambda: not made.bench.is_held())


def test_ase_with_a_name_that_could_be_a_command_is_refused(place):
    made = place(ase_bench, databases=["a, master"])
    with pytest.raises(Exception, match="cannot be part"):
        made.application.open(Deadline(LONG))


def test_maxdb_that_is_not_online_is_refused(place):
    made = place(maxdb_bench, state="ADMIN")
    with pytest.raises(Exception, match="it is ADMIN"):
        made.application.open(Deadline(LONG))


def test_domino_whose_script_gave_up_was_not_held_throughout(place, monkeypatch):
    made = place(domino_bench, script_seconds=1.0)
    assert hold(made.application).held
    assert soon(lambda: not made.bench.is_held())
    # HCL's script leaves its file as it is when it gives up; here its time is not over yet.
    status = made.bench.records / "notesdata/dominobackup_snapshot.lck"
    assert status.read_text().strip() == "DOMINO-DONE"
    made.application.close()
    assert status.read_text().strip() == "DONE"


def test_domino_without_hcls_scripts_says_what_is_missing(place):
    made = place(domino_bench, scripts=False)
    with pytest.raises(Exception, match=r"dominobackup\.nsf"):
        made.application.open(Deadline(3))


def test_domino_s_status_is_not_written_through_a_link(place, tmp_path):
    """Root must not write where the server's owner, or who says to be it, can put a link."""
    made = place(domino_bench)
    owner = made.bench.records / "notesdata"
    server = domino.Server(**{**made.bench.arguments, "owner": "nobody"})
    (owner / "dominobackup_snapshot.lck.new").symlink_to(tmp_path / "root-only")
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    for folder in [owner, *owner.parents][:3]:
        folder.chmod(0o755)
    with pytest.raises(ApplicationError, match="cannot be written"):
        domino.Domino(server).suspend(Deadline(LONG))
    assert not (tmp_path / "root-only").exists()


def test_informix_of_a_stranger_is_not_run_as_informix():
    """Whoever calls a process of theirs oninit says in its environment which programs to run."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "oninit"
        shutil.copy("/bin/sleep", program)
        program.parent.chmod(0o755)
        server = subprocess.Popen(
            ["oninit", "60"],
            executable=program,
            user="nobody",
            env={"INFORMIXSERVER": "evil", "INFORMIXDIR": name},
        )
        try:
            assert soon(lambda: count_servers()["informix"] == 1)
            assert informix.discover((), True) == []
        finally:
            server.kill()
            server.wait()


BIDE = "import time; time.sleep(60)"
PROCESSES = {
    "oracle": (["ora_pmon_ORCL", "60"], {"ORACLE_HOME": "/opt/oracle"}, "ORCL"),
    "mssql": (["sqlservr", "60"], {}, "mssql"),
    "db2": (["db2sysc", "60"], {}, None),
    "informix": (["oninit", "60"], {"INFORMIXSERVER": "ol_it"}, "ol_it"),
    "hana": (["hdbnameserver", "60"], {"SAPSYSTEMNAME": "HDB"}, "HDB"),
    "ase": (["dataserver", "-c", BIDE, "-sASE1"], {}, "ASE1"),
    "maxdb": (["/sapdb/MDB/db/pgm/kernel", "MDB"], {}, "MDB"),
    "domino": (["/opt/hcl/domino/notes/latest/linux/server", "60"], {}, None),
}


@pytest.mark.parametrize("kind", sorted(PROCESSES))
def test_a_server_that_runs_is_found_and_counted(kind, tmp_path):
    """A process that is called and was started as the server's first one is."""
    argv, environment, name = PROCESSES[kind]
    program = tmp_path / os.path.basename(argv[0])[:15]
    shutil.copy("/bin/sleep" if argv[1] == "60" else os.path.realpath(sys.executable), program)
    (tmp_path / "MDB").write_text(BIDE)
    server = subprocess.Popen(
        argv,
        executable=program,
        env={**environment, "PYTHONHOME": sys.base_prefix},
        cwd=tmp_path,
    )
    try:
        assert soon(lambda: count_servers()[kind] == 1)
        found = load_module(kind).discover((), True)
        assert [one.kind for one in found] == [kind]
        assert name is None or found[0].name == name
    finally:
        server.kill()
        server.wait()
    assert load_module(kind).discover((), True) == []


def test_entries_that_only_add_to_a_server_that_does_not_run_find_nothing():
    for kind in PROCESSES:
        entry = ApplicationConfig(kind, "it", {"witness": "SELECT 1"})
        assert load_module(kind).discover((entry,), True) == []
