"""The trial boot behind the choice of an accelerator, tried with the one that always works."""

import stat

from atoll.recovery.accelerator import Accelerator, choose_accelerator, guest_runs
from atoll.recovery.sandbox import QEMU


def fake_qemu(tmp_path, body):
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return [str(program)]


def test_guest_code_is_seen_to_run():
    assert guest_runs([QEMU], Accelerator.TCG, deadline_seconds=120)


def test_an_emulator_that_ends_well_without_running_the_guest_does_not_count(tmp_path):
    assert not guest_runs(fake_qemu(tmp_path, "exit 0"), Accelerator.TCG)


def test_one_that_hangs_is_given_up(tmp_path):
    hanging = fake_qemu(tmp_path, "exec sleep 600")
    assert not guest_runs(hanging, Accelerator.TCG, deadline_seconds=0.2)


def test_no_emulator_at_all(tmp_path):
    assert not guest_runs([str(tmp_path / "none")], Accelerator.TCG)


def test_kvm_is_taken_only_when_allowed_and_proven(tmp_path):
    works = fake_qemu(tmp_path, "exit 33")
    assert choose_accelerator("auto", works) is Accelerator.KVM
    assert choose_accelerator("tcg", works) is Accelerator.TCG
    broken = fake_qemu(tmp_path, "exit 1")
    assert choose_accelerator("auto", broken) is Accelerator.TCG
