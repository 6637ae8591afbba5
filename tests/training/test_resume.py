"""Killed at any instant and started again: the same weights and the same metrics, bit for bit.

The runs of adapters and of a fixed behaviour policy; the others, and chosen instants, are in
`tests/faults`.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import pytest

from l2s_jax.cli.main import main
from l2s_jax.config import claim_workdir, load_config
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.adapter import LORA_FILE
from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.metrics import FILE
from l2s_jax.training.optim import make_optimizer
from l2s_jax.training.policy import load_adapted, load_policy, save_policy
from l2s_jax.training.state import begin_state, state_shardings
from tests.training.resumable import HERE, NUM_STEPS, OPTIM
from tests.training.tiny import assert_trees_equal, taught_policy, untaught_policy, write_curation

REPOSITORY = pathlib.Path(__file__).parents[2]
PATIENCE = 400  # seconds until a run must have written its first checkpoint


def start(*folders: pathlib.Path) -> subprocess.Popen:
    """The runs in a process of their own, on one device."""
    env = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        # What the first process compiled, the others need not.
        "JAX_COMPILATION_CACHE_DIR": str(folders[0].parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.training.resumable", *map(str, folders)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True)


def has_checkpoint(workdir: pathlib.Path) -> bool:
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))


def kill_within(process: subprocess.Popen, workdir: pathlib.Path, delay: float) -> None:
    """SIGKILL, `delay` seconds after the run's first checkpoint."""
    deadline = time.monotonic() + PATIENCE
    while not has_checkpoint(workdir):
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline, f"{workdir} has no checkpoint after {PATIENCE} s"
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(runs that were killed, runs that were not), all finished."""
    root = tmp_path_factory.mktemp("resume")
    save_policy(root / "base", untaught_policy())
    save_policy(root / "taught", taught_policy())
    write_curation(root / "curated")
    killed, whole = root / "killed", root / "whole"
    for name in HERE:
        delay = random.uniform(0, 0.6)
        print(f"{name}: killed {delay:.3f} s after its first checkpoint")  # shown on a failure
        kill_within(start(killed), killed / name, delay)
    last = start(killed, whole)
    _, errors = last.communicate(timeout=2 * PATIENCE)
    assert last.returncode == 0, errors[-4000:]
    return killed, whole


def final_state(workdir: pathlib.Path, num_steps: int):
    optimizer = make_optimizer(OPTIM, num_steps)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lora, num_rows = None, 0
    if (workdir / LORA_FILE).exists():
        lora, policy = load_adapted(workdir)
        num_rows = len(policy.params["lora"]["token_ids"])
    else:
        policy = load_policy(workdir)
    places = state_shardings(policy.model, optimizer, mesh, lora=lora, num_rows=num_rows)
    like = begin_state(policy.params, optimizer, places)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest() == num_steps
        found = checkpoints.restore(like)
        assert found is not None
        return found.state


@pytest.mark.parametrize("name", HERE)
def test_a_killed_run_ends_as_an_uninterrupted_one(folders, name):
    killed, whole = (folder / name for folder in folders)
    got, want = (final_state(folder, NUM_STEPS[name]) for folder in (killed, whole))
    assert_trees_equal(got, want)
    assert (killed / FILE).read_bytes() == (whole / FILE).read_bytes()
    steps = [json.loads(line)["step"] for line in (whole / FILE).read_text().splitlines()]
    assert steps == list(range(1, NUM_STEPS[name] + 1))


def test_training_moved_the_parameters(folders):
    """Or else all of the above would hold of runs that do nothing."""
    start_from = taught_policy().params["embed"]["embedding"]
    policy = load_policy(folders[1] / "grpo")
    assert abs(policy.params["embed"]["embedding"] - start_from).max() > 1e-3


@pytest.mark.parametrize("name", ["sft_lora", "grpo_lora"])
def test_training_moved_the_adapter(folders, name):
    _, policy = load_adapted(folders[1] / name)
    for part in policy.params["lora"]["layers"].values():
        for leaves in part.values():
            assert abs(leaves["b"]).max() > 1e-3  # it starts at zero


def test_a_refresh_gives_the_sampler_the_current_weights(folders):
    def gaps(name):
        lines = (folders[1] / name / FILE).read_text().splitlines()
        return [json.loads(line)["max_log_ratio"] for line in lines]

    adapted = gaps("grpo_lora")  # the sampler has base and adapter made one
    assert max(adapted[0::2]) < 1e-4 < 1e-3 < min(adapted[1::2])
    fixed = gaps("grpo")  # the stage 1 policy samples to the end
    assert fixed[0] < 1e-4 < 1e-3 < min(fixed[1:])


@pytest.mark.parametrize("verb", ["sft", "grpo", "eval"])
def test_a_workdir_of_another_config_is_refused(tmp_path, capsys, verb):
    config = REPOSITORY / "configs" / f"{verb}_arithmetic.py"
    claim_workdir(load_config(config), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    argv = [verb, "--config", str(config), "--workdir", str(tmp_path / "run"), "--set", "seed=7"]
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "seed: 0 → 7" in message and "another --workdir" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
