"""Checkpoints: on another mesh, unfinished ones, what a reader may touch."""

import dataclasses
import pathlib
import shutil
from typing import ClassVar

import jax
import numpy as np
import pytest

from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training import manifest
from l2s_jax.training.checkpoint import DAMAGED_FOLDER, FOLDER, Checkpoints
from l2s_jax.training.leaves import CheckpointLeaves
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.parameters import restore_params, save_params, saved_params
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.state import begin_state, state_shardings
from tests.training.tiny import MESHES, assert_trees_equal, taught_policy, untaught_policy

OPTIMIZER = make_optimizer(OptimConfig(), 10)


def state_on(mesh, step=0, seed=0):
    """A state with moments that are not zero, so that losing them is seen."""
    policy = taught_policy(seed)
    state = begin_state(policy.params, OPTIMIZER, state_shardings(policy.model, OPTIMIZER, mesh))
    noisy = jax.tree.map(lambda a: jax.device_put(a + 3, a.sharding), state.opt_state)
    number = jax.device_put(np.int32(step), state.step.sharding)
    return dataclasses.replace(state, step=number, opt_state=noisy)


def restored(checkpoints, like):
    """The state alone; there is one."""
    found = checkpoints.restore(like)
    assert found is not None
    return found.state


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
        there = restored(checkpoints, large)
    assert_trees_equal(there, small)
    jax.tree.map(lambda got, like: got.sharding == like.sharding or pytest.fail(), there, large)
    with Checkpoints(tmp_path / "b") as checkpoints:
        checkpoints.save(there)
    with Checkpoints(tmp_path / "b") as checkpoints:
        back = restored(checkpoints, state_on(one, seed=2))
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
        assert_trees_equal(restored(checkpoints, state_on(one)), before)


@pytest.mark.parametrize(
    "name",
    [
        "4.unsealed",
        "4.unsealed.orbax-checkpoint-tmp",
        "4.unsealed.orbax-checkpoint-tmp-17",
        "4.leaving",
    ],
)
def test_an_unfinished_step_is_ignored_and_then_written_anew(one, tmp_path, name):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=2))
    folder = tmp_path / FOLDER
    shutil.copytree(folder / "2", folder / name)
    shutil.rmtree(folder / name / "params")
    (folder / "my notes").mkdir()
    wanted = state_on(one, step=4, seed=1)
    assert_trees_equal(restore_params(tmp_path, wanted.params), taught_policy().params)
    assert (folder / name).is_dir()  # who only reads removes nothing
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.save(wanted)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 4
        assert_trees_equal(restored(checkpoints, state_on(one)), wanted)
    assert {path.name for path in folder.iterdir()} == {"2", "4", "my notes"}


def test_parameters_alone(one, tmp_path):
    policy = untaught_policy()
    save_params(tmp_path, policy.params)
    assert_trees_equal(restore_params(tmp_path, policy.params), policy.params)
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds a checkpoint already"):
        save_params(tmp_path, untaught_policy(1).params)
    assert_trees_equal(restore_params(tmp_path, policy.params), policy.params)


def test_the_loop_gets_its_record_back(one, tmp_path):
    record = {"metrics": {"loss": 1.5}, "iterator": {"next": 3}, "text": "ä"}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state_on(one)) is None
        checkpoints.save(state_on(one, step=5), record)
        found = checkpoints.restore(state_on(one))
        assert found is not None and found.record == record and int(found.state.step) == 5


def shapes_of(state):
    def shape(a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)

    return jax.tree.map(shape, state)


def test_shapes_are_enough_to_restore(one, eight, tmp_path):
    wanted = state_on(one, step=5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(wanted)
        assert_trees_equal(restored(checkpoints, shapes_of(state_on(eight))), wanted)


def test_what_the_sampler_works_with_comes_back(one, eight, tmp_path):
    wanted, earlier = state_on(one, step=5), state_on(one, seed=1).params
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(wanted, behaviour=earlier)
        checkpoints.save(state_on(one, step=6))
        found = checkpoints.restore(shapes_of(wanted))
        assert found is not None and found.behaviour is None
    shutil.rmtree(tmp_path / FOLDER / "6")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(state_on(eight))
        assert found is not None
        assert_trees_equal((found.state, found.behaviour), (wanted, earlier))


def test_what_a_checkpoint_replaces_is_given_up(one, tmp_path):
    """A device may not hold two states; whose parameters were copied into one keeps them."""
    policy, like = taught_policy(), state_on(one)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like) is None
        checkpoints.save(like)  # none was found: it is all there
        restored(checkpoints, like)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(like))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(policy.params))


def test_the_best_stay_beside_the_newest(one, tmp_path):
    keep = KeepConfig(newest=1, best=2, metric="accuracy")
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step, accuracy in enumerate((0.5, 0.25, 0.75, 0.125, 0.0)):
            checkpoints.save(state_on(one, step), {"metrics": {"accuracy": accuracy}})
        checkpoints.wait()
        assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"0", "2", "4"}
        # A step may lack the metric: a skipped one has no number, another no such item.
        checkpoints.save(state_on(one, 5), {"metrics": {"loss": 0.5}})
        checkpoints.wait()
        assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"0", "2", "5"}


def test_a_metric_that_a_run_does_not_have_is_refused_at_its_first_save(one, tmp_path):
    keep = KeepConfig(best=1, metric="acuracy")
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        with pytest.raises(ValueError, match=r"metric='acuracy' is none of this run's: accuracy"):
            checkpoints.save(state_on(one), {"metrics": {"accuracy": 0.5}})
        assert checkpoints.latest() is None


def test_a_step_is_written_once(one, tmp_path):
    """A stop right after a save asks for the same step again."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=5), {"first": True})
        checkpoints.save(state_on(one, step=5), {"first": False})
        found = checkpoints.restore(state_on(one))
        assert found is not None and found.record == {"first": True}


def test_a_write_that_fails_is_told_at_the_next(one, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        (tmp_path / FOLDER).mkdir()
        (tmp_path / FOLDER / "5").write_text("in the way of the step's name")
        checkpoints.save(state_on(one, step=5))
        with pytest.raises(NotADirectoryError):
            checkpoints.save(state_on(one, step=6))


# ---- damage ----


def flip(path: pathlib.Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Those that have bits."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def test_past_damaged_steps_to_the_one_before(one, tmp_path, capsys):
    with Checkpoints(tmp_path, keep=KeepConfig(newest=3)) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(state_on(one, step, seed=step), {"at": step})
    folder = tmp_path / FOLDER
    for step in (4, 6):
        flip(max(files_of(folder / str(step) / "params"), key=lambda p: p.stat().st_size), 4000)
    with Checkpoints(tmp_path, keep=KeepConfig(newest=3)) as checkpoints:
        found = checkpoints.restore(state_on(one))
        assert found is not None and found.record == {"at": 2}
        assert_trees_equal(found.state, state_on(one, 2, seed=2))
        said = capsys.readouterr().err
        assert "step 6: params/" in said and "step 4: params/" in said
        assert "is not what was written" in said and "going on from step 2" in said
        checkpoints.save(state_on(one, step=4), {"at": "again"})  # its name is free
    assert {path.name for path in folder.iterdir()} == {"2", "4"}
    assert {path.name for path in (tmp_path / DAMAGED_FOLDER).iterdir()} == {"4", "6"}


def test_every_file_of_a_checkpoint_is_watched(one, tmp_path, capsys):
    """A bit in each file, array data, metadata and the digests alike, is found by who resumes."""
    whole = tmp_path / "whole"
    with Checkpoints(whole) as checkpoints:
        checkpoints.save(state_on(one, step=2))
        checkpoints.save(state_on(one, step=4))
    names = [path.relative_to(whole) for path in files_of(whole / FOLDER / "4")]
    assert {"d", "params", "rest", "record"} <= {part for name in names for part in name.parts}
    assert any(name.name == "digests.json" for name in names)
    rng, like = np.random.default_rng(0), shapes_of(state_on(one))
    for name in names:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "copy")
        path = tmp_path / "copy" / name
        flip(path, int(rng.integers(8 * path.stat().st_size)))
        with Checkpoints(tmp_path / "copy") as checkpoints:
            found = checkpoints.restore(like)
        assert found is not None and int(found.state.step) == 2, name
        assert "going on from step 2" in capsys.readouterr().err


def test_arrays_other_than_the_saved_ones_are_found_in_whole_files(one, tmp_path, capsys):
    """As when memory lost a bit before the file's own digest was made."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=2))
        checkpoints.save(state_on(one, step=4))
    folder = tmp_path / FOLDER / "4"
    arrays = manifest.read(folder)["arrays"]
    path = "params.embed.embedding"
    said, digest = arrays[path].rsplit(" ", 1)
    (folder / "digests.json").unlink()
    manifest.write(folder, arrays | {path: f"{said} {int(digest, 16) ^ 1:016x}"})
    assert manifest.faults(folder) == []
    with Checkpoints(tmp_path) as checkpoints:
        assert int(restored(checkpoints, state_on(one)).step) == 2
    assert f"step 4: array {path} is not what was saved" in capsys.readouterr().err


def test_where_no_whole_step_is_left_nothing_is_moved(one, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=2))
        checkpoints.save(state_on(one, step=4))
    (tmp_path / FOLDER / "2" / "digests.json").unlink()
    shutil.rmtree(tmp_path / FOLDER / "4" / "rest")
    for _ in range(2):  # and the next start does not begin anew
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError) as error:
            checkpoints.restore(state_on(one))
        assert "no checkpoint is left" in str(error.value)
        assert "step 2: digests.json is missing" in str(error.value)
        assert "step 4: rest/" in str(error.value) and "more" in str(error.value)


def test_a_reader_refuses_damaged_parameters(one, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=4))
    like = state_on(one).params
    flip(max(files_of(tmp_path / FOLDER / "4" / "rest"), key=lambda p: p.stat().st_size), 99)
    restore_params(tmp_path, like)  # what it does not read may be as it is
    flip(max(files_of(tmp_path / FOLDER / "4" / "params"), key=lambda p: p.stat().st_size), 99)
    for read in (lambda: restore_params(tmp_path, like), lambda: CheckpointLeaves(tmp_path)):
        with pytest.raises(ValueError, match=r"checkpoints/4 is damaged: params/.*written"):
            read()


# ---- another run's ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    lr: float = 0.5
    save_every: int = 2
    MAY_CHANGE: ClassVar = ("save_every",)


def test_a_step_of_another_config_names_the_fields(one, tmp_path, capsys):
    with Checkpoints(tmp_path, cfg=Recipe()) as checkpoints:
        checkpoints.save(state_on(one, step=4))
    with Checkpoints(tmp_path, cfg=Recipe(save_every=3)) as checkpoints:
        assert int(restored(checkpoints, state_on(one)).step) == 4
    assert "save_every: 2 → 3" in capsys.readouterr().err
    with (
        Checkpoints(tmp_path, cfg=Recipe(lr=0.25, save_every=3)) as checkpoints,
        pytest.raises(
            ValueError, match=r"checkpoints/4 belongs to another config \(lr: 0.5 → 0.25\)"
        ),
    ):
        checkpoints.restore(state_on(one))
    assert not (tmp_path / DAMAGED_FOLDER).exists()


def test_a_state_of_other_shapes_is_listed(one, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_on(one, step=4))
        like = state_on(one)
        other = jax.tree.map(lambda a: a, like.params) | {"more": jax.numpy.zeros(3)}
        other["embed"] = {"embedding": like.params["embed"]["embedding"].astype("bfloat16")}
        with pytest.raises(ValueError, match="state of another run") as error:
            checkpoints.restore(dataclasses.replace(like, params=other))
    assert "params.more is missing, asked for: float32[3]" in str(error.value)
    assert "embedding is float32[32, 16], asked for: bfloat16[32, 16]" in str(error.value)


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
        checkpoints.restore(state_on(one))


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
