"""Exported folders: complete, read back exactly, and routed by transformers without our code."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.export.card import model_card
from l2s_jax.export.hf import (
    check_reloaded,
    check_repository,
    export_checkpoint,
    export_hf,
    import_hf,
    sequence_bias,
)
from l2s_jax.export.reload import facts
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import init_params
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.vocab import add_rows
from l2s_jax.tokens.tokenizer import from_hf, load_tokenizer
from l2s_jax.tokens.triggers import add_triggers, find_triggers
from l2s_jax.training.policy import load_policy
from tests.model.test_config import TINY

LETTERS = "0123456789+-=?:{}\\abcdefghijklmnopqrstuvwxyzQESYLONGHRTAW<> \n"
TEMPLATE = "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A: "


@functools.cache
def letters_tokenizer():
    """One id per letter; two tokens stop, and one of them pads."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<eos>": 0, "<pad>": 1, "<unk>": 2} | {c: i for i, c in enumerate(LETTERS, start=3)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", behavior="isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    hf = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    hf.chat_template = TEMPLATE
    return from_hf(hf, [0, 1])


def tiny_model(**changes):
    return ModelConfig(**TINY | changes)


@functools.cache
def fresh_params(model):
    params = nn.unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))
    return jax.tree.map(lambda leaf: leaf * 8, params)  # far from uniform


def policy_parts(spelling="added", tied=True):
    tokenizer = letters_tokenizer()
    if spelling == "added":
        tokenizer, triggers = add_triggers(tokenizer)
    else:
        triggers = find_triggers(tokenizer, "plain")
    model = tiny_model(vocab_size=len(tokenizer.hf), tied=tied)
    params = jax.tree.map(lambda leaf: leaf, fresh_params(model))  # a tree of its own
    parts = {"model": model, "params": params, "tokenizer": tokenizer, "triggers": triggers}
    return parts


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, what was exported)."""
    parts = policy_parts()
    out = tmp_path_factory.mktemp("exports") / "model"
    files = export_hf(out, **parts)
    assert files == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "l2s.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    return out, parts


def test_the_code_in_the_card_runs(exported, monkeypatch, capsys):
    out, _ = exported
    code = (out / "README.md").read_text().split("```")[1].removeprefix("python\n")
    monkeypatch.chdir(out.parent)
    exec(code.replace("1024", "4"), {})
    assert capsys.readouterr().out.startswith("Q: ")


def test_nothing_is_left_beside_it(exported):
    out, _ = exported
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_loads_as_the_same_policy(exported):
    out, parts = exported
    policy = load_policy(out)
    assert policy.model == parts["model"] and policy.triggers == parts["triggers"]
    jax.tree.map(np.testing.assert_array_equal, policy.params, parts["params"])
    assert policy.tokenizer is not None
    assert policy.tokenizer.ask("1+1=?") == parts["tokenizer"].ask("1+1=?")
    assert policy.tokenizer.stop_ids == parts["tokenizer"].stop_ids


def test_real_tokenizer_with_triggers_in_the_padding_rows(shared_data, tmp_path):
    from transformers import AutoTokenizer

    before = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    tokenizer, triggers = add_triggers(before)
    assert (len(before.hf), triggers.easy, triggers.answer) == (151_665, (151_665,), (151_668,))
    model = tiny_model(vocab_size=151_936)
    params = jax.tree.map(lambda leaf: leaf, fresh_params(model))
    starts = dict.fromkeys(range(151665, 151669), (9, 10))
    grown, params = add_rows(params, model, starts, len(before.hf))
    assert grown == model  # the table had room
    export_hf(tmp_path / "out", model=model, params=params, tokenizer=tokenizer, triggers=triggers)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<EASY><SHORT>18 - 3 = 15 eggs\n\n<ANSWER>\\boxed{15}<|im_end|>"
    ids = tokenizer.encode(text)
    assert theirs.encode(text) == ids and ids[:2] == [151_665, 151_667]
    # They are not "special", so that who skips special tokens still sees the route.
    shown = theirs.decode(ids, skip_special_tokens=True)
    assert shown == text.removesuffix("<|im_end|>")


def test_half_precision_in_shards_without_tokenizer(tmp_path):
    parts = policy_parts(tied=False) | {"tokenizer": None, "triggers": None}
    files = export_hf(tmp_path / "out", **parts, dtype="bfloat16", shard_bytes=20e3)
    assert "model.safetensors.index.json" in files and "tokenizer.json" not in files
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "no trigger vocabulary" in (tmp_path / "out" / "README.md").read_text()
    _, params = load_hf(tmp_path / "out")
    jax.tree.map(
        lambda got, want: np.testing.assert_array_equal(got, want.astype("bfloat16")),
        params,
        parts["params"],
    )


@functools.cache
def torch_model(folder):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(2)
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def generate(folder, prompts, **options):
    """New tokens of transformers' own greedy `generate`, one row per prompt."""
    import torch

    ids = torch.as_tensor(np.asarray(prompts))
    mask = torch.ones_like(ids)
    fixed = {"attention_mask": mask, "min_new_tokens": 8, "max_new_tokens": 8}
    out = torch_model(folder).generate(ids, **fixed, **options)
    return out[:, ids.shape[1] :].numpy()


def prompts_that_end_in(ids, count=16):
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 60, (count, 6 + len(ids)))
    prompts[:, 6:] = ids
    return prompts


@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_return_sequences": 4}])
def test_transformers_writes_the_short_trigger_after_easy(exported, options):
    out, parts = exported
    prompts = prompts_that_end_in(parts["triggers"].easy)
    (short,) = parts["triggers"].short
    got = generate(out, prompts, **{"do_sample": True} | options)
    assert (got[:, 0] == short).all()
    plain = generate(out, prompts, sequence_bias=None, do_sample=False)
    assert (plain[:, 0] != short).any()  # it is not what the weights would say anyway


def test_rows_without_easy_are_untouched(exported):
    out, parts = exported
    prompts = prompts_that_end_in(parts["triggers"].long)
    plain = generate(out, prompts, sequence_bias=None, do_sample=False)
    rows = ~(plain == parts["triggers"].easy[0]).any(axis=1)
    assert 4 < rows.sum() < len(rows)
    got = generate(out, prompts, do_sample=False)
    np.testing.assert_array_equal(got[rows], plain[rows])


def test_plain_text_triggers_are_written_piece_by_piece(tmp_path):
    parts = policy_parts("plain")
    export_hf(tmp_path / "out", **parts)
    triggers = parts["triggers"]
    assert len(triggers.short) == 8
    got = generate(tmp_path / "out", prompts_that_end_in(triggers.easy), do_sample=False)
    assert (got == np.asarray(triggers.short)).all()
    assert "ordinary text" in (tmp_path / "out" / "README.md").read_text()


def test_bias_names_every_prefix():
    triggers = policy_parts("plain")["triggers"]
    entries = sequence_bias(triggers)
    for end, (sequence, bias) in enumerate(entries, start=1):
        assert sequence == [*triggers.easy, *triggers.short[:end]] and isinstance(bias, float)
    assert len(entries) == len(triggers.short)


def test_an_existing_folder_is_never_touched(exported, tmp_path):
    _, parts = exported
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty: give another --out"):
        export_hf(tmp_path / "taken", **parts)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_nothing(tmp_path):
    parts = policy_parts()
    parts["params"]["final_norm"]["scale"] = jnp.full(32, jnp.nan)
    with pytest.raises(ValueError, match="not finite"):
        export_hf(tmp_path / "out", **parts)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_weight_is_noticed(exported):
    out, parts = exported
    spoilt = {**parts, "params": jax.tree.map(lambda leaf: leaf, parts["params"])}
    bias = spoilt["params"]["layers"]["attention"]["q_proj"]["bias"]
    spoilt["params"]["layers"]["attention"]["q_proj"]["bias"] = bias.at[1, 2].add(1e-7)
    with pytest.raises(
        RuntimeError, match=r"tensor model\.layers\.1\.self_attn\.q_proj\.bias"
    ) as e:
        check_reloaded(out, facts(**spoilt, dtype="float32"), "float32")
    assert "layers.0" not in str(e.value)


def test_import_and_export_are_inverse(exported, tmp_path):
    out, _ = exported
    import_hf(out, tmp_path / "run")
    summary = {"auto": {"accuracy": 0.9125, "tokens": 41.25, "accuracy_ci": [0.88, 0.94]}}
    text = json.dumps({"stages": {"sft": summary}, "seconds": {}, "seeds": [0, 1]})
    (tmp_path / "run" / "summary.json").write_text(text)
    export_checkpoint(tmp_path / "run", tmp_path / "again")
    same = ["config.json", "generation_config.json", "l2s.json", "model.safetensors"]
    for name in [*same, "tokenizer.json", "chat_template.jinja"]:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    card = (tmp_path / "again" / "README.md").read_text()
    assert "| sft | auto | 0.912 | 0.880 to 0.940 | 41.2 |" in card
    assert hashlib.sha256(text.encode()).hexdigest()[:12] in card
    with pytest.raises(FileExistsError):
        import_hf(out, tmp_path / "run")


def test_repository_names_are_checked_first(tmp_path):
    check_repository("someone/l2s-tiny")
    with pytest.raises(ValueError, match=r"--push not a name"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "out", push="not a name")


def test_card_says_what_was_not_measured():
    parts = policy_parts()
    card = model_card(
        name="tiny", model=parts["model"], triggers=parts["triggers"], dtype="float32"
    )
    assert card.startswith("---\n") and "Nothing was measured" in card
    for engine in ("model.generate", "continuous batching", "vLLM", "llama.cpp", "Two-call recipe"):
        assert engine in card
