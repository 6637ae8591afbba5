"""Checkpoints: on another mesh, unfinished ones, what a reader may touch."""

import shutil

import jax
import numpy as np
import pytest

from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.checkpoint import (
    FOLDER,
    Checkpoints,
    restore_params,
    save_params,
    saved_params,
)
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.state import begin_state, state_shardings
from tests.training.tiny import MESHES, assert_trees_equal, taught_policy, untaught_policy

OPTIMIZER = make_optimizer(OptimConfig(), 10)


def state_on(mesh, step=0, seed=0):
    """A state with moments that are not zero, so that losing them is seen."""
    policy = taught_policy(seed)
    state = begin_state(policy.params, OPTIMIZER, state_shardings(policy.model, OPTIMIZER, mesh))
    noisy = jax.tree.map(lambda a: jax.device_put(a + 3, a.sharding), state.opt_state)
    number = jax.device_put(np.int32(step), state.step.sharding)
    return state.replace(step=number, opt_state=noisy)


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def eight():
    return make_mesh(MESHES["all axes"])


def test_there_and_back_between_meshes(one, eight, tmp_path):
    small, large = state_on(one, step=3), state_on(eight, seed=1)
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(small)
    with Checkpoints(tmp_path / "a") as checkpoints:
        there = checkpoints.restore(3, large)
    assert_trees_equal(there, small)
    jax.tree.map(lambda got, like: got.sharding == like.sharding or pytest.fail(), there, large)
    with Checkpoints(tmp_path / "b") as checkpoints:
        checkpoints.save(there)
    with Checkpoints(tmp_path / "b") as checkpoints:
        back = checkpoints.restore(3, state_on(one, seed=2))
    assert_trees_equal(back, small)


def test_the_newest_ones_are_kept(one, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        for step in (2, 4, 6):
            checkpoints.save(state_on(one, step))
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"4", "6"}


def test_saving_does_not_wait_for_the_donated_state(one, tmp_path):
    """The write goes on in the background while the next step takes the state's buffers."""
    state = state_on(one, step=1)
    before = jax.device_get(jax.tree.map(lambda a: a.copy(), state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        overwrite = jax.jit(lambda s: jax.tree.map(lambda a: a * 0 - 1, s), donate_argnums=0)
        jax.block_until_ready(overwrite(state))
    with Checkpoints(tmp_path) as checkpoints:
        assert_trees_equal(checkpoints.restore(1, state_on(one)), before)


@pytest.mark.parametrize("name", ["4.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-1700000000"])
def test_an_unfinished_step_is_ignored_and_then_written_anew(one, tmp_path, name):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=2))
    folder = tmp_path / FOLDER
    shutil.copytree(folder / "2", folder / name)
    shutil.rmtree(folder / name / "params")
    wanted = state_on(one, step=4, seed=1)
    assert_trees_equal(restore_params(tmp_path, wanted.params), taught_policy().params)
    assert (folder / name).is_dir()  # who only reads removes nothing
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.save(wanted)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 4
        assert_trees_equal(checkpoints.restore(4, state_on(one)), wanted)
    assert {path.name for path in folder.iterdir()} == {"2", "4"}


def test_parameters_alone(one, tmp_path):
    policy = untaught_policy()
    save_params(tmp_path, policy.params)
    assert_trees_equal(restore_params(tmp_path, policy.params), policy.params)
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds a checkpoint already"):
        save_params(tmp_path, untaught_policy(1).params)
    assert_trees_equal(restore_params(tmp_path, policy.params), policy.params)


def test_a_reader_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        restore_params(tmp_path, untaught_policy().params)
    assert not list(tmp_path.iterdir())


def test_a_model_without_optimizer_is_no_run_to_resume(one, tmp_path):
    save_params(tmp_path, taught_policy().params)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"no interrupted run.*another --workdir"),
    ):
        checkpoints.restore(0, state_on(one))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_in_another_type_on_another_mesh(one, eight, tmp_path, dtype):
    """As if restored as they are, and then converted."""
    policy = taught_policy()
    save_params(tmp_path, policy.params)
    places = state_shardings(policy.model, OPTIMIZER, eight).params
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        policy.params,
        places,
    )
    got = restore_params(tmp_path, like)
    assert jax.tree.map(lambda leaf: leaf.sharding, got) == places
    assert_trees_equal(got, jax.tree.map(lambda leaf: leaf.astype(dtype), policy.params))


def test_all_parameters_that_differ_are_listed(tmp_path):
    params = {"a": {"b": np.ones((2, 3), np.float32), "c": np.ones(4, np.float32)}}
    save_params(tmp_path, params)
    assert {n: (s.shape, s.dtype) for n, s in saved_params(tmp_path).items()} == {
        "a.b": ((2, 3), np.float32),
        "a.c": ((4,), np.float32),
    }
    other = {"a": {"b": np.ones((3, 2), np.float32), "d": np.ones(4, np.float32)}}
    with pytest.raises(ValueError, match="another model") as error:
        restore_params(tmp_path, other)
    for line in (
        "a.b is (2, 3), asked for: (3, 2)",
        "a.c is (4,), asked for: nothing",
        "a.d is missing, asked for: (4,)",
    ):
        assert line in str(error.value)
