import json

import pytest

from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.config import from_hf_config, to_hf_config

TINY = {
    "vocab_size": 96,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_width": 48,
}
HF = to_hf_config(ModelConfig(**TINY), stop_id=1, pad_id=0)

REAL = {
    "Qwen2.5-0.5B-Instruct": (151_936, 896, 24, 14, 2, 64, 4864, True),
    "Qwen2.5-1.5B-Instruct": (151_936, 1536, 28, 12, 2, 128, 8960, True),
    "Qwen2.5-3B": (151_936, 2048, 36, 16, 2, 128, 11008, True),
    "Qwen2.5-7B-Instruct": (152_064, 3584, 28, 28, 4, 128, 18944, False),
    "Qwen2.5-Math-1.5B": (151_936, 1536, 28, 12, 2, 128, 8960, True),
    "DeepSeek-R1-Distill-Qwen-1.5B": (151_936, 1536, 28, 12, 2, 128, 8960, False),
}


@pytest.mark.parametrize("name", REAL)
def test_real_configs_are_read(shared_data, name):
    cfg = from_hf_config(json.loads((shared_data / "configs" / name / "config.json").read_text()))
    shape = (cfg.vocab_size, cfg.width, cfg.num_layers, cfg.num_heads, cfg.num_kv_heads)
    assert (*shape, cfg.head_dim, cfg.ffn_width, cfg.tied) == REAL[name]
    assert cfg.rope_theta == (1e4 if "Math" in name or "Distill" in name else 1e6)


@pytest.mark.parametrize("name", ["Qwen3-1.7B", "Qwen3-4B", "Llama-3.2-1B-Instruct"])
def test_other_families_are_refused_by_name(shared_data, name):
    hf = json.loads((shared_data / "configs" / name / "config.json").read_text())
    with pytest.raises(ValueError, match=f"model_type={hf['model_type']!r} is not implemented"):
        from_hf_config(hf)


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tied):
    cfg = ModelConfig(**TINY, tied=tied, rope_theta=5e5, rms_eps=1e-5, max_positions=777)
    assert from_hf_config(json.loads(json.dumps(to_hf_config(cfg, stop_id=1, pad_id=None)))) == cfg


def test_older_spelling_of_rope_theta():
    hf = {name: value for name, value in HF.items() if name != "rope_parameters"}
    assert from_hf_config(hf | {"rope_theta": 1234.0}).rope_theta == 1234.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope type 'linear'"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta='big'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"hidden_size": None}, "lacks the field 'hidden_size'"),
        ({"vocab_size": "96"}, "vocab_size='96'"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": 3}, "no multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0"),
    ],
)
def test_refusals_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(HF | change)


def test_what_is_no_qwen2_is_not_written():
    with pytest.raises(ValueError, match="no Qwen2 model"):
        to_hf_config(ModelConfig(**TINY | {"head_dim": 16}), stop_id=1, pad_id=0)
    with pytest.raises(ValueError, match=r"ModelConfig\.width=0"):
        ModelConfig(**TINY | {"width": 0})
