"""Stage 1: its loss by definition, where gradient goes, and the loop's refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.data.arithmetic import ArithmeticDocuments
from l2s_jax.data.packing import build_row
from l2s_jax.data.pipeline import Batches, bins_of
from l2s_jax.model.decoder import forward, logits
from l2s_jax.model.seen import Seen
from l2s_jax.objectives.sft import sft_loss
from l2s_jax.tokens.layouts import LayoutConfig, encode_item
from l2s_jax.training.curated import CuratedItems
from l2s_jax.training.feed import FILE as DATA_FILE
from l2s_jax.training.feed import Work, report_data
from l2s_jax.training.metrics import FILE, SPEED_FILE
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import load_policy, save_policy
from l2s_jax.training.sft import SftRun, check_lengths, loss_of, run
from l2s_jax.training.speed import Clock
from tests.training.tiny import (
    MODEL,
    make_batches,
    make_examples,
    make_items,
    rows_of,
    taught_policy,
    untaught_policy,
    write_curation,
)

POLICY = taught_policy()
LAYOUTS = ("matched", "long-short", "short-long", "separated", "long-only")


@jax.jit
def all_logp(params, batch):
    """Log-probs of every token at every place, [B, T, V]."""
    seen = Seen(batch.segment_ids, batch.branches)
    hidden = forward(POLICY.model, params, batch.tokens, batch.positions, seen=seen)
    return jax.nn.log_softmax(logits(params, hidden), axis=-1)


loss_fn = jax.jit(loss_of(POLICY.model))


def batch_of(examples, row_length=64, rows=1):
    batches = Batches(examples, row_length=row_length, batch_rows=rows, seed=0)
    return rows_of(batches[0], slice(None))


def path_of(example, branch):
    """Indices of a branch's tokens in an example."""
    return np.flatnonzero(example.branches == branch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_by_definition(layout):
    batch = rows_of(make_batches(8, layout)[0], slice(None))
    logp = np.asarray(all_logp(POLICY.params, batch), np.float64)
    targets, weights = np.asarray(batch.targets), np.asarray(batch.weights)
    total, weight = 0.0, 0.0
    for b in range(8):
        for t in range(64):
            total -= weights[b, t] * logp[b, t, targets[b, t]]
            weight += weights[b, t]
    assert weight == batch.num_tokens > 0
    loss, metrics = loss_fn(POLICY.params, batch)
    np.testing.assert_allclose(loss, total / weight, rtol=1e-5)
    assert metrics["trained_tokens"] == np.count_nonzero(weights)


def test_weights_of_route_and_short_path_count():
    [easy] = [item for item in make_items() if item.is_easy][:1]
    cfg = LayoutConfig(route_weight=5.0, short_weight=0.25)
    batch = batch_of([encode_item(easy, cfg, POLICY.tokenizer, POLICY.triggers)])
    weights = np.asarray(batch.weights)[0]
    prompt = len(POLICY.tokenizer.ask(easy.question))
    assert weights[prompt - 1] == 5.0 and set(weights) == {0.0, 0.25, 1.0, 5.0}
    logp = np.asarray(all_logp(POLICY.params, batch), np.float64)[0]
    picked = logp[np.arange(64), np.asarray(batch.targets)[0]]
    loss, _ = loss_fn(POLICY.params, batch)
    np.testing.assert_allclose(loss, -np.sum(picked * weights) / weights.sum(), rtol=1e-5)


@jax.jit
def gradient_by_place(batch):
    """How the loss changes with every log-prob: what each target is trained with."""
    logp_BT = jnp.zeros(batch.tokens.shape)  # the loss is linear in them
    grad = jax.grad(lambda lp: sft_loss(lp, batch.weights, num_tokens=batch.num_tokens)[0])
    return -grad(logp_BT) * batch.num_tokens


def test_what_is_trained_and_what_is_given():
    [easy] = [item for item in make_items() if item.is_easy][:1]
    [regular] = [item for item in make_items() if not item.is_easy][:1]
    stop, triggers = POLICY.tokenizer.stop_ids[0], POLICY.triggers
    for item in (easy, regular):
        example = encode_item(item, LayoutConfig(), POLICY.tokenizer, triggers)
        pull = np.asarray(gradient_by_place(batch_of([example])))[0]
        prompt = len(POLICY.tokenizer.ask(item.question))
        assert not pull[: prompt - 1].any()  # the prompt's own tokens
        assert pull[prompt - 1] == 1  # the route, from the prompt's last token
        assert example.targets[prompt - 1] == (triggers.easy if item.is_easy else triggers.long)[0]
        stops = np.flatnonzero(example.targets == stop)
        assert len(stops) == (2 if item.is_easy else 1) and (pull[stops] == 1).all()
        assert not pull[example.num_tokens :].any()  # padding
        # Every other token of a path is trained once.
        np.testing.assert_array_equal(pull[prompt - 1 : example.num_tokens], 1)
    example = encode_item(easy, LayoutConfig(), POLICY.tokenizer, triggers)
    # <LONG> is read at the head of the second branch, and nothing is trained to say it.
    assert example.tokens[path_of(example, 2)[0]] == triggers.long[0]
    assert triggers.long[0] not in example.targets[example.weights > 0]


def test_no_gradient_through_targets_of_weight_zero():
    """Other targets on prompt and padding, the same gradient to the last bit."""
    batch = rows_of(make_batches()[0], slice(None))
    other = jnp.where(batch.weights > 0, batch.targets, (batch.targets + 5) % 26)
    grad = jax.jit(jax.grad(lambda p, b: loss_of(POLICY.model)(p, b)[0]))
    got = grad(POLICY.params, batch.replace(targets=other))
    assert np.any(other != batch.targets)
    jax.tree.map(np.testing.assert_array_equal, got, grad(POLICY.params, batch))
    # A stop and a route alone do move the parameters.
    stop = POLICY.tokenizer.stop_ids[0]
    for keep in (batch.targets == stop, batch.targets == POLICY.triggers.easy[0]):
        weights = jnp.where(keep, batch.weights, 0.0)
        alone = grad(POLICY.params, batch.replace(weights=weights))
        assert float(jnp.max(jnp.abs(alone["embed"]["embedding"]))) > 1e-5


@pytest.mark.parametrize("layout", ["matched", "long-short"])
def test_packed_equals_single(layout):
    examples = make_examples(layout)
    batches = Batches(examples, row_length=64, batch_rows=4, seed=0)
    assert batches.num_rows < len(examples)  # some rows hold several
    packed = [build_row(bin, 64) for bin in bins_of(examples, 64)]
    single = [build_row([example], 64) for example in examples]
    np.testing.assert_allclose(sum_of_losses(packed), sum_of_losses(single), rtol=1e-5)


def sum_of_losses(rows):
    """The summed weighted loss of rows, some at a time so that one program does it."""
    total = 0.0
    for begin in range(0, len(rows), 8):
        chosen = rows[begin : begin + 8]
        chosen = chosen + [{k: np.zeros_like(v) for k, v in chosen[0].items()}] * (8 - len(chosen))
        fields = {name: jnp.asarray(np.stack([r[name] for r in chosen])) for name in chosen[0]}
        batch = make_batches()[0].replace(**fields, num_tokens=jnp.float32(1))
        total += float(loss_fn(POLICY.params, batch)[0])
    return total


# ---- the loop ----


def sft_run(tmp_path, **changes) -> SftRun:
    """A run from a workdir's policy; fresh parameters take seconds to compile."""
    if not (tmp_path / "base").exists():
        save_policy(tmp_path / "base", untaught_policy())
    cfg = SftRun(
        model=str(tmp_path / "base"),
        data=CuratedItems(path=str(write_curation(tmp_path / "curated"))),
        row_length=64,
        batch_rows=8,
        num_steps=5,
        save_every=2,
        log_every=3,
    )
    return dataclasses.replace(cfg, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"seed": -1}, "seed=-1"),
        ({"model": MODEL, "tokenizer": None}, "tokenizer is missing"),
        ({"tokenizer": "arithmetic"}, "tokenizer='arithmetic'.*brings its own"),
        ({"optim": OptimConfig(warmup_steps=5)}, "warmup_steps=5, but the run has 5 steps"),
    ],
)
def test_faulty_configs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sft_run(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_rows": 6}, "batch_rows=6 rows cannot be shared by 8 devices"),
        ({"row_length": 8}, "longer than row_length=8"),
        (
            {"model": dataclasses.replace(MODEL, max_positions=16), "tokenizer": "arithmetic"},
            "model's 16 positions",
        ),
        ({"data": CuratedItems(path="nowhere")}, "manifest"),
        ({"batch_rows": 4096}, "fewer than one batch"),
    ],
)
def test_what_cannot_start_leaves_nothing(tmp_path, changes, message):
    """Or else the corrected run would find a folder that another config has begun."""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(sft_run(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_save_is_looked_at_first(tmp_path):
    """Lines at every log, every save and the end; a save of numbers that are none never happens."""
    run(sft_run(tmp_path), tmp_path / "run")
    for name in (FILE, SPEED_FILE):
        told = [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        assert [line["step"] for line in told] == [2, 3, 4, 5]
    assert 0 < told[-1]["useful_tokens_per_second"] < told[-1]["tokens_per_second"]


def test_plain_documents_train_a_base_model(tmp_path):
    data = ArithmeticDocuments(num_documents=60)
    run(sft_run(tmp_path, model=MODEL, tokenizer="arithmetic", data=data), tmp_path / "run")
    policy = load_policy(tmp_path / "run")
    assert policy.model == MODEL and policy.triggers is None and policy.tokenizer is not None


def test_work_by_hand():
    batches = make_batches(4)
    work, clock = Work(MODEL), Clock()
    lengths = []
    for step in range(3):
        work.add(batches[step])
        for row in batches[step].segment_ids:
            lengths += [int((row == segment).sum()) for segment in range(1, row.max() + 1)]
    seconds = work.lap(clock)
    whole = seconds["seconds/step"] * 3
    np.testing.assert_allclose(seconds["tokens_per_second"] * whole, 3 * 4 * 64)
    np.testing.assert_allclose(seconds["useful_tokens_per_second"] * whole, sum(lengths))
    work.add(batches[0])
    again = work.lap(clock)  # from the last lap on
    np.testing.assert_allclose(again["tokens_per_second"] * again["seconds/step"], 4 * 64)


def test_items_too_long_are_counted(tmp_path):
    lengths = [example.num_tokens for example in make_examples()]
    limit = int(np.median(lengths))
    data = CuratedItems(path=str(write_curation(tmp_path / "curated")), max_tokens=limit)
    _, kept, left_out = data.prepare(untaught_policy())
    assert len(kept) == sum(n <= limit for n in lengths) and len(left_out) == len(lengths) - len(
        kept
    )
    assert left_out == [e.id for e in make_examples() if e.num_tokens > limit] and left_out
    report_data(tmp_path, kept, [], left_out, make_batches(4))
    report = json.loads((tmp_path / DATA_FILE).read_text())
    assert report["too_long"] == left_out and report["num_examples"] == len(kept)
    with pytest.raises(ValueError, match="leaves out 24 of 24 items: the shortest has"):
        dataclasses.replace(data, max_tokens=1).prepare(untaught_policy())


def test_examples_past_the_models_positions_are_named():
    examples = make_examples()
    longest = max(int(e.positions.max()) for e in examples)
    check_lengths(examples, dataclasses.replace(MODEL, max_positions=longest + 1))
    with pytest.raises(ValueError, match="longer than the model's"):
        check_lengths(examples, dataclasses.replace(MODEL, max_positions=longest))
