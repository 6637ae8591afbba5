"""Whole runs of stage 2: work ahead, compiled programs, log-probs of other policies."""

import dataclasses
import gc
import json
import threading
import weakref

import jax
import numpy as np
import pytest

from l2s_jax.data.arithmetic import ArithmeticProblems
from l2s_jax.model.lora import LoraConfig
from l2s_jax.objectives.advantages import Centred
from l2s_jax.objectives.budgets import L1Exact
from l2s_jax.objectives.importance import TruncatedImportance
from l2s_jax.objectives.kl import K3
from l2s_jax.objectives.losses import GrpoLoss
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.presets import adaptthink, plus
from l2s_jax.sampling import load, loop
from l2s_jax.sampling.engine import Engine
from l2s_jax.training import grpo, metrics
from l2s_jax.training.asking import AskBudget
from l2s_jax.training.checkpoint import Checkpoints
from l2s_jax.training.completions import FILE as COMPLETIONS
from l2s_jax.training.completions import CompletionsConfig
from l2s_jax.training.optim import OptimConfig
from l2s_jax.training.policy import load_policy, save_policy
from l2s_jax.training.refill import Refill
from tests.training.stage2 import POLICY, SAMPLING, WIDTH, grpo_run
from tests.training.tiny import assert_trees_equal

# All that needs other policies. A random one is never right: this pays for lengths as well.
BUSY = Objective(
    reward=L1Exact(alpha=0.05),
    advantage=Centred(),
    policy_loss=GrpoLoss(),
    kl=K3(weight=0.1),
    importance=TruncatedImportance(),
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    path = tmp_path_factory.mktemp("stage2") / "taught"
    save_policy(path, POLICY)
    return str(path)


def config(taught, **changes):
    usual = {
        "model": taught,
        "preset": plus(),
        "rollouts": "mixed",
        "problems": ArithmeticProblems(num_per_level=8, levels=(3, 5)),
        "optim": OptimConfig(peak_lr=3e-3),
        "completions": CompletionsConfig(every=1, per_route=1),
    }
    return grpo_run(**usual | changes)


def lines(workdir, file=metrics.FILE):
    return [json.loads(line) for line in (workdir / file).read_text().splitlines()]


def run(cfg, workdir):
    workdir.mkdir()
    grpo.run(cfg, workdir)
    return lines(workdir)


@pytest.fixture(scope="module")
def fixed(taught, tmp_path_factory):
    """(a run whose rollouts were made ahead, the same run without)."""
    root = tmp_path_factory.mktemp("fixed")
    for name in ("ahead", "behind"):
        run(config(taught, ahead=name == "ahead"), root / name)
    return root / "ahead", root / "behind"


def test_what_is_made_ahead_changes_no_number(fixed):
    ahead, behind = fixed
    for file in (metrics.FILE, COMPLETIONS):
        assert (ahead / file).read_bytes() == (behind / file).read_bytes()
    assert_trees_equal(load_policy(ahead).params, load_policy(behind).params)
    moved = load_policy(ahead).params["embed"]["embedding"] - POLICY.params["embed"]["embedding"]
    assert np.abs(moved).max() > 1e-3


@pytest.mark.parametrize("ahead", [True, False])
def test_the_samplers_weights_make_room_for_an_update(taught, tmp_path, monkeypatch, ahead):
    """They are needed during it only where the next step is sampled meanwhile."""
    placed, left = [], []

    def place(engine, params):
        weights = make(engine, params)
        placed.append(weakref.ref(weights["layer_0"]["mlp"]["up_proj"]["kernel"]))
        return weights

    def spied(*_):
        optimizer, places, step = program(*_)

        def update(state, batch):
            gc.collect()
            left.append(any(kernel() is not None for kernel in placed))
            return step(state, batch)

        return optimizer, places, update

    program, make = grpo.program_of, Engine.place
    monkeypatch.setattr(grpo, "program_of", spied)  # to look, not to change
    monkeypatch.setattr(Engine, "place", place)
    run(config(taught, ahead=ahead, num_steps=3), tmp_path / "run")
    assert left == [ahead, ahead, False]  # nothing comes after the last


def test_refreshes_are_waited_for(taught, tmp_path):
    """With a policy that is refreshed every other step, only every other step is made ahead."""
    for name in ("ahead", "behind"):
        run(config(taught, refresh_every=2, ahead=name == "ahead"), tmp_path / name)
    one, other = (tmp_path / name / metrics.FILE for name in ("ahead", "behind"))
    assert one.read_bytes() == other.read_bytes()
    gaps = [line["max_log_ratio"] for line in lines(tmp_path / "ahead")]
    assert max(gaps[0::2]) < 1e-4 < 1e-3 < min(gaps[1::2])


def test_what_a_step_cost(fixed):
    speed = lines(fixed[0], metrics.SPEED_FILE)
    assert [line["step"] for line in speed] == [1, 2, 3, 4]
    for line in speed:
        for part in ("rollout", "verify", "prepare", "update", "waiting"):
            assert line[f"seconds/{part}"] >= 0
        assert line["seconds/step"] >= line["seconds/update"] + line["seconds/waiting"]
        assert line["tokens_per_second"] > line["useful_tokens_per_second"] > 0
        assert 0 <= line["wasted_fraction"] < 1
        assert "mfu" not in line and "memory_gib" not in line  # a CPU has no peak, and tells none
    assert any((fixed[0] / "tensorboard").iterdir())


def test_completions_are_kept(fixed):
    rows = lines(fixed[0], COMPLETIONS)
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    assert {"short", "long"} <= {row["route"] for row in rows}
    assert len(rows) == len({(row["step"], row["route"]) for row in rows})
    for row in rows:
        assert row["text"] and row["question"] and isinstance(row["correct"], bool)


def test_programs_of_a_run_are_few_and_declared(taught, tmp_path, monkeypatch):
    """Budgets, modes, temperatures, refills and batches change; nothing compiles anew for them."""
    buckets = set()

    def sizes(engine, requests):
        found = declared(engine, requests)
        buckets.add((found.as_static(), tuple(found.row_sizes)))
        return found

    declared = Engine.sizes
    monkeypatch.setattr(Engine, "sizes", sizes)  # to learn them, not to change them
    loop.run.clear_cache()
    load.load.clear_cache()
    base = config(taught, refresh_every=1, save_every=1)
    cooler = dataclasses.replace(SAMPLING, temperature=0.7)
    runs = [
        base,
        dataclasses.replace(base, rollouts="auto", sampling=cooler, seed=3),
        dataclasses.replace(base, rollouts="forced_pair", refill=Refill(max_rounds=2)),
        dataclasses.replace(base, preset=BUSY, asking=ask_budget(cut=True)),
    ]
    for number, cfg in enumerate(runs):
        run(cfg, tmp_path / str(number))
    programs = sum(len(rows) for _, rows in buckets)
    assert loop.run._cache_size() == programs
    assert load.load._cache_size() == len(buckets)
    assert programs <= 2  # few prompts in a call, or many


def ask_budget(**changes):
    # Words that the arithmetic tokenizer can spell; one letter each, so that they cost little.
    usual = {"low": 4, "high": 9, "words": "{question} in {budget}"}
    return AskBudget(**usual | changes)


@pytest.mark.parametrize("refresh_every", [None, 2])
def test_other_policies_log_probs(taught, tmp_path, refresh_every):
    """A reference in the loss, and the trainer's own log-probs of the behaviour policy."""
    cfg = config(
        taught,
        preset=BUSY,
        asking=ask_budget(),
        refresh_every=refresh_every,
        num_microbatches=2 if refresh_every is None else 1,
    )
    steps = run(cfg, tmp_path / "run")
    # Both programs read the behaviour policy's weights, in every step, refreshed or not.
    assert all(0 < line["sampler_gap"] <= line["max_sampler_gap"] < 1e-4 for line in steps)
    assert all(abs(line["trainer_to_sampler"] - 1) < 1e-4 for line in steps)
    assert abs(steps[0]["kl_to_ref"]) < 1e-6 < 1e-4 < steps[-1]["kl_to_ref"]  # then it moved
    told = np.asarray([line["budget"] for line in steps])
    assert ((told >= 4) & (told <= 9)).all() and len(set(told)) > 1
    assert all(0 <= line["over_budget"] <= 1 for line in steps)


def test_an_adapter_and_markers_that_were_forced_by_design(taught, tmp_path):
    cfg = config(
        taught, preset=adaptthink(), rollouts="forced_pair", lora=LoraConfig(rank=2), num_steps=2
    )
    steps = run(cfg, tmp_path / "run")
    assert all(line["marker_in_loss"] == 1 for line in steps)
    assert all("easy_share" not in line for line in steps)


def test_an_adapter_that_was_trained_in_half_precision_is_found_again(taught, tmp_path):
    """By its base, which is the same however a run computes."""
    cfg = config(taught, lora=LoraConfig(rank=2), dtype="bfloat16", num_steps=1)
    run(cfg, tmp_path / "run")
    policy = load_policy(tmp_path / "run")
    assert policy.model.dtype == "bfloat16" and "lora" not in policy.params


def test_a_cut_budget_ends_the_rollout(taught, tmp_path):
    cfg = config(taught, preset=BUSY, asking=ask_budget(cut=True), num_steps=1)
    run(cfg, tmp_path / "run")
    rows = lines(tmp_path / "run", COMPLETIONS)
    assert rows and all(row["num_tokens"] <= row["budget"] <= 9 < WIDTH for row in rows)
    assert all(row["question"].endswith(f"in {row['budget']}") for row in rows)


def test_a_signal_or_fault_does_not_wait_for_what_nobody_needs(taught, tmp_path, monkeypatch):
    """The update fails while the next step is sampled: its error comes out, the thread ends."""
    cfg = config(taught, num_steps=3)

    def fails(*_):
        raise RuntimeError("the update failed")

    def broken(*_):
        optimizer, places, step = program(*_)
        return optimizer, places, dataclasses.replace(step, program=jax.jit(fails))

    program = grpo.program
    monkeypatch.setattr(grpo, "program", broken)
    with pytest.raises(RuntimeError, match="the update failed"):
        run(cfg, tmp_path / "run")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() is None
