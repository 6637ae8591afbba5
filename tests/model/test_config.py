import pytest

from l2s_jax.config import from_json, to_json
from l2s_jax.model.config import ModelConfig, RopeScaling

TINY = {
    "vocab_size": 96,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_width": 48,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, r"ModelConfig\.width=0"),
        ({"max_positions": -1}, r"ModelConfig\.max_positions=-1"),
        ({"num_kv_heads": 3}, "num_heads=4 is no multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7: rotary positions turn pairs"),
    ],
)
def test_shapes_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**TINY | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 0.5}, "factor must be at least 1"),
        ({"factor": float("nan")}, "factor must be at least 1"),
        ({"low_freq_factor": 0.0}, "low_freq_factor above 0"),
        ({"low_freq_factor": 4.0}, "below high_freq_factor"),
        ({"original_positions": 0}, "original_positions must be at least 1"),
    ],
)
def test_scalings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**LLAMA3 | change)


def test_a_shape_survives_its_file():
    for scaling in (None, RopeScaling(**LLAMA3)):
        cfg = ModelConfig(**TINY, rope_scaling=scaling, qk_norm=True)
        assert from_json(ModelConfig, to_json(cfg)) == cfg
