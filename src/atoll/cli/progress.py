"""Live progress on a terminal: stage, bytes, rate and time left for the group and for each VM."""

import sys
import threading
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from atoll.cli.output import err, printable, seconds, size

_SAYS = {
    "plan": "planning",
    "turn": "waiting for other runs to let go of the same guests",
    "prepare": "agents flush while applications serve",
    "hold": "guests held",
    "snapshot": "group snapshot",
    "release": "guests released",
    "proof": "judging the hold",
    "map": "mapping VMFS",
    "copy": "copying",
    "catalogue": "listing its files",
    "commit": "committing",
    "retire": "retiring old snapshots",
    "restore": "restoring",
    "verify": "reading and checking",
    "repair": "reading what is damaged and mending it",
    "look": "looking for what is missing",
    "mirror": "mirroring",
    "reach": "seeing what restore points need",
    "forget": "forgetting restore points",
    "prune": "giving back space",
    "boot": "booting in the sandbox",
    "serve": "serving its disks",
    "present": "presenting its disks to the host",
    "register": "making the VM",
    "power-on": "powering on",
    "move": "moving to its datastore",
    "end": "switching off",
    "done": "done",
}


class _Moved(ProgressColumn):
    """Bytes, rate and time left of a stage that moves bytes; the time so far of any other."""

    def render(self, task: Task) -> Text:
        if not task.fields["moves"]:
            return Text(seconds(task.elapsed or 0.0) if not task.finished else "")
        parts = [f"{size(task.completed)} of {size(task.total or 0)}"]
        rate = task.finished_speed or task.speed
        if rate:
            parts.append(f"{size(rate)}/s")
        if task.time_remaining and not task.finished:
            parts.append(f"{seconds(task.time_remaining)} left")
        return Text("  ".join(parts))


class LiveProgress:
    """A model Progress that draws on standard error; a plain line a stage when that is no terminal."""

    def __init__(self, whole: str = "group") -> None:
        """`whole` names what is worked on where no VM is named."""
        self._whole = whole
        self._lock = threading.Lock()
        self._live = err.is_terminal
        self._bars = Progress(
            TextColumn("{task.fields[vm]:<10}"),
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            _Moved(),
            console=err,
            transient=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._stage = ""
        self._since = time.monotonic()
        self.stage_seconds: dict[str, float] = {}

    def __enter__(self) -> "LiveProgress":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    def stage(self, vm: str, stage: str, total_bytes: int = 0) -> None:
        """Move the VM's line, or the group's, to its next stage."""
        said = _SAYS.get(stage, stage)
        with self._lock:
            if not vm:
                self._close_stage(stage)
            if self._live:
                self._draw(vm, said, total_bytes)
            else:
                sys.stderr.write(printable(f"{vm or self._whole}: {said}\n"))

    def advance(self, vm: str, done_bytes: int) -> None:
        """Fill the VM's bar."""
        with self._lock:
            if self._live and vm in self._tasks:
                self._bars.advance(self._tasks[vm], done_bytes)

    def note(self, vm: str, text: str) -> None:
        """Print a line above the bars."""
        err.print(f"{vm + ': ' if vm else ''}{text}", style="yellow")

    def _close_stage(self, stage: str) -> None:
        now = time.monotonic()
        if self._stage:
            spent = now - self._since
            self.stage_seconds[self._stage] = self.stage_seconds.get(self._stage, 0.0) + spent
            if self._live and spent >= 0.05:
                err.print(f"  {_SAYS.get(self._stage, self._stage)}: {seconds(spent)}", style="dim")
        self._stage, self._since = stage, now

    def _draw(self, vm: str, said: str, total_bytes: int) -> None:
        if vm not in self._tasks:
            self._tasks[vm] = self._bars.add_task(
                said, vm=vm or self._whole, total=None, moves=False
            )
        task = self._tasks[vm]
        if said == _SAYS["done"]:
            self._bars.update(task, description=said, total=1, completed=1, moves=False)
        else:
            self._bars.reset(
                task,
                description=said,
                total=total_bytes or None,
                completed=0,
                # A reset forgets every field that it is not given.
                vm=vm or self._whole,
                moves=bool(total_bytes),
            )
