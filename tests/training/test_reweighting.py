"""TL;DR's changing share: the rule by its definition, a run that uses it, and its resume."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from l2s_jax.training.metrics import FILE
from l2s_jax.training.policy import load_policy
from l2s_jax.training.retention import KeepConfig
from l2s_jax.training.reweighting import MixingConfig, reweigh
from l2s_jax.training.sft import run
from l2s_jax.training.validation import ValidationConfig
from tests.training.test_sft import sft_run
from tests.training.tiny import assert_trees_equal

CFG = MixingConfig(
    long_accuracy=0.9,
    long_tokens=1000.0,
    short_accuracy=0.6,
    short_tokens=200.0,
    every=2,
    max_new_tokens=8,
    num_workers=1,
)


def by_definition(share, accuracy, tokens, cfg):
    long_benefit = max(
        (cfg.long_accuracy - accuracy) / abs(cfg.long_accuracy - cfg.short_accuracy), 0
    )
    short_benefit = max((tokens - cfg.short_tokens) / abs(cfg.long_tokens - cfg.short_tokens), 0)
    short = math.exp(math.log(share) + cfg.rate * short_benefit)
    long = math.exp(math.log(1 - share) + cfg.rate * long_benefit)
    return (1 - cfg.smoothing) * short / (short + long) + cfg.smoothing * 0.5


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_by_definition(seed):
    rng = np.random.default_rng(seed)
    share, accuracy = rng.uniform(0.01, 0.99), rng.uniform(0, 1)
    tokens = rng.uniform(0, 2000)
    got = reweigh(share, accuracy, tokens, CFG)
    np.testing.assert_allclose(got, by_definition(share, accuracy, tokens, CFG), rtol=1e-9)


def test_what_is_missing_is_given_more_of():
    assert reweigh(0.5, 0.9, 200.0, CFG) == 0.5  # as right as the long one, as brief as the short
    assert reweigh(0.5, 0.6, 200.0, CFG) < 0.02 < 0.98 < reweigh(0.5, 0.9, 1000.0, CFG)
    assert reweigh(0.5, 0.6, 1000.0, CFG) == 0.5  # both are missing alike
    share = 0.5
    for _ in range(100):  # no share is ever nothing, however often it is moved
        share = reweigh(share, 0.0, 0.0, CFG)
    assert 0 < share < 1e-4 and reweigh(share, 0.9, 1e5, CFG) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_accuracy": 0.9}, "must differ in both"),
        ({"short_tokens": 1000.0}, "must differ in both"),
        ({"every": 0}, "every=0"),
        ({"smoothing": 0.0}, "smoothing=0.0"),
        ({"rate": -1.0}, "rate=-1.0"),
    ],
)
def test_faulty_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **changes)


def test_a_run_needs_held_out_items(tmp_path):
    with pytest.raises(ValueError, match=r"SftRun\.validation=null holds out none"):
        sft_run(tmp_path, mixing=CFG)


def test_a_run_changes_its_share_and_resumes_bit_for_bit(tmp_path):
    held = ValidationConfig(fraction=0.3, every=100)
    # A random policy is never right and always too long: the rate keeps the share within bounds.
    mixing = dataclasses.replace(CFG, rate=0.5, short_tokens=2.0, long_tokens=8.0)
    keep = KeepConfig(newest=3)
    cfg = sft_run(
        tmp_path, validation=held, mixing=mixing, keep=keep, num_steps=6, save_every=3, log_every=1
    )
    run(cfg, tmp_path / "run")
    told = [json.loads(line) for line in (tmp_path / "run" / FILE).read_text().splitlines()]
    measured = {line["step"] - 1: line for line in told if "mixing/easy_share" in line}
    assert list(measured) == [2, 4]
    first, second = measured.values()
    assert 0 <= first["mixing/accuracy"] <= 1 <= first["mixing/tokens"] <= 8
    want = reweigh(
        first["mixing/easy_share"], second["mixing/accuracy"], second["mixing/tokens"], mixing
    )
    assert second["mixing/easy_share"] == want
    # From step 3, between two measurements: the share and the rows taken are in the record.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "6")
    run(cfg, tmp_path / "again")
    lines = [(tmp_path / name / FILE).read_bytes() for name in ("run", "again")]
    assert lines[0] == lines[1]
    weights = [load_policy(tmp_path / name).params for name in ("run", "again")]
    assert_trees_equal(*weights)
