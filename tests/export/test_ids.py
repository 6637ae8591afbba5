"""Ours and transformers agree on every id of an exported folder, in free rows and in grown ones."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from flax import linen as nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from l2s_jax.export.hf import export_hf
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import init_params
from l2s_jax.sampling.policy import Policy
from l2s_jax.tokens.tokenizer import from_hf, load_tokenizer
from l2s_jax.tokens.triggers import NAMES, TriggerStarts
from l2s_jax.training.policy import teach_triggers
from tests.model.test_config import TINY


def benchmark_questions(shared_data, every=40):
    texts = []
    for path in sorted((shared_data / "benchmarks").glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()[::every]
        rows = [json.loads(line) for line in lines]
        texts += [row.get("question") or row.get("problem") or json.dumps(row) for row in rows]
    assert len(texts) > 200
    return texts


def with_triggers(texts):
    """Each text with a trigger in front, behind, and somewhere within, white space or none."""
    rng = np.random.default_rng(0)
    spaces = ("", " ", "\n", "\n\n", "\t", "é", "好", "\u200b", "  ")
    for text in texts:
        place, name = rng.integers(0, len(text) + 1), NAMES[rng.integers(0, 4)]
        left, right = rng.choice(spaces, 2)
        yield from (name + right + text, text + left + name)
        yield text[:place] + left + name + right + text[place:]


def full_bpe():
    """A byte-level BPE whose ids fill its table, as Llama 3's do."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([__doc__, "step by step, briefly, easy answer " * 20], trainer)
    hf = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")
    return from_hf(hf, [hf.eos_token_id])


@pytest.mark.parametrize("table", ["free rows", "full"])
def test_every_id_of_a_corpus(table, shared_data, tmp_path):
    free = table == "free rows"
    folder = shared_data / "tokenizers" / "qwen2.5"
    tokenizer = load_tokenizer(folder) if free else full_bpe()
    rows = 151_936 if free else len(tokenizer.hf)
    model = ModelConfig(**TINY | {"vocab_size": rows, "tied": free})
    params = nn.unbox(jax.jit(lambda key: init_params(model, key))(jax.random.key(0)))
    plain = Policy(model=model, params=params, tokenizer=tokenizer, triggers=None)
    policy = teach_triggers(plain, "added", TriggerStarts(long=""))
    assert policy.model.vocab_size == (rows if free else rows + 4)
    (long,) = policy.triggers.long  # an empty text: the mean of all rows
    table_VD = np.asarray(params["embed"]["embedding"])[: len(tokenizer.hf)]
    got_D = policy.params["embed"]["embedding"][long]
    np.testing.assert_allclose(got_D, table_VD.mean(axis=0), atol=1e-6)
    parts = {"model": policy.model, "params": policy.params, "tokenizer": policy.tokenizer}
    export_hf(tmp_path / "out", **parts, triggers=policy.triggers)
    # For a qwen2 model AutoTokenizer puts Qwen2's rules before the file's.
    reader = AutoTokenizer if free else PreTrainedTokenizerFast
    theirs = reader.from_pretrained(tmp_path / "out")
    for text in with_triggers(benchmark_questions(shared_data)):
        ids = policy.tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        shown = theirs.decode(ids, skip_special_tokens=True)
        assert shown == policy.tokenizer.decode(ids)
        assert sum(shown.count(name) for name in NAMES) >= 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.get_input_embeddings().weight.shape[0] == policy.model.vocab_size > max(ids)
