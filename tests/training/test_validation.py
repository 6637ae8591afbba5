"""Held-out items: scored as each is alone, never trained on, and the same after a resume."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.data.packing import build_row
from l2s_jax.data.split import split
from l2s_jax.model.decoder import logits
from l2s_jax.training import feed
from l2s_jax.training.metrics import FILE as METRICS_FILE
from l2s_jax.training.policy import load_policy
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.sft import batch_hidden, run
from l2s_jax.training.validation import FILE, ValidationConfig
from l2s_jax.types import Batch
from tests.training.test_sft import sft_run

HELD = ValidationConfig(fraction=0.3, every=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A config and the workdir of its run."""
    root = tmp_path_factory.mktemp("validated")
    keep = KeepConfig(newest=3, best=1, metric="validation/loss", largest=False)
    cfg = sft_run(root, validation=HELD, keep=keep, num_steps=6)
    run(cfg, root / "run")
    return cfg, root / "run"


def lines(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def test_scores_are_those_of_each_item_alone(finished):
    cfg, workdir = finished
    policy = load_policy(workdir)
    _, examples, _ = cfg.data.prepare(policy)
    kept, held_out = split(examples, fraction=HELD.fraction, seed=HELD.seed)
    easy, long = policy.triggers.easy[0], policy.triggers.long[0]

    @jax.jit
    def all_logp(params, batch):
        return jax.nn.log_softmax(logits(params, batch_hidden(policy.model, params, batch)), -1)

    nll = {True: 0.0, False: 0.0}
    weight = {True: 0.0, False: 0.0}
    table = {route: dict.fromkeys(("easy", "long", "neither"), 0) for route in ("easy", "long")}
    for example in held_out:
        row = {name: jnp.asarray(a)[None] for name, a in build_row([example], 64).items()}
        logp = np.asarray(all_logp(policy.params, Batch(**row, num_tokens=1.0)), np.float64)[0]
        for t, target in enumerate(example.targets):
            nll[example.easy] -= example.weights[t] * logp[t, target]
            weight[example.easy] += example.weights[t]
        p = np.exp(logp[example.decision])
        options = {"easy": p[easy], "long": p[long], "neither": 1 - p[easy] - p[long]}
        route = "easy" if example.targets[example.decision] == easy else "long"
        table[route][sorted(options, key=options.__getitem__)[-1]] += 1
    report = json.loads((workdir / FILE).read_text())
    assert (report["step"], report["num_items"]) == (6, len(held_out))
    assert report["choices"] == table
    right = table["easy"]["easy"] + table["long"]["long"]
    np.testing.assert_allclose(report["route_accuracy"], right / len(held_out))
    np.testing.assert_allclose(report["nll_easy"], nll[True] / weight[True], rtol=1e-5)
    np.testing.assert_allclose(report["nll_regular"], nll[False] / weight[False], rtol=1e-5)
    want = sum(nll.values()) / sum(weight.values())
    np.testing.assert_allclose(report["loss"], want, rtol=1e-5)
    data = json.loads((workdir / feed.FILE).read_text())
    assert data["held_out"] == [e.id for e in held_out] and data["num_examples"] == len(kept)


def test_the_metrics_tell_of_every_look(finished):
    _, workdir = finished
    told = {line["step"]: line for line in lines(workdir)}
    assert [step for step, line in told.items() if "validation/loss" in line] == [2, 4, 6]
    assert all({"nll_easy", "nll_regular", "route_accuracy"} <= set(line) for line in told.values())
    assert not any("sum/" in name for line in told.values() for name in line)
    last = told[6]
    counts = {n: v for n, v in last.items() if "_as_" in n}
    assert len(counts) == 6 and sum(counts.values()) > 0
    # The loss is the mean of both kinds, each by its weight.
    assert min(last["nll_easy"], last["nll_regular"]) <= last["loss"]
    assert last["loss"] <= max(last["nll_easy"], last["nll_regular"])


def test_a_resumed_run_looks_again_and_sees_the_same(finished, tmp_path):
    cfg, workdir = finished
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "6")
    (again / FILE).unlink()
    run(cfg, again)
    assert (again / METRICS_FILE).read_bytes() == (workdir / METRICS_FILE).read_bytes()
    assert (again / FILE).read_bytes() == (workdir / FILE).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"every": 0}, "every=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_faulty_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(HELD, **changes)


def test_what_cannot_be_held_out_is_refused(tmp_path):
    cfg = sft_run(tmp_path, validation=dataclasses.replace(HELD, fraction=1e-9))
    with pytest.raises(ValueError, match="holds out 0 of 24 items"):
        run(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    keep = KeepConfig(best=1, metric="validation/loss")
    with pytest.raises(ValueError, match=r"keep\.metric='validation/loss' and save_every=3"):
        sft_run(tmp_path, validation=HELD, keep=keep, save_every=3)
    with pytest.raises(ValueError, match=r"validation\.every is None"):
        sft_run(tmp_path, keep=keep)
