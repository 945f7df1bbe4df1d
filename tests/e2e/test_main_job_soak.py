"""The main job again and again under load; every point is booted and asked."""

import os

import pytest
from main_job import RATE, assert_app_consistent, assert_proven, back_up

from atoll_lab.load import Loads
from live_lab import VMS, LiveLab

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(4 * 3600)]

ROUNDS = int(os.environ.get("ATOLL_SOAK_ROUNDS", "20"))


def test_every_point_under_constant_load_is_whole(lab: LiveLab) -> None:
    with Loads(lab.lab) as loads:
        loads.start(RATE)
        made = [back_up(lab, loads) for _ in range(ROUNDS)]
    for each in made:
        assert_app_consistent(each)
    for each in made:
        for vm in VMS:
            assert_proven(lab, each, vm)
    lab.assert_in_order()
