"""metrics.jsonl: what a kill leaves of it, what a resume keeps, what ends a run."""

import json

import jax.numpy as jnp
import pytest

from l2s_jax.training.metrics import FILE, MetricsFile


def lines(workdir):
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def write(workdir, steps, resume_from=0):
    with MetricsFile(workdir, resume_from=resume_from) as file:
        for step in steps:
            file.write(step, {"loss": jnp.float32(step / 2)})


def test_a_line_per_step(tmp_path):
    with MetricsFile(tmp_path, resume_from=0) as file:
        assert file.write(1, {"loss": jnp.float32(0.5), "tokens": 3}) == {"loss": 0.5, "tokens": 3}
        assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "tokens": 3.0}]  # before it is closed


def test_lines_past_the_checkpoint_are_forgotten(tmp_path):
    write(tmp_path, [1, 2, 3, 4, 5])
    write(tmp_path, [4, 5], resume_from=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    write(tmp_path, [], resume_from=0)
    assert lines(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_half_a_last_line_is_dropped(tmp_path, cut):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / FILE
    path.write_text(path.read_text()[:-cut])
    write(tmp_path, [3], resume_from=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert {p.name for p in tmp_path.iterdir()} == {FILE}


@pytest.mark.parametrize("strange", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_ends_the_run(tmp_path, strange):
    with MetricsFile(tmp_path, resume_from=0) as file:
        file.write(1, {"loss": 1.0})
        metrics = {"loss": 1.0, "grad_norm": jnp.float32(strange)}
        with pytest.raises(FloatingPointError, match=f"step 2: .*grad_norm={strange}") as raised:
            file.write(2, metrics)
    assert "loss" not in str(raised.value)
    assert [line["step"] for line in lines(tmp_path)] == [1]
