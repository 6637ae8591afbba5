"""Small policies to export: one id per letter, weights far from uniform."""

import functools

import jax
from flax import linen as nn

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import init_params
from l2s_jax.tokens.tokenizer import from_hf
from l2s_jax.tokens.triggers import add_triggers, find_triggers
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
