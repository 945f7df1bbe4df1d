"""The restore test: boot a restore point where nothing can reach it, and keep what it said."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

from atoll.model.consistency import ApplicationState, Consistency
from atoll.model.points import Evidence, RestorePoint
from atoll.model.progress import Progress
from atoll.recovery.sandbox import Sandbox, SandboxDisk, SandboxLimits, open_sandbox
from atoll.recovery.testimony import RestoredApplication, Testimony, WitnessChannel

Fact = str | int | float | bool | None
ASK_EVERY_SECONDS = 0.5
SILENCE_SECONDS = 15.0
AGENT_GRACE_SECONDS = 30.0
LOGIN_PROMPT = re.compile(r"^\S{1,64} login:", re.MULTILINE)


def prove(
    point: RestorePoint,
    disks: Sequence[tuple[str, str]],
    timeout_seconds: float,
    workdir: Path,
    progress: Progress,
    limits: SandboxLimits | None = None,
) -> Evidence:
    """Boot `point` and wait until its applications answer, at most `timeout_seconds`.

    `disks` are (label, base) in the VM's order; a base is a path or an
    `nbd+unix://` address and is never written to. `workdir` takes what the
    guest writes meanwhile, about as much as it changes. A guest that does not
    come up is evidence too (`passed` False); SandboxError means nothing was
    learned because the test could not be made.

    A guest whose point was taken without an agent passes when its serial
    console asks for a login and no agent speaks up: facts then say `evidence`
    is `login-prompt` instead of `agent`.
    """
    progress.stage(point.vm, "boot")
    expected = point.proof.hold.applications if point.proof.hold is not None else ()
    given = [SandboxDisk(label, base) for label, base in disks]
    with open_sandbox(given, workdir, limits or SandboxLimits()) as sandbox:
        trial = _Trial(sandbox, expected, agent_expected=point.proof.hold is not None)
        trial.binding = point.proof.consistency is Consistency.APP
        if point.proof.hold is not None and point.proof.consistency is not Consistency.CRASH:
            trial.frozen = frozenset(point.proof.hold.filesystems)
        trial.run(timeout_seconds)
        return trial.evidence()


class _Trial:
    """One boot, watched until it is decided."""

    def __init__(
        self, sandbox: Sandbox, expected: Sequence[ApplicationState], agent_expected: bool
    ) -> None:
        self._sandbox = sandbox
        self._expected = {(state.kind, state.name): state for state in expected}
        self._agent_expected = agent_expected
        self._started = time.monotonic()
        self._testimony: Testimony | None = None
        self._seconds = 0.0
        self._failure = ""
        # Whether the hold was unbroken, so that a witness must answer as it did then.
        self.binding = False
        # File systems that were frozen clean, whose journals must hold nothing to replay.
        self.frozen: frozenset[str] = frozenset()

    def run(self, timeout_seconds: float) -> None:
        """Ask until all is well, the guest is off or the time is over."""
        channel = WitnessChannel(self._sandbox.witness)
        ask_at = self._started
        prompted: float | None = None
        while not self._over(timeout_seconds):
            now = time.monotonic()
            if self._testimony is None and LOGIN_PROMPT.search(self._sandbox.serial_tail()):
                prompted = prompted or now
                if not self._agent_expected and now - prompted >= AGENT_GRACE_SECONDS:
                    self._seconds = prompted - self._started
                    return
            if now >= ask_at:
                channel.ask()
                ask_at = now + SILENCE_SECONDS
            testimony = channel.listen(ASK_EVERY_SECONDS)
            if testimony is None:
                continue
            self._testimony = testimony
            if self._all_answer(testimony):
                self._seconds = time.monotonic() - self._started
                self._failure = self._contradiction(testimony)
                return
            # It answers but is not ready: the next question need not wait for the long silence.
            ask_at = now + ASK_EVERY_SECONDS

    def evidence(self) -> Evidence:
        """What was seen, as it will be kept."""
        facts: dict[str, Fact] = {
            "boot_seconds": round(self._seconds, 3),
            "accelerator": self._sandbox.accelerator.value,
            "unprivileged": self._sandbox.unprivileged,
            "evidence": self._kind(),
        }
        if self._testimony is not None:
            facts |= self._testimony_facts(self._testimony)
        if self._failure:
            facts["serial_tail"] = self._sandbox.serial_tail()
            facts["qemu_said"] = self._sandbox.complaints()
        return Evidence(
            proven_at=time.time(),
            passed=not self._failure,
            boot_seconds=self._seconds,
            summary=self._failure or self._summary(),
            facts=facts,
        )

    def _over(self, timeout_seconds: float) -> bool:
        """Whether there is nothing more to wait for; then the failure says why."""
        self._seconds = time.monotonic() - self._started
        if self._sandbox.ended():
            self._failure = f"The guest was off {self._seconds:.0f} s after it was started."
        elif self._seconds >= timeout_seconds:
            self._failure = self._what_is_missing(timeout_seconds)
        return bool(self._failure)

    def _contradiction(self, testimony: Testimony) -> str:
        """A point whose guest tells another story than when it was held."""
        for filesystem in testimony.filesystems:
            if filesystem.recovered and filesystem.mount in self.frozen:
                return (
                    f"The journal of {filesystem.mount} was replayed although it was frozen clean."
                )
        for one in testimony.applications if self.binding else ():
            held = self._expected.get((one.kind, one.name))
            if held is None or not held.held:
                continue
            if one.repair_ran:
                return f"{one.kind} {one.name} had to repair itself although it was held."
            if _same_witness(one, held) is False:
                return (
                    f"The witness of {one.kind} {one.name} DIFFERS: it said {held.witness!r} when "
                    f"it was held and {one.witness!r} after the restore."
                )
        return ""

    def _all_answer(self, testimony: Testimony) -> bool:
        answering = {(one.kind, one.name) for one in testimony.applications if one.answering}
        return answering >= self._expected.keys() and len(answering) == len(testimony.applications)

    def _kind(self) -> str:
        if self._testimony is not None:
            return "agent"
        return "none" if self._failure else "login-prompt"

    def _what_is_missing(self, timeout_seconds: float) -> str:
        if self._testimony is None:
            return f"The agent inside did not speak up within {timeout_seconds:.0f} s."
        said = {(one.kind, one.name): one for one in self._testimony.applications}
        missing = [f"{kind} {name} was not found" for kind, name in self._expected.keys() - said]
        missing += [
            f"{one.kind} {one.name} did not answer" + (f" ({one.detail})" if one.detail else "")
            for one in said.values()
            if not one.answering
        ]
        return f"After {timeout_seconds:.0f} s {', '.join(sorted(missing))}."

    def _testimony_facts(self, testimony: Testimony) -> dict[str, Fact]:
        applications = testimony.applications
        replayed = [one.wal_replayed_bytes for one in applications]
        known = [count for count in replayed if count is not None]
        recovered = [one.mount for one in testimony.filesystems if one.recovered]
        told = [one for one in testimony.filesystems if one.recovered is not None]
        facts: dict[str, Fact] = {
            "guest_time": testimony.guest_time,
            "guest_uptime_seconds": testimony.uptime_seconds,
            "filesystems": ", ".join(one.mount for one in testimony.filesystems),
            "filesystems_recovered": ", ".join(recovered) if told else None,
            "wal_replayed_bytes": sum(known) if known else None,
            "repair_ran": any(one.repair_ran for one in applications),
        }
        for one in applications:
            label = f"{one.kind} {one.name}"
            facts[f"{label}: answering"] = one.answering
            facts[f"{label}: witness"] = one.witness
            facts[f"{label}: position"] = one.position
            facts[f"{label}: wal_replayed_bytes"] = one.wal_replayed_bytes
            facts[f"{label}: repair_ran"] = one.repair_ran
            if one.detail:
                facts[f"{label}: detail"] = one.detail
            held = self._expected.get((one.kind, one.name))
            if held is not None:
                facts[f"{label}: witness_as_held"] = _same_witness(one, held)
        return facts

    def _summary(self) -> str:
        testimony = self._testimony
        if testimony is None:
            return (
                f"The guest asked for a login after {self._seconds:.1f} s; it has no agent, "
                "so nothing inside it was asked."
            )
        if not testimony.applications:
            return f"The guest was up after {self._seconds:.1f} s; it runs no known application."
        parts = [_sentence(one, self._expected) for one in testimony.applications]
        return f"Booted and answering after {self._seconds:.1f} s: {'; '.join(parts)}."


def _sentence(one: RestoredApplication, expected: dict[tuple[str, str], ApplicationState]) -> str:
    words = [f"{one.kind} {one.name}"]
    if one.wal_replayed_bytes is not None:
        words.append(f"replayed {one.wal_replayed_bytes} bytes of log")
    words.append("had to repair" if one.repair_ran else "needed no repair")
    held = expected.get((one.kind, one.name))
    same = _same_witness(one, held) if held is not None else None
    if same is not None:
        words.append("witness as held" if same else "witness DIFFERS from when it was held")
    return ", ".join(words)


def _same_witness(one: RestoredApplication, held: ApplicationState) -> bool | None:
    """None when there was no witness to compare with."""
    return None if held.witness is None else one.witness == held.witness
