"""Which settings are tried, what is known of them without compiling, and the verb itself."""

import dataclasses
import json
import pathlib

import jax
import pytest

from l2s_jax.cli import recipes
from l2s_jax.cli.main import NO_FIT, main
from l2s_jax.config import load_config, override
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params
from l2s_jax.plan import run as verb
from l2s_jax.plan.compiled import measure
from l2s_jax.plan.programs import goes_ahead, programs_of
from l2s_jax.plan.search import (
    candidates,
    differences,
    least_bytes,
    num_rows,
    on_slice,
    variants,
    weight_bytes,
)
from l2s_jax.plan.subject import subject_of
from l2s_jax.plan.topologies import Chip, here
from l2s_jax.sharding import MeshConfig
from l2s_jax.training.sft import SftRun
from tests.training.tiny import MODEL

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RECIPE = CONFIGS / "base_arithmetic.py"


def tiny(**changes):
    cfg = load_config(RECIPE)
    assert isinstance(cfg, SftRun)
    model = dataclasses.replace(MODEL, remat="full")
    small = dataclasses.replace(cfg, model=model, row_length=128, batch_rows=8, remat="full")
    return dataclasses.replace(small, mesh=MeshConfig(data=1, fsdp=-1), **changes)


def with_memory(num_bytes):
    chip = Chip(
        kind="none", memory_bytes=num_bytes, flops=None, memory_bandwidth=None, link_bandwidth=None
    )
    return dataclasses.replace(here(), chip=chip)


def test_settings_share_rows_evenly_and_say_how_they_differ():
    cfg = tiny()
    assert isinstance(cfg.model, ModelConfig)
    seen = []
    for group in variants(cfg, cfg.model, here()):
        for changed in group:
            assert num_rows(cfg) % (changed.mesh.fsdp * changed.num_microbatches) == 0
            said = [f"{name}={value}" for name, value in differences(cfg, changed).items()]
            assert override(cfg, said) == changed
            seen.append((changed.mesh.fsdp, changed.mesh.tensor, changed.num_microbatches))
    assert seen == sorted(set(seen), key=seen.index)
    assert set(seen) == {(8, 1, 1), (4, 2, 1), (4, 2, 2), (2, 4, 1), (2, 4, 2), (2, 4, 4)}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensors"), [(28, 4, {1, 2, 4}), (12, 2, {1, 2, 4}), (14, 2, {1, 2})]
)
def test_heads_that_cannot_be_shared_are_not_tried(heads, kv_heads, tensors):
    """A program that shared them unevenly would be refused when it is traced."""
    model = dataclasses.replace(MODEL, num_heads=heads, num_kv_heads=kv_heads)
    groups = variants(tiny(), model, here())
    assert {changed.mesh.tensor for group in groups for changed in group} == tensors


def test_stage_2_may_sample_apart_and_on_fewer_rows():
    cfg = recipes.stage2_v2("runs/arithmetic/sft", seed=0)
    groups = variants(cfg, MODEL, dataclasses.replace(here(), devices=here().devices[:1]))
    said = [differences(cfg, next(group)) for group in groups]
    assert {"ahead": "false"} in [{k: v for k, v in s.items() if k == "ahead"} for s in said]
    rows = [int(s["sampling.max_rows"]) for s in said if "sampling.max_rows" in s]
    assert rows == [128, 64, 32, 16, 8]


def test_the_least_is_below_what_the_compiler_finds():
    """A slice is left out by it, so it must never be too high."""
    cfg, place = tiny(), here()
    assert isinstance(cfg.model, ModelConfig)
    changed = dataclasses.replace(cfg, mesh=MeshConfig(data=1, fsdp=4, tensor=2))
    [update, *_] = programs_of(changed, subject_of(changed, RECIPE), place).programs
    report = measure(update, place)
    assert report.memory.arguments < least_bytes(update, changed, cfg.model) <= report.memory.peak


def test_what_cannot_fit_is_not_compiled():
    cfg = tiny()
    subject = subject_of(cfg, RECIPE)
    small = [one for group in candidates(cfg, subject, with_memory(1000)) for one in group]
    assert small and all(one.programs is None and one.least > 1000 for one in small)
    said = []
    assert not list(on_slice(cfg, subject, with_memory(1000), said.append))
    assert len(said) == 1 and "at the least; not compiled" in said[0]
    first = next(next(candidates(cfg, subject, with_memory(2**30))))
    assert first.guess() <= 2**30 and differences(cfg, first.cfg) == {"mesh.fsdp": "8"}


def test_more_parts_are_tried_where_the_estimate_was_too_low():
    cfg, devices = tiny(row_length=512), here().devices[:1]
    subject = subject_of(cfg, RECIPE)

    place = dataclasses.replace(here(), devices=devices)
    guess = next(next(candidates(cfg, subject, place))).guess()
    place = dataclasses.replace(with_memory(int(guess) + 1), devices=devices)
    tried = [one for one, _ in on_slice(cfg, subject, place, lambda _: None)]
    assert [one.fits for one in tried] == [False, True]  # a CPU's temporaries are more than a TPU's
    parts = [int(one.settings.get("num_microbatches", 1)) for one in tried]
    assert parts[0] == 1 < parts[1]


@pytest.mark.parametrize(("ahead", "tensor"), [(True, 1), (False, 1), (True, 2)])
def test_weights_alone_are_less_than_all_arrays(ahead, tensor):
    """A mesh is left out by them before anything is traced."""
    path, place = CONFIGS / "grpo_qwen2_5_0p5b.py", here()
    mesh = MeshConfig(data=1, fsdp=8 // tensor, tensor=tensor)
    cfg = dataclasses.replace(load_config(path), ahead=ahead, mesh=mesh)
    subject = subject_of(cfg, path)
    ahead = goes_ahead(cfg, place)
    assert ahead == (cfg.ahead and tensor == 1)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(subject.model)))
    weights = weight_bytes(num_params, cfg, ahead=ahead)
    programs = programs_of(cfg, subject, place).programs
    least = max(least_bytes(planned, cfg, subject.model) for planned in programs)
    assert 0.5 * least < weights <= least


@pytest.mark.parametrize("refresh_every", [None, 1])
def test_weights_of_an_adapters_run_are_less_than_all_arrays(refresh_every):
    path = CONFIGS / "grpo_lora_qwen2_5_0p5b.py"
    place = dataclasses.replace(here(), devices=here().devices[:1])
    cfg = dataclasses.replace(load_config(path), ahead=False, refresh_every=refresh_every)
    subject = subject_of(cfg, path)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(subject.model)))
    programs = programs_of(cfg, subject, place).programs
    least = max(least_bytes(planned, cfg, subject.model) for planned in programs)
    assert 0.3 * least < weight_bytes(num_params, cfg, ahead=False) <= least


def test_recipes_are_known_from_shapes():
    path = CONFIGS / "grpo_qwen2_5_7b.py"
    subject = subject_of(load_config(path), path)
    assert subject.model.width == 3584 and subject.model.vocab_size == 152_064
    assert subject.policy.triggers is not None and len(subject.notes) >= 2
    path = CONFIGS / "grpo_llama3_2_3b.py"
    assert subject_of(load_config(path), path).model.vocab_size == 128_256 + 4
    cfg = dataclasses.replace(load_config(path), model="runs/nobody_makes_this")
    with pytest.raises(FileNotFoundError, match="no recipe beside"):
        subject_of(cfg, path)


def test_the_verb(tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from tests.plan.test_search import tiny\n\n\ndef get_config():\n    return tiny()\n"
    )
    command = ["plan", "--config", str(recipe), "--json"]
    assert main([*command, "--topology", "here"]) == 0
    said = capsys.readouterr()
    [record] = map(json.loads, said.out.splitlines())
    assert record["program"] == "update" and record["fits"] and record["chips"] == 8
    assert record["peak_bytes"] >= record["argument_bytes"] > 0 and record["flops"] > 0
    assert main([*command, "--topology", "v5e"]) == 2
    assert "add --search" in capsys.readouterr().err
    monkeypatch.setattr(verb, "topology", lambda _: with_memory(1000))
    assert main([*command, "--topology", "here"]) == NO_FIT
    assert "take more chips" in capsys.readouterr().err
    evaluate = ["plan", "--config", str(CONFIGS / "eval_arithmetic.py"), "--topology", "v5e"]
    assert main([*evaluate, "--search"]) == 2
    assert "mesh.tensor=N" in capsys.readouterr().err
    curate = ["plan", "--config", str(CONFIGS / "curate_arithmetic.py"), "--topology", "here"]
    assert main(curate) == 2
