"""Training an adapter: what moves, what is written, how the base is found again."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.hf.names import flatten
from l2s_jax.model.lora import LoraConfig, join, merge, split
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.training.adapter import LORA_FILE, add_adapter, base_digest, token_ids_of
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.parameters import saved_params
from l2s_jax.training.policy import load_adapted, load_policy, save_policy
from l2s_jax.training.sft import loss_of, run, starting_policy
from l2s_jax.training.state import begin_state, state_shardings
from l2s_jax.training.step import compile_step, place_batch
from tests.training.test_sft import sft_run
from tests.training.tiny import (
    MESHES,
    MODEL,
    assert_trees_equal,
    make_batches,
    taught_policy,
    untaught_policy,
    write_curation,
)

LORA = LoraConfig(rank=2, targets=("q_proj", "down_proj"))
OPTIM = OptimConfig(peak_lr=2e-2, weight_decay=0.01)


def train(mesh, num_steps=3):
    """(state before, state after, losses) of an adapter's training."""
    policy, optimizer = taught_policy(), make_optimizer(OPTIM, 10)
    places = state_shardings(policy.model, optimizer, mesh, lora=LORA, num_rows=4)
    step_fn = compile_step(loss_of(policy.model), optimizer, places)
    state = begin_state(add_adapter(policy, LORA, jax.random.key(0)), optimizer, places)
    before, losses, batches = jax.device_get(state), [], make_batches()
    for step in range(num_steps):
        state, metrics = step_fn(state, place_batch(batches[step], places))
        losses.append(float(metrics["loss"]))
    return before, state, losses


@functools.cache
def trained_on(name):
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    return train(one if name == "one device" else make_mesh(MESHES[name]))


def test_the_adapter_moves_and_nothing_else():
    before, after, losses = trained_on("one device")
    assert losses[-1] < losses[0]
    assert_trees_equal(after.frozen, before.frozen)
    assert_trees_equal(
        {k: v for k, v in after.frozen.items() if k != "lora"}, taught_policy().params
    )
    for path, leaf in flatten(after.params).items():
        assert float(jnp.max(jnp.abs(leaf - flatten(before.params)[path]))) > 1e-3, path
    names = set(flatten(after.params))
    assert {path.split(".")[-1] for path in names} == {"a", "b", "token_rows"}
    # The optimizer keeps moments of these and of nothing else.
    moments = after.opt_state[1][0]
    assert set(flatten(moments.mu)) == set(flatten(moments.nu)) == names


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_train_it_as_one(name):
    _, wanted, wanted_losses = trained_on("one device")
    _, state, losses = trained_on(name)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5),
        jax.device_get(state.params),
        jax.device_get(wanted.params),
    )


def test_the_base_lies_in_memory_once():
    """It is no result of the step, is not donated, and is not copied when training begins."""
    policy, optimizer = taught_policy(), make_optimizer(OPTIM, 10)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    places = state_shardings(policy.model, optimizer, mesh, lora=LORA, num_rows=4)
    base = jax.device_put(policy.params, {k: v for k, v in places.frozen.items() if k != "lora"})
    params = base | {"lora": add_adapter(policy, LORA, jax.random.key(0))["lora"]}
    state = begin_state(params, optimizer, places)
    step_fn = compile_step(loss_of(policy.model), optimizer, places)
    after, _ = step_fn(state, place_batch(make_batches()[0], places))
    want = base["layers"]["mlp"]["up_proj"]["kernel"].unsafe_buffer_pointer()
    for held in (state, after):
        kernel = held.frozen["layers"]["mlp"]["up_proj"]["kernel"]
        assert not kernel.is_deleted() and kernel.unsafe_buffer_pointer() == want
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


# ---- runs ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the root of a finished run, its config)."""
    root = tmp_path_factory.mktemp("lora")
    cfg = sft_run(root, lora=LORA, optim=OPTIM)
    run(cfg, root / "run")
    return root, cfg


def test_a_workdir_holds_the_adapter_and_names_its_base(finished):
    root, cfg = finished
    names = {path.split(".")[-1] for path in saved_params(root / "run")}
    assert names == {"a", "b", "token_rows"}
    record = json.loads((root / "run" / LORA_FILE).read_text())
    assert record["base"] == cfg.model and record["lora"]["rank"] == 2


def test_a_run_is_read_as_an_ordinary_policy(finished):
    root, _ = finished
    policy, (lora, adapted) = load_policy(root / "run"), load_adapted(root / "run")
    assert lora == LORA and "lora" not in policy.params
    assert_trees_equal(policy.params, merge(adapted.params))
    assert policy.triggers == taught_policy().triggers and policy.tokenizer is not None
    ids = np.asarray(token_ids_of(policy.triggers))
    start, got = (np.asarray(p.params["embed"]["embedding"]) for p in (taught_policy(), policy))
    assert np.abs(got[ids] - start[ids]).max() > 1e-3
    rest = np.setdiff1d(np.arange(len(start)), ids)
    np.testing.assert_array_equal(got[rest], start[rest])
    moved, frozen = (
        np.abs(policy.params["layers"]["attention"][n]["kernel"] - start_kernel(n)).max()
        for n in ("q_proj", "k_proj")
    )
    assert moved > 1e-3 and frozen == 0


def start_kernel(name):
    return np.asarray(untaught_policy().params["layers"]["attention"][name]["kernel"])


def test_a_base_kept_in_bfloat16_computes_the_same_in_bfloat16(finished, tmp_path):
    """The layers round it to that anyway; the run's policy is what was trained, and no other."""
    _, cfg = finished
    kept = dataclasses.replace(LORA, base="bfloat16")
    half = dataclasses.replace(cfg, lora=kept, dtype="bfloat16")
    policy = starting_policy(half, make_mesh(half.mesh))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(policy.params)} == {"bfloat16"}
    adapted = add_adapter(taught_policy(), kept, jax.random.key(0))
    rounded = {name: part for name, part in adapted.items() if name != "lora"}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), rounded)
    model = dataclasses.replace(
        MODEL, vocab_size=taught_policy().model.vocab_size, dtype="bfloat16"
    )
    loss = jax.jit(lambda p, b: loss_of(model)(p, b)[0])
    losses = [
        loss(base | {"lora": adapted["lora"]}, make_batches()[0])
        for base in (rounded, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded))
    ]
    assert losses[0] == losses[1]
    run(dataclasses.replace(half, num_steps=1), tmp_path / "run")
    assert load_adapted(tmp_path / "run")[0] == kept
    whole = load_policy(tmp_path / "run").params["layers"]["attention"]["k_proj"]["kernel"]
    assert whole.dtype == jnp.float32  # not adapted: the base's, rounded
    np.testing.assert_array_equal(whole, start_kernel("k_proj").astype(jnp.bfloat16))


def test_it_loads_onto_a_mesh_and_in_another_type(finished):
    root, _ = finished
    policy = load_policy(root / "run", mesh=make_mesh(MESHES["all axes"]), dtype="bfloat16")
    want = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), load_policy(root / "run").params)
    kernel = policy.params["layers"]["mlp"]["down_proj"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and not kernel.sharding.is_fully_replicated
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(
            jax.device_get(got).astype("float32"),
            jax.device_get(wanted).astype("float32"),
            rtol=2
            ** -7,  # one unit in bfloat16's last place: a sum near a boundary rounds either way
        ),
        policy.params,
        want,
    )


def test_a_run_on_a_mesh_holds_its_base_in_parts(tmp_path):
    cfg = sft_run(tmp_path, lora=LORA, num_steps=1, mesh=MESHES["all axes"])
    kernel = starting_policy(cfg, make_mesh(cfg.mesh)).params["layers"]["mlp"]["up_proj"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    run(cfg, tmp_path / "run")
    assert_trees_equal(
        load_adapted(tmp_path / "run")[1].params["layers"], untaught_policy().params["layers"]
    )


def test_an_adapter_on_the_model_of_another_adapter(finished, tmp_path):
    root, cfg = finished
    second = dataclasses.replace(cfg, model=str(root / "run"), num_steps=2, seed=3)
    run(second, tmp_path / "second")
    _, adapted = load_adapted(tmp_path / "second")
    _, frozen = split(adapted.params)
    assert_trees_equal(
        {name: part for name, part in frozen.items() if name != "lora"},
        load_policy(root / "run").params,
    )


def test_plain_text_triggers_have_no_rows(tmp_path):
    data = CuratedItems(path=str(write_curation(tmp_path / "curated")), spelling="plain")
    cfg = sft_run(tmp_path, lora=LORA, num_steps=2, data=data)
    with pytest.raises(ValueError, match="cannot spell"):  # nor do they exist in this tokenizer
        run(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert token_ids_of(None) == ()
    plain = dataclasses.replace(taught_policy().triggers, spelling="plain")
    assert token_ids_of(plain) == ()


def test_another_base_is_refused(tmp_path):
    cfg = sft_run(tmp_path, lora=LORA, num_steps=2, save_every=1)
    run(cfg, tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"lora\.json: the adapter's base model .*base"):
        load_policy(tmp_path / "run")
    save_policy(tmp_path / "base", untaught_policy(seed=1))
    message = r"lora\.json: the adapter was trained on .*base with digest .*Put the former"
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        run(cfg, tmp_path / "run")


def test_the_digest_sees_shape_and_weights(tmp_path):
    policy = untaught_policy()
    digest = base_digest(tmp_path, policy)
    on_mesh = jax.device_put(policy.params, jax.devices()[3])
    assert base_digest(tmp_path, dataclasses.replace(policy, params=on_mesh)) == digest
    assert base_digest(tmp_path, untaught_policy(seed=1)) != digest
    other = dataclasses.replace(policy.model, rope_theta=2e4)
    assert base_digest(tmp_path, dataclasses.replace(policy, model=other)) != digest


def test_a_merged_base_is_known_wherever_it_is_merged(finished, tmp_path):
    """Another kind of device adds another way; another step, or another base, is another model."""
    root, cfg = finished
    policy = load_policy(root / "run")
    digest = base_digest(root / "run", policy)
    rounded = jax.tree.map(lambda leaf: jnp.nextafter(leaf, jnp.inf), policy.params)
    assert base_digest(root / "run", dataclasses.replace(policy, params=rounded)) == digest
    shutil.copytree(root / "run", tmp_path / "more")
    assert base_digest(tmp_path / "more", policy) == digest
    record = json.loads((tmp_path / "more" / LORA_FILE).read_text())
    (tmp_path / "more" / LORA_FILE).write_text(json.dumps(record | {"digest": "of another"}))
    assert base_digest(tmp_path / "more", policy) != digest
    run(dataclasses.replace(cfg, seed=cfg.seed + 1), tmp_path / "other")
    assert base_digest(tmp_path / "other", policy) != digest


def test_a_model_that_starts_anew_takes_no_adapter(tmp_path):
    with pytest.raises(ValueError, match=r"SftRun\.lora adapts a trained model"):
        sft_run(tmp_path, model=MODEL, tokenizer="arithmetic", lora=LORA)


def test_what_is_put_together_again_is_what_was_adapted(finished):
    root, _ = finished
    _, adapted = load_adapted(root / "run")
    assert_trees_equal(join(*split(adapted.params)), adapted.params)
