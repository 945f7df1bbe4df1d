"""The recipe that copies disks over NBD, whole or what changed: equal to the run's in the end."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from recipe_farm import DISKS, RECIPES, WINDOWS, RecipeFarm, digest

pytestmark = pytest.mark.needs_root


def restored(farm: RecipeFarm, image: Path, out: Path) -> str:
    """The hash of a disk that qemu-img made of an image."""
    farm.command("qemu-img", "convert", "-O", "raw", image, out)
    return digest(out)


def test_an_increment_is_equal_to_the_whole(farm: RecipeFarm, tmp_path: Path) -> None:
    place = tmp_path / "images of it"
    old, new = farm.states
    (place / "db1" / old.run).mkdir(parents=True)
    for key, disk in (("2000", farm.old_system_disk), ("2001", farm.old_data_disk)):
        before = place / "db1" / old.run / f"disk-{key}.qcow2"
        farm.command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, before)
    (place / "db1/last").symlink_to(old.run)
    # What changed since this one nobody knows any more.
    (place / WINDOWS / "20200101-gone").mkdir(parents=True)
    (place / WINDOWS / "last").symlink_to("20200101-gone")
    done = farm.recipe("qemu", place, "db1", WINDOWS)
    assert done.returncode == 0, done.stderr
    assert f"what changed in {WINDOWS} since 20200101-gone is not known" in done.stderr
    farm.assert_nothing_left()

    def assert_images(vm: str) -> None:
        assert (place / vm / "last").resolve() == place / vm / new.run
        for number in range(1, len(DISKS[vm]) + 1):
            image = place / vm / "last" / f"disk-{1999 + number}.qcow2"
            assert restored(farm, image, tmp_path / "disk") == new.disks[vm, number]

    assert_images(WINDOWS)
    assert_images("db1")
    for key, most in ((2000, 1 << 20), (2001, 3 << 17)):
        image = place / "db1" / new.run / f"disk-{key}.qcow2"
        told = json.loads(farm.command("qemu-img", "info", "--output=json", image).stdout)
        assert told["backing-filename"].endswith(f"{old.run}/disk-{key}.qcow2")
        rows = json.loads(farm.command("qemu-img", "map", "--output=json", image).stdout)
        own = sum(row["length"] for row in rows if row["depth"] == 0 and row["data"])
        assert 0 < own <= most, "no more than what changed"
        # As the guide makes room.
        whole = tmp_path / "whole"
        farm.command("qemu-img", "convert", "-O", "qcow2", image, whole)
        whole.rename(image)
    shutil.rmtree(place / "db1" / old.run)
    assert_images("db1")


def test_scripts_are_clean() -> None:
    scripts = sorted(RECIPES.glob("*.sh"))
    assert scripts
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
