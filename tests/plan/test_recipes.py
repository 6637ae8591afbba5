"""The slices that headers in configs/ claim, as far as arrays can refute them.

What the compiler says of them takes minutes: `make plan-recipes`.
"""

import collections
import dataclasses
import math
import pathlib
import re

import jax
import pytest

from benchmarks.plan_recipes import claims
from l2s_jax.config import load_config, override
from l2s_jax.plan.programs import programs_of
from l2s_jax.plan.search import least_bytes
from l2s_jax.plan.subject import subject_of
from l2s_jax.plan.topologies import CHIPS, NAME, here

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CLAIMS = [(path.name, *claim) for path in sorted(CONFIGS.glob("*.py")) for claim in claims(path)]


def test_a_header_that_names_a_slice_is_read():
    claimed = {path.name: path.read_text().count("Smallest:") for path in CONFIGS.glob("*.py")}
    assert {name: n for name, n in claimed.items() if n} == collections.Counter(
        name for name, *_ in CLAIMS
    )
    settings = ["mesh.fsdp=4", "mesh.tensor=2", "num_microbatches=16"]
    assert ("grpo_qwen2_5_7b.py", "v6e:2x4", settings) in CLAIMS


def test_every_recipe_that_names_a_size_names_a_slice():
    """Others take whatever model they are given."""
    sized = [path for path in CONFIGS.glob("*.py") if re.search(r"_\d+(p\d+)?b$", path.stem)]
    assert len(sized) == 14
    assert [path.stem for path in sized if not claims(path)] == []


@pytest.mark.parametrize(("name", "where", "assignments"), CLAIMS)
def test_arrays_fit_the_slice_that_a_header_claims(name, where, assignments):
    named = NAME.fullmatch(where)
    assert named is not None and named["num"] is None
    num_chips = math.prod(map(int, named["shape"].split("x")))
    if num_chips > jax.device_count():
        pytest.skip(f"{num_chips} devices are more than this process has")
    chip = CHIPS[named["chip"]]
    place = dataclasses.replace(here(), chip=chip, devices=tuple(jax.devices()[:num_chips]))
    cfg = override(load_config(CONFIGS / name), assignments)
    subject = subject_of(cfg, CONFIGS / name)
    programs = programs_of(cfg, subject, place).programs
    assert chip.memory_bytes is not None and programs
    for planned in programs:
        assert least_bytes(planned, cfg, subject.model) <= chip.memory_bytes, planned.name
