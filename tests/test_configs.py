"""Every recipe in configs/: it loads, says what it runs, survives JSON, and its shapes fit."""

import dataclasses
import importlib
import json
import pathlib
import re

import jax
import pytest
from flax import linen as nn

from l2s_jax.cli import recipes
from l2s_jax.cli.runs import RUNS
from l2s_jax.config import TAG, fingerprint, from_json, load_config, override, to_json
from l2s_jax.data.arithmetic import LEVELS, ArithmeticProblems, ArithmeticTeachers, make_tokenizer
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.presets import preset
from l2s_jax.objectives.route_sums import RouteIds
from l2s_jax.sharding import make_mesh
from l2s_jax.tokens.layouts import LayoutConfig, encode_item
from l2s_jax.training.optim import make_optimizer, schedule
from l2s_jax.training.scoring import loss_of as grpo_loss_of
from l2s_jax.training.sft import SftRun, loss_of
from l2s_jax.training.state import abstract_state, state_shardings
from l2s_jax.training.step import check_rows, compile_step
from l2s_jax.types import Batch, Item, RolloutBatch
from tests.training.tiny import taught_policy

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
PATHS = sorted(FOLDER.glob("*.py"))
RUN_CLASSES = {class_name: module for module, class_name in RUNS.values()}


def all_configs():
    return [(path, load_config(path)) for path in PATHS]


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_recipes_of_every_verb():
    kinds = {type(load_config(path)).__name__ for path in PATHS}
    assert kinds == set(RUN_CLASSES)


def test_it_loads_and_returns_a_run(path):
    cfg = load_config(path)
    module = importlib.import_module(RUN_CLASSES[type(cfg).__name__])
    assert callable(module.run) and type(cfg) is getattr(module, type(cfg).__name__)


def test_it_survives_json(path):
    cfg = load_config(path)
    again = from_json(type(cfg), to_json(cfg))
    assert again == cfg and fingerprint(again) == fingerprint(cfg)
    assert override(cfg, []) == cfg


def test_its_header_tells_how_to_run_it(path):
    verb = next(
        verb for verb, (_, name) in RUNS.items() if name == type(load_config(path)).__name__
    )
    command = f"l2s {verb} --config configs/{path.name} --workdir "
    assert command in path.read_text().split('"""')[1]


def test_what_one_starts_from_another_makes():
    """A recipe that reads runs/x must not be the only one to know that folder."""
    for path, cfg in all_configs():
        source = getattr(cfg, "model", None)
        if isinstance(source, str) and source.startswith("runs/"):
            made = re.compile(rf"--workdir {source}\s")
            makers = [other.name for other in PATHS if made.search(other.read_text())]
            assert makers and path.name not in makers, (path.name, source)


def test_schedules_end_with_their_runs():
    for _, cfg in all_configs():
        if hasattr(cfg, "optim"):
            last = float(schedule(cfg.optim, cfg.num_steps)(cfg.num_steps - 1))
            assert 0 < last <= cfg.optim.peak_lr * (1 + 1e-6)


def leaves(value, where=""):
    """Dotted name → value as one would write it after `--set`."""
    found = {}
    for name, part in value.items():
        if isinstance(part, dict):
            found |= leaves(part, f"{where}{name}.")
        elif name != TAG:
            found[where + name] = part if isinstance(part, str) else json.dumps(part)
    return found


def test_every_field_can_be_set_to_what_it_is(path):
    cfg = load_config(path)
    assignments = [f"{name}={text}" for name, text in leaves(to_json(cfg)).items()]
    assert len(assignments) >= 8
    assert override(cfg, assignments) == cfg


# ---- shapes, without weights ----


def like(shape, dtype="int32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def sft_batch(rows, length):
    size = (rows, length)
    return Batch(
        tokens=like(size),
        targets=like(size),
        weights=like(size, "float32"),
        positions=like(size),
        segment_ids=like(size),
        branches=like(size),
        easy=like(size, "bool"),
        routing=like(size, "bool"),
        num_tokens=like((), "float32"),
    )


def rollout_batch(packed, width, rollouts, length):
    size, one = (packed, width), (rollouts, length)
    return RolloutBatch(
        tokens=like(size),
        targets=like(size),
        positions=like(size),
        segment_ids=like(size),
        branches=like(size),
        wanted=like(size, "bool"),
        places=like(one),
        old_logp=like(one, "float32"),
        advantages=like((rollouts,), "float32"),
        free=like(one, "bool"),
        marker=like(one, "bool"),
        num_sequences=like((), "float32"),
        num_tokens=like((), "float32"),
        max_tokens=like((), "float32"),
    )


def test_shapes_of_the_base_model():
    cfg = load_config(FOLDER / "base_arithmetic.py")
    assert isinstance(cfg, SftRun) and isinstance(cfg.model, ModelConfig)
    params = nn.unbox(abstract_params(cfg.model))
    batch = sft_batch(cfg.batch_rows, cfg.row_length)
    loss, _ = jax.eval_shape(loss_of(cfg.model), params, batch)
    assert loss.shape == () and loss.dtype == "float32"
    num_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert num_bytes <= 4 << 20  # the package carries it
    assert len(make_tokenizer().hf) + 4 <= cfg.model.vocab_size  # the triggers find free rows


def hub_name(cfg):
    """The model that a recipe starts from in the end."""
    while cfg.model.startswith("runs/"):
        cfg = load_config(FOLDER / f"{cfg.model.removeprefix('runs/')}.py")
    return cfg.model


def shape_of(cfg):
    """Its decoder with the triggers: Llama's table has no row to spare, Qwen's has."""
    model = preset(hub_name(cfg))
    more = 4 if hub_name(cfg).startswith("Llama") else 0
    vocab_size = model.vocab_size + more
    return dataclasses.replace(model, vocab_size=vocab_size, dtype=cfg.dtype, remat=cfg.remat)


NAMED = re.compile(r"(sft|grpo)_(lora_)?(qwen2_5|llama3_2)_")
RECIPES = [path.name for path in PATHS if NAMED.match(path.name)]
IDS = RouteIds(easy=1, long=2)


TRACED = 256  # tokens of a row here: what fits does not depend on it, and tracing takes its time


def step_input(cfg, longest_prompt=512):
    """(number of rows that devices share, loss, batch) of a recipe."""
    model = shape_of(cfg)
    if isinstance(cfg, SftRun):
        batch = sft_batch(cfg.batch_rows, TRACED)
        assert cfg.row_length <= model.max_positions
        return cfg.batch_rows, loss_of(model, IDS), batch
    rollouts = cfg.prompts_per_step * cfg.sampling.num_samples
    assert longest_prompt + cfg.sampling.max_new_tokens <= model.max_positions
    batch = rollout_batch(rollouts, TRACED, rollouts, TRACED // 2)
    return rollouts, grpo_loss_of(model, cfg.preset, cfg.sampling.temperature), batch


def test_both_stages_of_five_models():
    whole = {hub_name(load_config(FOLDER / name)) for name in RECIPES}
    assert len(whole) == 5 and len(RECIPES) == 2 * (5 + 2)


@pytest.mark.parametrize("name", RECIPES)
def test_its_step_fits_together(name):
    """Model, adapter, optimizer, mesh and step of a recipe agree on shapes; nothing is computed."""
    cfg = load_config(FOLDER / name)
    # An adapter's recipe is for one chip, the others' mesh takes as many as there are.
    devices = jax.devices()[:1] if cfg.lora is not None else jax.devices()
    mesh = make_mesh(cfg.mesh, devices)
    model, optimizer = shape_of(cfg), make_optimizer(cfg.optim, cfg.num_steps)
    num_rows = 4 if cfg.lora is not None else 0
    places = state_shardings(model, optimizer, mesh, lora=cfg.lora, num_rows=num_rows)
    rows, loss, batch = step_input(cfg)
    check_rows(name, rows, places, num_microbatches=cfg.num_microbatches)
    state = abstract_state(model, optimizer, mesh, lora=cfg.lora, num_rows=num_rows)
    assert jax.tree.structure(places) == jax.tree.structure(state)
    step = compile_step(loss, optimizer, places, num_microbatches=cfg.num_microbatches)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert metrics["loss"].shape == ()


def test_arithmetic_answers_have_room():
    """The longest long path, triggers and stop included, fits the budget of the recipes."""
    policy = taught_policy()
    assert policy.tokenizer is not None and policy.triggers is not None
    problems = ArithmeticProblems(num_per_level=50, levels=LEVELS[-1:])
    teachers = ArithmeticTeachers(problems=problems)
    layout, longest = LayoutConfig(name="long-only"), 0
    for problem in problems.load():
        item = Item(
            id=problem.id,
            question=problem.question,
            reference=problem.answer,
            long=teachers.long(problem).thought,
            long_answer=problem.answer,
        )
        example = encode_item(item, layout, policy.tokenizer, policy.triggers)
        longest = max(longest, int(example.weights.sum()))
    assert longest == 48 <= recipes.MAX_NEW_TOKENS
