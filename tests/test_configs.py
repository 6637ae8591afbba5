"""Every recipe in configs/: it loads, says what it runs, survives JSON, and its shapes fit."""

import importlib
import pathlib
import re

import jax
import pytest
from flax import linen as nn

from l2s_jax.cli import recipes
from l2s_jax.cli.runs import RUNS
from l2s_jax.config import fingerprint, from_json, load_config, override, to_json
from l2s_jax.data.arithmetic import LEVELS, ArithmeticProblems, ArithmeticTeachers, make_tokenizer
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.decoder import abstract_params
from l2s_jax.tokens.layouts import LayoutConfig, encode_item
from l2s_jax.training.optim import schedule
from l2s_jax.training.sft import SftRun, loss_of
from l2s_jax.types import Batch, Item
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


def test_shapes_of_the_base_model():
    cfg = load_config(FOLDER / "base_arithmetic.py")
    assert isinstance(cfg, SftRun) and isinstance(cfg.model, ModelConfig)
    size = jax.ShapeDtypeStruct((cfg.batch_rows, cfg.row_length), "int32")
    weights = jax.ShapeDtypeStruct(size.shape, "float32")
    batch = Batch(
        tokens=size,
        targets=size,
        weights=weights,
        positions=size,
        segment_ids=size,
        branches=size,
        num_tokens=jax.ShapeDtypeStruct((), "float32"),
    )
    params = nn.unbox(abstract_params(cfg.model))
    loss, _ = jax.eval_shape(loss_of(cfg.model), params, batch)
    assert loss.shape == () and loss.dtype == "float32"
    num_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert num_bytes <= 4 << 20  # the package carries it
    assert len(make_tokenizer().hf) + 4 <= cfg.model.vocab_size  # the triggers find free rows


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
