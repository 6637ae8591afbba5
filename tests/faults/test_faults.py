"""Runs that are killed and stopped at chosen instants end as one that was left alone.

The short version; `python -m tests.faults.all_instants` has every instant, one by one, and random
ones. Here the faults of a run come one after another, each to the process that went on from the
one before.
"""

import pathlib
import signal

import pytest

from l2s_jax.training.checkpoint import FOLDER, step_folders
from tests.faults.world import Trap, assert_same, fall, finish, make_world

LIMIT = 30  # seconds from SIGTERM to the end


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    make_world(root)
    return root


def flip_a_bit(folder: pathlib.Path) -> None:
    """In the middle of the largest file."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def test_stage_1_killed_in_its_first_save_then_stopped_then_damaged(world):
    whole, hurt = world / "whole" / "sft", world / "hurt" / "sft"
    finish(world, "sft", whole)
    fall(world, "sft", hurt, Trap(at="save, unsealed"))
    assert not step_folders(hurt / FOLDER)  # it starts anew
    stop = Trap(at="update", nth=5, delay=0.001, number=signal.SIGTERM)
    assert fall(world, "sft", hurt, stop) < LIMIT
    steps = step_folders(hurt / FOLDER)
    assert min(steps) == 3 and max(steps) in (5, 6)  # not only at every third
    flip_a_bit(steps[max(steps)])
    said = finish(world, "sft", hurt)
    assert "is not what was written" in said and "going on from step 3" in said
    assert_same(hurt, whole)


def test_stage_2_killed_before_an_update_then_stopped_in_a_rollout(world):
    whole, hurt = world / "whole" / "grpo_refresh", world / "hurt" / "grpo_refresh"
    finish(world, "grpo_refresh", whole)
    fall(world, "grpo_refresh", hurt, Trap(at="between rollout and update", nth=3))
    assert set(step_folders(hurt / FOLDER)) <= {2}  # written in the background, perhaps not yet
    stop = Trap(at="rollout", nth=2, number=signal.SIGTERM)  # between two refreshes
    assert fall(world, "grpo_refresh", hurt, stop) < LIMIT
    last = step_folders(hurt / FOLDER)[max(step_folders(hurt / FOLDER))]
    assert last.name in ("1", "3") and (last / "behaviour").is_dir()
    finish(world, "grpo_refresh", hurt)
    assert_same(hurt, whole)
