"""Speed: the clock, the table of peaks, and work counted by XLA as an independent second route."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.model.decoder import abstract_params
from l2s_jax.training import speed
from l2s_jax.training.speed import Clock, memory_gib, peak_flops, training_flops
from tests.training.tiny import MODEL


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


def test_work_is_six_per_weight_and_token_and_attention_by_loops():
    lengths = [5, 9, 1]
    shapes = jax.tree_util.tree_leaves_with_path(abstract_params(MODEL))
    kernels = sum(
        int(np.prod(leaf.shape)) for path, leaf in shapes if "kernel" in jax.tree_util.keystr(path)
    )
    matrices = kernels + MODEL.width * MODEL.vocab_size  # the head; here it is the embedding
    pairs = sum(length * length / 2 for length in lengths)  # a token and one before it
    per_pair = MODEL.num_layers * MODEL.num_heads * MODEL.head_dim * 2 * 2  # scores and values
    want = 3 * (2 * matrices * sum(lengths) + per_pair * pairs)
    assert training_flops(MODEL, lengths) == pytest.approx(want)
    assert training_flops(MODEL, []) == 0


def test_the_clock_adds_parts_up_and_begins_anew():
    clock = Clock()
    for _ in range(2):
        with clock.part("update"):
            time.sleep(0.02)
    numbers = clock.lap(tokens=100, useful_tokens=50, steps=2)
    assert 0.02 <= numbers["seconds/update"] <= numbers["seconds/step"]
    per_second = numbers["tokens_per_second"]
    assert per_second == pytest.approx(100 / (2 * numbers["seconds/step"]))
    assert numbers["useful_tokens_per_second"] == pytest.approx(per_second / 2)
    again = clock.lap(tokens=1, useful_tokens=1)
    assert "seconds/update" not in again and again["seconds/step"] < numbers["seconds/step"]


def test_a_part_that_fails_counts():
    clock = Clock()
    with pytest.raises(KeyError), clock.part("update"):
        raise KeyError
    assert clock.seconds["update"] >= 0


def test_share_of_the_peak(monkeypatch):
    kind = jax.devices()[0].device_kind
    clock = Clock()
    assert "mfu" not in clock.lap(tokens=1, useful_tokens=1, flops=1e12)  # none is known for a CPU
    monkeypatch.setitem(speed.PEAK_FLOPS, kind, 1e12)
    numbers = clock.lap(tokens=1, useful_tokens=1, flops=1e12)
    want = 1 / (numbers["seconds/step"] * jax.device_count())
    assert numbers["mfu"] == pytest.approx(want)


def test_memory_is_told_where_the_backend_tells_it():
    jnp.zeros(8).block_until_ready()
    told = jax.local_devices()[0].memory_stats()
    assert set(memory_gib()) == ({"memory_gib", "memory_peak_gib"} if told else set())
