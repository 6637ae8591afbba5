"""Adapters in PEFT's format: ours in `peft`, those of `peft` in ours, and what is refused."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l2s_jax.model.hf.peft import WEIGHTS, adapter_tensors, load_peft, save_peft
from l2s_jax.model.hf.peft_config import CONFIG
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.lora import TARGETS, LoraConfig, init_adapter, merge
from tests.model.test_decoder import from_zero, full_logits, ones, random_tokens
from tests.model.test_lora import noisy
from tests.tiny_models import FAMILIES, make_folder, torch_logits
from tests.training.tiny import assert_trees_equal

IDS = (90, 3, 95)
# peft 0.21 asks transformers 5.23 for an attribute by a name that it gives up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
FEW = ("q_proj", "v_proj")
# Targets, tied, tokens with rows.
CASES = [
    *itertools.product((TARGETS, FEW), (True, False), ((), IDS)),
    *(((name,), name in FEW, IDS) for name in TARGETS),
]
# Weights so small that rounding is not amplified beyond 1e-5 on its way to the logits.
SPREAD = 0.08


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Tied → (the folder of transformers' model, our config, our parameters)."""
    folders = {tied: tmp_path_factory.mktemp(f"tied-{tied}") for tied in (True, False)}
    for tied, folder in folders.items():
        make_folder(folder, spread=SPREAD, tie_word_embeddings=tied)
    return {tied: (folder, *load_hf(folder)) for tied, folder in folders.items()}


def theirs_with(folder, adapter_folder):
    """The base with an adapter, by transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder)
    return PeftModel.from_pretrained(base, adapter_folder).eval()


def make_theirs(folder, adapter_folder, seed=0, **fields):
    """An adapter that peft made and saved, no part of which is zero; peft's model of it."""
    import torch
    from peft import LoraConfig as Theirs
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    model = get_peft_model(base, Theirs(task_type="CAUSAL_LM", **fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(adapter_folder)
    return model


def ours_trained(cfg, params, lora, token_ids=()):
    return noisy(init_adapter(cfg, lora, params, jax.random.key(0), token_ids=token_ids), size=0.1)


def our_logits(cfg, params, adapter, *, merged=True):
    """With the adapter beside the base, or (one program for all adapters) merged."""
    tokens = tokens_with_rows()
    adapted, positions, segments = params | {"lora": adapter}, from_zero(tokens), ones(tokens)
    adapted = merge(adapted) if merged else adapted
    got = full_logits(cfg, adapted, tokens, positions, segments)
    plain = full_logits(cfg, params, tokens, positions, segments)
    assert float(jnp.max(jnp.abs(got - plain))) > 1e-2  # or else there is nothing to see
    return got


@functools.cache
def tokens_with_rows():
    tokens = random_tokens(0, 2, 24)
    tokens[0, 3:6] = IDS
    return tokens


def assert_same_logits(ours, model):
    np.testing.assert_allclose(ours, torch_logits(model, tokens_with_rows()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("targets", "tied", "token_ids"), CASES)
def test_peft_loads_ours(bases, tmp_path, targets, tied, token_ids):
    folder, cfg, params = bases[tied]
    lora = LoraConfig(rank=3, alpha=4.5, targets=targets, use_rslora=len(targets) == 2)
    adapter = ours_trained(cfg, params, lora, token_ids)
    assert save_peft(tmp_path, cfg, lora, adapter) == [CONFIG, WEIGHTS]
    got = our_logits(cfg, params, adapter, merged=len(targets) < len(TARGETS))
    assert_same_logits(got, theirs_with(folder, tmp_path))
    # And back: the same adapter, and the same bytes again.
    again, tree = load_peft(tmp_path, cfg, params)
    assert again == LoraConfig(
        rank=3, alpha=4.5, targets=tuple(sorted(targets)), use_rslora=len(targets) == 2
    )
    assert_trees_equal(tree, adapter)
    (tmp_path / "again").mkdir()
    for name in save_peft(tmp_path / "again", cfg, again, tree):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(("targets", "tied", "token_ids"), CASES)
def test_ours_loads_that_of_peft(bases, tmp_path, targets, tied, token_ids):
    folder, cfg, params = bases[tied]
    indices = {"embed_tokens": list(token_ids), "lm_head": list(token_ids)} if token_ids else None
    model = make_theirs(
        folder,
        tmp_path,
        r=4,
        lora_alpha=6,
        target_modules=list(targets),
        use_rslora=len(targets) == 1,
        trainable_token_indices=indices,
    )
    lora, adapter = load_peft(tmp_path, cfg, params)
    assert lora.rank == 4 and lora.use_rslora == (len(targets) == 1)
    assert_same_logits(our_logits(cfg, params, adapter), model)
    (tmp_path / "again").mkdir()
    save_peft(tmp_path / "again", cfg, lora, adapter)
    wanted, got = (load_file(place / WEIGHTS) for place in (tmp_path, tmp_path / "again"))
    assert {n: a.tobytes() for n, a in got.items()} == {n: a.tobytes() for n, a in wanted.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2"])
def test_other_families_both_ways(tmp_path, family, tied):
    make_folder(tmp_path / "base", family=family, spread=SPREAD, tie_word_embeddings=tied)
    cfg, params = load_hf(tmp_path / "base")
    lora = LoraConfig(rank=2, alpha=4.0)
    adapter = ours_trained(cfg, params, lora, IDS)
    (tmp_path / "ours").mkdir()
    save_peft(tmp_path / "ours", cfg, lora, adapter)
    model = theirs_with(tmp_path / "base", tmp_path / "ours")
    assert_same_logits(our_logits(cfg, params, adapter, merged=False), model)
    model = make_theirs(tmp_path / "base", tmp_path / "theirs", target_modules="all-linear")
    _, adapter = load_peft(tmp_path / "theirs", cfg, params)
    assert_same_logits(our_logits(cfg, params, adapter), model)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_embedding_alone(bases, tmp_path, tied):
    """peft's short form: the embedding's rows; an untied head keeps its own."""
    folder, cfg, params = bases[tied]
    fields = dict(target_modules=["q_proj"], trainable_token_indices=list(IDS))
    model = make_theirs(folder, tmp_path, **fields)
    _, adapter = load_peft(tmp_path, cfg, params)
    assert ("head_rows" in adapter) == (not cfg.tied)
    assert_same_logits(our_logits(cfg, params, adapter), model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_keep_their_type(bases, tmp_path, dtype):
    folder, cfg, params = bases[True]
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "up_proj"))
    adapter = ours_trained(cfg, params, lora, IDS)
    half = jax.tree.map(lambda a: a.astype(dtype) if a.ndim > 1 else a, adapter)
    save_peft(tmp_path, cfg, lora, half)
    _, again = load_peft(tmp_path, cfg, params)
    assert_trees_equal(again, half)
    wide = jax.tree.map(lambda a: a.astype("float32") if a.ndim > 1 else a, again)
    assert_same_logits(our_logits(cfg, params, wide), theirs_with(folder, tmp_path))


# ---- refusals ----


@pytest.fixture
def saved(bases, tmp_path):
    """(an adapter's folder, our config, our parameters)."""
    _, cfg, params = bases[True]
    lora = LoraConfig(rank=2, targets=("q_proj", "down_proj"))
    save_peft(tmp_path, cfg, lora, ours_trained(cfg, params, lora, IDS))
    return tmp_path, cfg, params


def change_config(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3': only LORA is"),
        ({"bias": "lora_only"}, "bias='lora_only'.*only 'none' is"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern=\{'q_proj': 4\}"),
        ({"alpha_pattern": {"q_proj": 4}}, r"alpha_pattern=\{'q_proj': 4\}"),
        ({"layers_to_transform": [0]}, r"layers_to_transform=\[0\]"),
        ({"exclude_modules": ["v_proj"]}, "exclude_modules"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"target_parameters": ["q_proj.weight"]}, "target_parameters"),
        ({"a_field_of_next_year": 3}, "a_field_of_next_year=3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': it changes the base"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"\['lm_head'\] are none of q_proj"),
        ({"target_modules": ".*q_proj"}, "target_modules='.*q_proj': a list of layer names"),
        ({"target_modules": []}, r"target_modules=\[\]"),
        ({"target_modules": ["q_proj", "q_proj"]}, "named twice"),
        ({"target_modules": None}, "target_modules=None"),
        ({"r": 0}, "r=0: a whole number"),
        ({"r": "8"}, "r='8'"),
        ({"lora_alpha": None}, "lora_alpha=None: a number above 0"),
        ({"use_rslora": "yes"}, "use_rslora='yes'"),
        ({"trainable_token_indices": {"lm_head": [1]}}, "of embed_tokens, and with"),
        (
            {"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}},
            "other tokens in the head",
        ),
        ({"trainable_token_indices": [1.5]}, "token ids, or names with token ids"),
        ({"trainable_token_indices": [3, 3, 4]}, "names a token twice"),
    ],
)
def test_what_a_config_may_not_say(saved, fields, message):
    folder, cfg, params = saved
    change_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_peft(folder, cfg, params)


def test_all_faults_of_a_config_are_told_at_once(saved):
    folder, cfg, params = saved
    change_config(folder, use_dora=True, bias="all", r=-1)
    with pytest.raises(ValueError, match=r"(?s)r=-1.*bias='all'.*use_dora=True"):
        load_peft(folder, cfg, params)


def test_a_vocabulary_that_grew(saved):
    folder, cfg, params = saved
    change_config(folder, trainable_token_indices=[90, 96, 97])
    with pytest.raises(ValueError, match=r"\[96, 97\], but the base model has 96.*the merged"):
        load_peft(folder, cfg, params)


def damaged(arrays, name):
    """The tensors with one fault, and what is said about it."""
    stem = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    array = arrays.pop(stem)
    if name == "missing":
        return arrays, f"missing: {stem}"
    if name == "shape":
        return arrays | {stem: array[:, :-1].copy()}, rf"shape: {stem} is \(2, 31\), not \(2, 32\)"
    if name == "dtype":
        return arrays | {stem: array.astype(np.float64)}, f"dtype: {stem} is F64"
    if name == "not finite":
        return arrays | {stem: array * np.float32(np.nan)}, f"not finite: {stem}"
    return arrays | {stem: array, "more": array}, r"unknown: more \(2, 32\)"


@pytest.mark.parametrize("name", ["missing", "shape", "dtype", "not finite", "unknown"])
def test_tensors_that_do_not_fit(saved, name):
    folder, cfg, params = saved
    arrays, message = damaged(load_file(folder / WEIGHTS), name)
    save_file(arrays, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_peft(folder, cfg, params)


def test_every_tensor_that_does_not_fit_is_listed(saved):
    folder, cfg, params = saved
    change_config(folder, r=3)
    with pytest.raises(ValueError) as caught:
        load_peft(folder, cfg, params)
    assert str(caught.value).count("shape: ") == 2 * 2 * cfg.num_layers


def test_files_that_are_not_there(saved):
    folder, cfg, params = saved
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(ValueError, match="damaged or cut off"):
        load_peft(folder, cfg, params)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS} is missing"):
        load_peft(folder, cfg, params)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model\.bin.*never read"):
        load_peft(folder, cfg, params)
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=f"{CONFIG} is missing"):
        load_peft(folder, cfg, params)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_peft(folder / "nowhere", cfg, params)


def test_what_is_not_finite_is_not_written(bases, tmp_path):
    _, cfg, params = bases[True]
    lora = LoraConfig(rank=2, targets=("q_proj",))
    adapter = ours_trained(cfg, params, lora)
    leaves = adapter["layers"]["attention"]["q_proj"]
    leaves["b"] = leaves["b"].at[1, 0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match=r"q_proj\.b \(layer 1\) is not finite"):
        save_peft(tmp_path, cfg, lora, adapter)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [True, False])
def test_names_are_those_of_peft(bases, tied):
    _, cfg, _ = bases[tied]
    names = {t.name for t in adapter_tensors(cfg, LoraConfig(rank=2), 3, head_rows=not cfg.tied)}
    stem = "base_model.model."
    assert f"{stem}model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert f"{stem}model.layers.2.mlp.down_proj.lora_B.weight" in names
    assert f"{stem}model.embed_tokens.token_adapter.trainable_tokens_delta" in names
    assert (f"{stem}lm_head.token_adapter.trainable_tokens_delta" in names) == (not cfg.tied)
    assert len(names) == 3 * 7 * 2 + (1 if cfg.tied else 2)
