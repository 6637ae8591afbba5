"""Exported folders: complete, read back exactly, and routed by transformers without our code."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.export.folder import sequence_bias
from l2s_jax.export.hf import export_hf
from l2s_jax.model.hf.read import load_hf
from l2s_jax.model.vocab import add_rows
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import add_triggers
from l2s_jax.training.policy import load_policy
from tests.export.tiny import fresh_params, policy_parts, tiny_model


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
    files = export_hf(tmp_path / "out", **parts, dtype="bfloat16", shard_bytes=20_000)
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
