"""What a Redis server tells of its persistence and replication (INFO), and what that means."""

from dataclasses import dataclass

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.resp import Connection, RefusedError, Reply

FIRST_VERSION = (6, 2)
"""Of Redis: the first with CLIENT UNPAUSE and with a pause that lets reads pass."""


@dataclass(frozen=True)
class State:
    """`offset` counts the bytes of the replication stream, or of the primary's on a replica.

    `changes` are writes since the last snapshot file, `saved_at` is when that
    was written (seconds since the epoch), `save_seconds` how long it took
    (negative: not known). `buffered_bytes` are in the server but not yet in the
    append-only file, `syncing` says that a sync of it is under way, `beginning`
    that the file was only just switched on and is not whole yet.
    """

    version: tuple[int, ...]
    run_id: str
    replica: bool
    synchronised: bool
    offset: int
    replication_id: str
    loading: bool
    appending: bool
    append_failed: bool
    buffered_bytes: int
    syncing: bool
    beginning: bool
    changes: int
    saved_at: int
    saving: bool
    save_failed: bool
    save_seconds: float

    @property
    def position(self) -> str:
        """Where the stream stands, or the snapshot file where no stream is counted."""
        if self.offset:
            return f"replication {self.replication_id}:{self.offset}"
        return f"{self.changes} changes since the save of {self.saved_at}"


def read_state(connection: Connection, deadline: Deadline) -> State:
    """Ask for it. Raises ApplicationError."""
    answer = connection.ask(deadline, "INFO")
    if not isinstance(answer, str):
        raise ApplicationError("the server does not tell its state")
    found = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
    try:
        replica = found["role"] == "slave"
        return State(
            version=tuple(int(part) for part in found["redis_version"].split(".")[:3]),
            run_id=found["run_id"],
            replica=replica,
            synchronised=found.get("master_link_status", "up") == "up",
            offset=int(found["slave_repl_offset" if replica else "master_repl_offset"]),
            replication_id=found["master_replid"],
            loading=found["loading"] != "0",
            appending=found["aof_enabled"] == "1",
            append_failed=found.get("aof_last_write_status", "ok") != "ok",
            buffered_bytes=int(found.get("aof_buffer_length", "0")),
            syncing=found.get("aof_pending_bio_fsync", "0") != "0",
            beginning=found["aof_rewrite_in_progress"] == "1" and found.get("aof_base_size") == "0",
            changes=int(found["rdb_changes_since_last_save"]),
            saved_at=int(found["rdb_last_save_time"]),
            saving=found["rdb_bgsave_in_progress"] == "1",
            save_failed=found["rdb_last_bgsave_status"] != "ok",
            save_seconds=float(found["rdb_last_bgsave_time_sec"]),
        )
    except (KeyError, ValueError) as error:
        raise ApplicationError(f"the server does not tell its state ({error})") from error


def saves_by_itself(connection: Connection, deadline: Deadline) -> bool:
    """Whether the server is configured to write snapshot files; where that is a secret: yes."""
    try:
        answer = connection.ask(deadline, "CONFIG", "GET", "save")
    except RefusedError:
        return True
    return not (isinstance(answer, list) and len(answer) == 2 and answer[1] == "")


def as_text(reply: Reply) -> str:
    """A reply as a witness's answer: lists a line each."""
    if isinstance(reply, list):
        return "\n".join(as_text(each) for each in reply)
    return "" if reply is None else str(reply)
