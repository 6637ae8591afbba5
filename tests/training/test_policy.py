"""Policies in folders of each kind, and how one learns the triggers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from l2s_jax.data.arithmetic import VOCAB_SIZE
from l2s_jax.export.folder import Parts, write_small_files
from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.hf.write import from_memory, save_hf_weights
from l2s_jax.sampling.policy import Policy
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from l2s_jax.tokens.tokenizer import SHIPPED
from l2s_jax.tokens.triggers import NAMES, TriggerStarts, add_triggers
from l2s_jax.training.policy import MODEL_FILE, load_policy, save_policy, teach_triggers
from tests.training.tiny import assert_trees_equal, taught_policy, untaught_policy

STARTS = TriggerStarts(easy="brief", long="steps check", short="brief =", answer="so")


def embedding(policy):
    return np.asarray(policy.params["embed"]["embedding"])


def save_as_hf(folder, policy):
    folder.mkdir()
    save_hf_weights(folder, policy.model, policy.params)
    parts = Parts(
        model=policy.model,
        fetch=from_memory(policy.params),
        tokenizer=policy.tokenizer,
        triggers=policy.triggers,
        origin=policy.origin,
        dtype="float32",
    )
    write_small_files(folder, parts, card="")


@pytest.mark.parametrize("save", [save_policy, save_as_hf])
@pytest.mark.parametrize("is_taught", [True, False])
def test_a_folder_gives_the_policy_back(tmp_path, save, is_taught):
    policy = taught_policy() if is_taught else untaught_policy()
    save(tmp_path / "policy", policy)
    got = load_policy(str(tmp_path / "policy"))
    assert got.model == policy.model and got.triggers == policy.triggers
    assert_trees_equal(got.params, policy.params)
    text = "3 +1 *7 = steps so 4"
    assert got.tokenizer.encode(text) == policy.tokenizer.encode(text)
    assert got.tokenizer.stop_ids == policy.tokenizer.stop_ids
    assert got.tokenizer.ask("3 +1") == policy.tokenizer.ask("3 +1")


@pytest.mark.parametrize("save", [save_policy, save_as_hf])
def test_a_policy_without_tokenizer_keeps_its_triggers(tmp_path, save):
    taught = taught_policy()
    policy = Policy(
        model=taught.model, params=taught.params, tokenizer=None, triggers=taught.triggers
    )
    save(tmp_path / "policy", policy)
    got = load_policy(tmp_path / "policy")
    assert got.tokenizer is None and got.triggers == policy.triggers


def test_the_shipped_base_model_loads():
    folder = SHIPPED["arithmetic"]
    if not (folder / "config.json").exists():
        pytest.skip("the base model's weights are not shipped yet (configs/base_arithmetic.py)")
    policy = load_policy("arithmetic")
    assert policy.triggers is None and policy.tokenizer is not None
    assert policy.model.vocab_size == VOCAB_SIZE
    taught = teach_triggers(policy, "added", STARTS)
    assert taught.model == policy.model  # padding rows are taken, no shape changes


def test_what_is_no_policy_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        load_policy("nowhere")
    save_policy(tmp_path, taught_policy())
    for path in (tmp_path / "checkpoints").iterdir():
        path.rename(path.with_name(path.name + ".orbax-checkpoint-tmp"))
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        load_policy(tmp_path)


def test_another_policy_is_not_written_over_one(tmp_path):
    save_policy(tmp_path, taught_policy())
    with pytest.raises(FileExistsError, match="another folder"):
        save_policy(tmp_path, taught_policy(1))
    assert_trees_equal(load_policy(tmp_path).params, taught_policy().params)


def test_triggers_take_free_rows_and_start_from_the_mean_of_their_pieces():
    before = untaught_policy()
    after = teach_triggers(before, "added", STARTS)
    num_real = len(before.tokenizer.hf)
    assert after.model == before.model  # the table has padding rows enough
    assert before.triggers is None and len(before.tokenizer.hf) == num_real  # nothing in place
    for name in ("easy", "long", "short", "answer"):
        [row] = getattr(after.triggers, name)
        assert num_real <= row < num_real + 4
        pieces = before.tokenizer.encode(getattr(STARTS, name))
        mean = np.mean([embedding(before)[piece] for piece in pieces], axis=0)
        np.testing.assert_allclose(embedding(after)[row], mean, rtol=1e-6)
    untouched = [*range(num_real), *range(num_real + 4, before.model.vocab_size)]
    np.testing.assert_array_equal(embedding(after)[untouched], embedding(before)[untouched])
    assert [after.tokenizer.encode(name) for name in NAMES] == [
        [row] for row in range(num_real, num_real + 4)
    ]


def test_teaching_twice_changes_nothing():
    once = teach_triggers(untaught_policy(), "added", STARTS)
    assert teach_triggers(once, "added", TriggerStarts(easy="steps")) is once
    with pytest.raises(ValueError, match=r"spelling='plain'.* as 'added' already"):
        teach_triggers(once, "plain", STARTS)


def test_triggers_that_the_tokenizer_has_keep_their_rows():
    """A checkpoint of others may have the tokens without our declaration of them."""
    before = untaught_policy()
    grown, triggers = add_triggers(before.tokenizer)
    theirs = Policy(model=before.model, params=before.params, tokenizer=grown, triggers=None)
    after = teach_triggers(theirs, "added", STARTS)
    assert after.triggers == triggers
    assert_trees_equal(after.params, before.params)


def test_plain_spelling_adds_nothing(shared_data):
    from l2s_jax.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    base = untaught_policy()
    before = Policy(model=base.model, params=base.params, tokenizer=tokenizer, triggers=None)
    after = teach_triggers(before, "plain", STARTS)
    assert after.model is before.model and after.params is before.params
    assert after.tokenizer is before.tokenizer
    assert after.triggers.spelling == "plain" and len(after.triggers.easy) > 1


def test_a_model_without_tokenizer_cannot_learn():
    base = untaught_policy()
    bare = Policy(model=base.model, params=base.params, tokenizer=None, triggers=None)
    with pytest.raises(ValueError, match="without a tokenizer"):
        teach_triggers(bare, "added", STARTS)


def test_a_workdir_says_what_its_decoder_is(tmp_path):
    save_policy(tmp_path, taught_policy())
    saved = json.loads((tmp_path / MODEL_FILE).read_text())
    assert saved["width"] == 16 and saved["type"] == "ModelConfig"
    leaves = jax.tree.leaves(load_policy(tmp_path).params)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in leaves)


@pytest.mark.parametrize("save", [save_policy, save_as_hf])
@pytest.mark.parametrize("axes", [None, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_a_folder_of_either_kind_on_any_mesh_in_any_type(tmp_path, save, axes, dtype):
    policy = taught_policy()
    save(tmp_path / "policy", policy)
    mesh = None if axes is None else make_mesh(MeshConfig(**{"data": 1, **axes}))
    got = load_policy(tmp_path / "policy", mesh=mesh, dtype=dtype)
    want = jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), policy.params)
    assert_trees_equal(got.params, want)
    if mesh is not None:
        places = shardings(abstract_params(policy.model), mesh)
        assert jax.tree.map(lambda leaf: leaf.sharding, got.params) == places


def test_a_workdir_keeps_the_types_of_its_leaves(tmp_path):
    taught = taught_policy()
    params = jax.tree.map(
        lambda leaf: leaf.astype("bfloat16" if leaf.ndim == 3 else "float32"), taught.params
    )
    save_policy(tmp_path, dataclasses.replace(taught, params=params))
    assert_trees_equal(load_policy(tmp_path, dtype=None).params, params)
    kept = load_policy(tmp_path, dtype=None).params
    assert jax.tree.map(lambda leaf: leaf.dtype, kept) == jax.tree.map(lambda a: a.dtype, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(load_policy(tmp_path).params)} == {
        "float32"
    }


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_policy(tmp_path, taught_policy())
    described = json.loads((tmp_path / MODEL_FILE).read_text())
    (tmp_path / MODEL_FILE).write_text(json.dumps(described | {"ffn_width": 40, "tied": False}))
    with pytest.raises(ValueError, match=r"another model than model\.json describes") as error:
        load_policy(tmp_path)
    for line in (
        "layers.mlp.up_proj.kernel is (2, 16, 24), asked for: (2, 16, 40)",
        "lm_head is missing, asked for: (16, 32)",
    ):
        assert line in str(error.value)
