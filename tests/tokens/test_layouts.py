"""Training sequences: every layout decoded, and `matched` against the paths run alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.data.packing import build_row
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import forward, head, init_params
from l2s_jax.model.seen import Seen
from l2s_jax.objectives.logprobs import token_logp
from l2s_jax.tokens.layouts import CHUNK, LayoutConfig, assemble, encode_item, encode_items
from l2s_jax.tokens.tokenizer import load_tokenizer
from l2s_jax.tokens.triggers import add_triggers, find_triggers
from l2s_jax.types import Item

EASY = Item(
    id="e",
    question="3 +1 *7",
    reference="8",
    long="3 +1 4 *7 8 check 4 8",
    long_answer="8",
    short="4 8",
    short_answer="so 8",
)
REGULAR = dataclasses.replace(EASY, id="r", short=None, short_answer=None)
LAYOUTS = {
    "long-short": "<EASY> <LONG> L <SHORT> S <ANSWER> so 8 <end>",
    "short-long": "<EASY> <SHORT> S <LONG> L <ANSWER> 8 <end>",
    "separated": "<EASY> <SHORT> S <ANSWER> so 8 <end>",
    "long-only": "<LONG> L <ANSWER> 8 <end>",
}
WORLD = add_triggers(make_tokenizer())


def written(text):
    return text.replace("L ", f"{EASY.long} ").replace("S ", f"{EASY.short} ")


def encode(item, name="matched", vocabulary=WORLD, **weights):
    return encode_item(item, LayoutConfig(name=name, **weights), *vocabulary)


def paths_of(example):
    """branch → (ids from the prompt on, weights of what is said), following the arrays alone."""
    trunk = example.branches == 0
    found = {}
    for branch in sorted(set(example.branches.tolist())):
        on = trunk | (example.branches == branch)
        if branch == 0 and len(set(example.branches.tolist())) > 1:
            continue
        tokens, last = example.tokens[on].tolist(), int(example.targets[on][-1])
        found[branch] = ([*tokens, last], example.weights[on])
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_easy_item_reads_as_the_table_says(name):
    example = encode(EASY, name)
    [(ids, _)] = paths_of(example).values()
    assert WORLD[0].decode(ids) == f"3 +1 *7 = {written(LAYOUTS[name])}"
    np.testing.assert_array_equal(example.positions, np.arange(example.num_tokens))
    np.testing.assert_array_equal(example.targets[:-1], example.tokens[1:])


def test_matched_forks_behind_the_prompt():
    example = encode(EASY)
    (short, _), (long, _) = paths_of(example).values()
    assert WORLD[0].decode(short) == f"3 +1 *7 = {written(LAYOUTS['separated'])}"
    assert WORLD[0].decode(long) == f"3 +1 *7 = {written(LAYOUTS['long-only'])}"
    for branch in (1, 2):
        positions = example.positions[np.isin(example.branches, [0, branch])]
        np.testing.assert_array_equal(positions, np.arange(len(positions)))


@pytest.mark.parametrize("name", [*LAYOUTS, "matched"])
def test_a_regular_item_is_the_same_in_every_layout(name):
    example = encode(REGULAR, name)
    [(ids, weights)] = paths_of(example).values()
    assert WORLD[0].decode(ids) == f"3 +1 *7 = {written(LAYOUTS['long-only'])}"
    assert weights.tolist() == [0] * 3 + [1] * (len(ids) - 4)


def weights_by_definition(name, route, short, trigger, stop):
    """What each word after the prompt weighs; the given `<LONG>` of a branch weighs nothing."""
    thought, path = [1.0] * len(EASY.long.split()), [short] * len(EASY.short.split())
    long_end = [*thought, trigger, 1.0, stop]  # <ANSWER> 8 <end>
    short_start = [short * trigger, *path]  # <SHORT> ...
    short_end = [*short_start, short * trigger, short, short, short * stop]  # <ANSWER> so 8 <end>
    return {
        "long-short": [[route, trigger, *thought, *short_end]],
        "short-long": [[route, *short_start, trigger, *long_end]],
        "separated": [[route, *short_end]],
        "long-only": [[route, *long_end]],
        "matched": [[route, *short_end], [0.0, *long_end]],
    }[name]


@pytest.mark.parametrize("name", [*LAYOUTS, "matched"])
def test_what_is_trained_and_how_much(name):
    """The stop is trained, the prompt is not, and the weights fall where they say."""
    weights = dict(route_weight=3.0, short_weight=0.5, trigger_weight=7.0, stop_weight=11.0)
    example = encode(EASY, name, **weights)
    prompt = example.weights[:3]
    assert prompt.tolist() == [0.0] * 3
    expected = weights_by_definition(name, 3.0, 0.5, 7.0, 11.0)
    for branch, ((ids, got), want) in enumerate(
        zip(paths_of(example).values(), expected, strict=True)
    ):
        if branch:  # the trunk's last place says how the first branch begins
            assert got[4:].tolist() == want[1:]
        else:
            assert got[3:].tolist() == want
        assert ids[-1] == WORLD[0].stop_ids[0] and got[-1] > 0


def test_matched_by_slow_construction():
    tokenizer, triggers = WORLD
    prompt = tokenizer.encode("3 +1 *7 =")
    short = tokenizer.encode(f"<EASY> {written('<SHORT> S <ANSWER> so 8 <end>')}")
    long = tokenizer.encode(f"<LONG> {written('L <ANSWER> 8 <end>')}")
    rows = []  # (token, target, weight, position, branch)
    for place, token in enumerate(prompt[:-1]):
        rows.append((token, prompt[place + 1], 0, place, 0))
    rows.append((prompt[-1], triggers.easy[0], 2, 3, 0))
    for place, token in enumerate(short[:-1]):
        rows.append((token, short[place + 1], 5, 4 + place, 1))
    for place, token in enumerate(long[:-1]):
        rows.append((token, long[place + 1], 1, 4 + place, 2))
    example = encode(EASY, route_weight=2.0, short_weight=5.0)
    fields = ("tokens", "targets", "weights", "positions", "branches")
    got = list(zip(*(getattr(example, field).tolist() for field in fields), strict=True))
    assert got == rows


def test_plain_triggers(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    vocabulary = tokenizer, find_triggers(tokenizer, "plain")
    item = dataclasses.replace(EASY, question="What is 3 + 1?", short="Four.", long="Well, é 4.")
    example = encode(item, vocabulary=vocabulary, route_weight=3.0)
    (short, weights), (long, given) = paths_of(example).values()
    prompt = tokenizer.decode(tokenizer.ask(item.question))
    assert tokenizer.decode(short) == (f"{prompt}<EASY>\n<SHORT>\nFour.<ANSWER>\nso 8<|im_end|>")
    assert tokenizer.decode(long) == f"{prompt}<LONG>\nWell, é 4.<ANSWER>\n8<|im_end|>"
    start, size = len(tokenizer.ask(item.question)) - 1, len(vocabulary[1].easy)
    assert weights[start : start + size].tolist() == [3.0] * size
    assert given[start + 1 : start + len(vocabulary[1].long)].max() == 0  # given, not learned


@pytest.mark.parametrize("name", [*LAYOUTS, "matched"])
def test_where_the_route_is_decided(name):
    triggers = WORLD[1]
    for item in (EASY, REGULAR):
        example = encode(item, name)
        to_easy = item.is_easy and name != "long-only"
        assert example.easy == item.is_easy and example.decision == 3  # the prompt's last token
        said = example.targets[example.decision]
        assert said == (triggers.easy if to_easy else triggers.long)[0]


def test_the_route_is_decided_where_the_triggers_part(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    triggers = find_triggers(tokenizer, "plain")
    fork = triggers.fork
    assert triggers.easy[:fork] == triggers.long[:fork]
    item = dataclasses.replace(EASY, question="What is 3 + 1?")
    example = encode(item, vocabulary=(tokenizer, triggers))
    assert example.targets[example.decision] == triggers.easy[fork] != triggers.long[fork]
    # A tokenizer whose two triggers open alike.
    alike = dataclasses.replace(triggers, easy=(27, 28, 29), long=(27, 28, 30, 31))
    example = encode(item, vocabulary=(tokenizer, alike))
    prompt = len(tokenizer.ask(item.question))
    assert (alike.fork, example.decision, example.targets[prompt + 1]) == (2, prompt + 1, 29)


def test_many_items_at_once_are_each_alone():
    items = [EASY, REGULAR, dataclasses.replace(EASY, id="f", long="3 +1 4")] * 100
    assert len(items) > CHUNK
    for item, example in zip(items, encode_items(items, LayoutConfig(), *WORLD), strict=True):
        alone = encode(item)
        assert (example.id, example.easy, example.decision) == (item.id, alone.easy, alone.decision)
        for field in ("tokens", "targets", "weights", "positions", "branches"):
            np.testing.assert_array_equal(getattr(example, field), getattr(alone, field))


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"LayoutConfig\.short_weight=-1"):
        LayoutConfig(short_weight=-1.0)
    with pytest.raises(ValueError, match=r"LayoutConfig\.route_weight=-2"):
        LayoutConfig(route_weight=-2.0)


MODEL = ModelConfig(
    vocab_size=32, width=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_width=24
)


@pytest.fixture(scope="module")
def params():
    fresh = nn.unbox(init_params(MODEL, jax.random.key(1)))
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, fresh)


@jax.jit
def row_logp(params, tokens_BT, targets_BT, positions_BT, segments_BT, branches_BT):
    seen = Seen(segments_BT, branches_BT)
    hidden_BTD = forward(MODEL, params, tokens_BT, positions_BT, seen=seen)
    return token_logp(hidden_BTD, head(params), targets_BT)


FIELDS = ("tokens", "targets", "positions", "segment_ids", "branches")


def logp_of(params, examples, length=96):
    """Log-probs of each example's targets, from one packed row."""
    row = build_row(examples, length)
    logp_T = np.asarray(row_logp(params, *(jnp.asarray(row[f])[None] for f in FIELDS)))[0]
    ends = np.cumsum([e.num_tokens for e in examples])
    return np.split(logp_T[: ends[-1]], ends[:-1])


def test_branches_are_what_each_path_is_alone(params):
    example = encode(EASY)
    [forked] = logp_of(params, [example])
    for branch, name in ((1, "separated"), (2, "long-only")):
        alone = encode(EASY, name)
        on = np.isin(example.branches, [0, branch])
        [want] = logp_of(params, [alone])
        got = forked[on]
        fork = (example.branches == 0).sum() - 1  # there the forked one says EASY
        same = np.arange(len(want)) != fork if branch == 2 else slice(None)
        np.testing.assert_allclose(got[same], want[same], atol=1e-5)


@pytest.mark.parametrize("changed", [1, 2])
def test_no_branch_leaks_into_the_other(params, changed):
    example = encode(EASY)
    other = example.tokens.copy()
    mine = example.branches == changed
    other[mine] = (other[mine] + 5) % 21 + 1
    [before] = logp_of(params, [example])
    [after] = logp_of(params, [dataclasses.replace(example, tokens=other)])
    np.testing.assert_array_equal(before[~mine], after[~mine])
    assert not np.allclose(before[mine], after[mine])


def test_packed_examples_are_what_each_is_alone(params):
    examples = [encode(EASY), encode(REGULAR), encode(EASY, "long-short")]
    for packed, example in zip(logp_of(params, examples), examples, strict=True):
        np.testing.assert_allclose(packed, logp_of(params, [example])[0], atol=1e-5)


def test_a_long_path_of_another_length_moves_nothing(params):
    """Positions of the short branch follow the prompt, not what was written before it."""
    longer = encode(dataclasses.replace(EASY, long=EASY.long + " check 4 8 check 4 8"))
    [before], [after] = logp_of(params, [encode(EASY)]), logp_of(params, [longer])
    for got, example in ((before, encode(EASY)), (after, longer)):
        assert len(got) == example.num_tokens
    size = (encode(EASY).branches < 2).sum()
    np.testing.assert_allclose(before[:size], after[:size], atol=1e-5)


def test_assemble_keeps_the_last_token_as_target_only():
    example = assemble("a", [1, 2], [[([3, 4], 1.0), ([5], 2.0)]])
    assert example.tokens.tolist() == [1, 2, 3, 4]
    assert example.targets.tolist() == [2, 3, 4, 5]
    assert example.weights.tolist() == [0, 1, 1, 2]
    assert example.branches.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("field", ["question", "long", "long_answer", "short", "short_answer"])
def test_a_text_that_spells_a_trigger_is_refused(field):
    hostile = dataclasses.replace(EASY, **{field: "3 <LONG> +1"})
    with pytest.raises(ValueError, match=f"'e': its {field} holds <LONG>"):
        encode_item(hostile, LayoutConfig(), *WORLD)
