"""Which checkpoints stay: by age, by a metric, by both."""

import itertools
import math

import pytest

from l2s_jax.training.retention import KeepConfig


def by_definition(values, cfg):
    """A step stays if fewer than `newest` are newer, or fewer than `best` are better."""
    stay = set()
    for step, value in values.items():
        if sum(other > step for other in values) < cfg.newest:
            stay.add(step)
        if value is None or math.isnan(value):
            continue
        better = 0
        for other, its in values.items():
            if its is None or math.isnan(its):
                continue
            gain = (its - value) if cfg.largest else (value - its)
            better += gain > 0 or (gain == 0 and other > step)
        if better < cfg.best:
            stay.add(step)
    return stay


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("newest", [1, 2, 9])
@pytest.mark.parametrize("best", [0, 1, 2, 9])
def test_by_definition(newest, best, largest):
    metric = "accuracy" if best else None
    cfg = KeepConfig(newest=newest, best=best, metric=metric, largest=largest)
    for values in itertools.product((0.25, 0.5, -1.0, math.nan, None), repeat=4):
        steps: dict[int, float | None] = dict(zip((3, 10, 20, 100), values, strict=True))
        assert cfg.stay(steps) == by_definition(steps, cfg), steps


def test_no_step_no_stay():
    assert KeepConfig().stay({}) == set()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"newest": 0}, "newest=0"),
        ({"best": -1, "metric": "x"}, "best=-1"),
        ({"best": 2}, "metric=None"),
        ({"metric": "loss"}, "best=0, metric='loss'"),
    ],
)
def test_faulty_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        KeepConfig(**fields)


def test_a_metric_that_the_run_has_not_is_named_with_those_it_has():
    with pytest.raises(ValueError, match=r"metric='acuracy' is none of this run's: loss, accuracy"):
        KeepConfig(best=1, metric="acuracy").check({"loss": 1.0, "accuracy": 0.5})
    KeepConfig().check({})
