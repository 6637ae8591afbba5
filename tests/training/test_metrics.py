"""What a run's log leaves: after a kill, after a resume, and what ends a run."""

import contextlib
import json
import sys
import time

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from l2s_jax.training.metrics import FILE, SPEED_FILE, LogConfig, MetricsFile, RunLog, StepLines
from l2s_jax.training.writers import WANDB_ID_FILE, WandbConfig


def lines(workdir, file=FILE):
    return [json.loads(line) for line in (workdir / file).read_text().splitlines()]


def write(workdir, steps, resume_from=0):
    with contextlib.closing(MetricsFile(workdir, resume_from=resume_from)) as file:
        for step in steps:
            file.write(step, {"loss": jnp.float32(step / 2)})


def test_a_line_per_step(tmp_path):
    with contextlib.closing(MetricsFile(tmp_path, resume_from=0)) as file:
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
    with contextlib.closing(MetricsFile(tmp_path, resume_from=0)) as file:
        file.write(1, {"loss": 1.0})
        metrics = {"loss": 1.0, "grad_norm": jnp.float32(strange), "skipped": jnp.float32(0.0)}
        with pytest.raises(FloatingPointError, match=f"step 2: .*grad_norm={strange}") as raised:
            file.write(2, metrics)
    assert "loss" not in str(raised.value)
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_skipped_step_leaves_its_strange_numbers_out_and_counts_them(tmp_path):
    with contextlib.closing(MetricsFile(tmp_path, resume_from=0)) as file:
        numbers = file.write(1, {"loss": jnp.float32("nan"), "tokens": 2, "skipped": 1.0})
    assert numbers == {"tokens": 2.0, "skipped": 1.0, "not_finite": 1.0}
    assert lines(tmp_path) == [{"step": 1} | numbers]


def test_a_line_opens_no_tag_and_reads_back_as_it_was(tmp_path):
    text = "</script><script>alert('&')\u2028\x1b[2J"
    file = StepLines(tmp_path / "lines.jsonl", resume_from=0)
    file.write(1, {"text": text})
    file.close()
    raw = (tmp_path / "lines.jsonl").read_text()
    assert not set(raw) & set("<>&\x1b\u2028") and raw.isascii()
    assert lines(tmp_path, "lines.jsonl") == [{"step": 1, "text": text}]


def log_steps(workdir, steps, resume_from=0, **cfg):
    log = RunLog(workdir, name="test", num_steps=9, resume_from=resume_from, cfg=LogConfig(**cfg))
    with log:
        for step in steps:
            assert log.write(step, {"loss": jnp.float32(step / 2)}) == {"loss": step / 2}
            log.speed(step, {"seconds/step": 0.25})
            log.show(loss="1")
            log.advance()


def scalars(workdir):
    """(tag, step) → value of all event files, and the steps at which TensorBoard forgets."""
    values, purged = {}, []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4  # length and its checksum before, a checksum behind
            if event.HasField("session_log"):
                purged.append(event.step)
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
    return values, purged


def test_a_run_log_feeds_files_and_tensorboard(tmp_path, capsys):
    log_steps(tmp_path, [1, 2])
    assert [line["loss"] for line in lines(tmp_path)] == [0.5, 1.0]
    assert lines(tmp_path, SPEED_FILE) == [{"step": s, "seconds/step": 0.25} for s in (1, 2)]
    values, _ = scalars(tmp_path)
    assert values["loss", 2] == 1.0 and values["speed/seconds/step", 1] == 0.25
    assert "test" in capsys.readouterr().err  # the bar
    log_steps(tmp_path, [2, 3], resume_from=1)
    assert [line["step"] for line in lines(tmp_path, SPEED_FILE)] == [1, 2, 3]
    values, purged = scalars(tmp_path)
    assert values["loss", 3] == 1.5 and 2 in purged  # what came after step 1 is told anew


def test_a_log_of_nothing_makes_no_event_files(tmp_path):
    log_steps(tmp_path, [])
    log_steps(tmp_path, [1], tensorboard=False)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, SPEED_FILE}


def test_weights_and_biases_offline(tmp_path):
    """A real run without a network: one id for all its parts, and its numbers in the files."""
    wandb = WandbConfig(project="test", mode="offline")
    log_steps(tmp_path, [1], wandb=wandb, tensorboard=False)
    log_steps(tmp_path, [2], resume_from=1, wandb=wandb, tensorboard=False)
    name = (tmp_path / WANDB_ID_FILE).read_text()
    deadline = time.monotonic() + 60  # W&B's own process may still be writing
    found = []
    while len(found) < 2 and time.monotonic() < deadline:
        files = (tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
        found = [path for path in files if b"speed/seconds/step" in path.read_bytes()]
        time.sleep(0.05)
    assert len(found) == 2


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install -e .\.\[wandb\]"):
        RunLog(
            tmp_path,
            name="test",
            num_steps=1,
            resume_from=0,
            cfg=LogConfig(wandb=WandbConfig(project="test")),
        )
    with pytest.raises(ValueError, match="project is empty"):
        WandbConfig(project="")
