"""config.json and ModelConfig, on real files, against transformers, and what is refused."""

import dataclasses
import json

import pytest

from l2s_jax.model.config import ModelConfig, RopeScaling
from l2s_jax.model.hf.config import family, from_hf_config, to_hf_config
from l2s_jax.model.hf.unsupported import FIXED, NEUTRAL, OFF
from tests.model.test_config import LLAMA3, TINY

CFG = ModelConfig(**TINY)
KINDS = {
    "qwen2": CFG,
    "qwen3": dataclasses.replace(CFG, qkv_bias=False, qk_norm=True, head_dim=16),
    "qwen3-biases": dataclasses.replace(CFG, o_bias=True, qk_norm=True),
    "llama": dataclasses.replace(CFG, qkv_bias=False, rope_scaling=RopeScaling(**LLAMA3)),
    "llama-biases": dataclasses.replace(CFG, o_bias=True, mlp_bias=True, head_dim=16),
}
HF = {name: to_hf_config(cfg, stop_id=1, pad_id=0) for name, cfg in KINDS.items()}
SCALED = HF["llama"]["rope_parameters"]

REAL = {  # name → vocabulary, width, layers, heads, key heads, head size, feed-forward, tied
    "Qwen2.5-0.5B": (151_936, 896, 24, 14, 2, 64, 4864, True),
    "Qwen2.5-0.5B-Instruct": (151_936, 896, 24, 14, 2, 64, 4864, True),
    "Qwen2.5-1.5B-Instruct": (151_936, 1536, 28, 12, 2, 128, 8960, True),
    "Qwen2.5-3B": (151_936, 2048, 36, 16, 2, 128, 11008, True),
    "Qwen2.5-7B-Instruct": (152_064, 3584, 28, 28, 4, 128, 18944, False),
    "Qwen2.5-Math-1.5B": (151_936, 1536, 28, 12, 2, 128, 8960, True),
    "DeepSeek-R1-Distill-Qwen-1.5B": (151_936, 1536, 28, 12, 2, 128, 8960, False),
    "Qwen3-1.7B": (151_936, 2048, 28, 16, 8, 128, 6144, True),
    "Qwen3-4B": (151_936, 2560, 36, 32, 8, 128, 9728, True),
    "Llama-3.2-1B-Instruct": (128_256, 2048, 16, 32, 8, 64, 8192, True),
}


def read(shared_data, name):
    return json.loads((shared_data / "configs" / name / "config.json").read_text())


@pytest.mark.parametrize("name", REAL)
def test_real_configs_are_read(shared_data, name):
    cfg = from_hf_config(read(shared_data, name))
    shape = (cfg.vocab_size, cfg.width, cfg.num_layers, cfg.num_heads, cfg.num_kv_heads)
    assert (*shape, cfg.head_dim, cfg.ffn_width, cfg.tied) == REAL[name]
    short = "Math" in name or "Distill" in name
    assert cfg.rope_theta == (5e5 if "Llama" in name else 1e4 if short else 1e6)
    assert cfg.rms_eps == (1e-5 if "Llama" in name else 1e-6)
    assert cfg.qkv_bias == ("Qwen3" not in name and "Llama" not in name)
    assert cfg.qk_norm == ("Qwen3" in name) and not cfg.o_bias and not cfg.mlp_bias


@pytest.mark.parametrize("name", REAL)
def test_real_configs_go_back_as_they_came(shared_data, name):
    hf = read(shared_data, name)
    back = to_hf_config(from_hf_config(hf), stop_id=None, pad_id=151_643, origin=hf)
    assert back == {key: hf[key] for key in hf if key not in ("auto_map", "_name_or_path")}


@pytest.mark.parametrize("name", REAL)
def test_without_an_origin_the_family_is_found(shared_data, name):
    hf = read(shared_data, name)
    assert family(from_hf_config(hf)) == hf["model_type"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(kind, tied):
    cfg = dataclasses.replace(KINDS[kind], tied=tied, rope_theta=5e5, rms_eps=1e-5)
    cfg = dataclasses.replace(cfg, max_positions=777)
    assert from_hf_config(json.loads(json.dumps(to_hf_config(cfg, stop_id=1, pad_id=None)))) == cfg


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_builds_the_same_decoder(tmp_path, kind):
    """What we write, it reads; what it writes, we read; and its parameters are as many as ours."""
    import jax
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from l2s_jax.model.decoder import abstract_params

    (tmp_path / "config.json").write_text(json.dumps(HF[kind]))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == kind.split("-")[0] == family(KINDS[kind])
    assert config.rope_parameters == HF[kind]["rope_parameters"]
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert from_hf_config(again) == KINDS[kind]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ours = jax.tree.leaves(abstract_params(KINDS[kind]))
    assert sum(int(np.prod(leaf.shape)) for leaf in ours) == model.num_parameters()


@pytest.mark.parametrize("theta", [5e5, 1234.0])
def test_every_spelling_of_rotary_positions(theta):
    """Releases before 5 wrote rope_theta beside rope_scaling, the oldest `type` for rope_type."""
    bare = {k: v for k, v in HF["llama"].items() if not k.startswith("rope_")}
    inner = {k: v for k, v in SCALED.items() if k != "rope_theta"}
    older = {"type" if k == "rope_type" else k: v for k, v in inner.items()}
    want = dataclasses.replace(KINDS["llama"], rope_theta=theta)
    for fields in (
        {"rope_parameters": inner | {"rope_theta": theta}},
        {"rope_parameters": inner, "rope_theta": theta},
        {"rope_scaling": inner, "rope_theta": theta},
        {"rope_scaling": older, "rope_theta": theta},
        {"rope_scaling": inner | {"type": "llama3"}, "rope_theta": theta},
        {"rope_scaling": inner, "rope_parameters": inner, "rope_theta": theta},
    ):
        assert from_hf_config(bare | fields) == want
    plain = dataclasses.replace(want, rope_scaling=None)
    for fields in ({}, {"rope_scaling": None}, {"rope_scaling": {"type": "default"}}):
        assert from_hf_config(bare | {"rope_theta": theta} | fields) == plain
    assert from_hf_config(bare).rope_theta == 10_000.0


def test_defaults_are_those_of_transformers():
    from transformers import AutoConfig

    for kind in ("qwen2", "qwen3", "llama"):
        optional = "head_dim rms_norm_eps max_position_embeddings tie_word_embeddings".split()
        optional += ["attention_bias", "mlp_bias", "rope_theta", "rope_parameters", "rope_scaling"]
        few = {k: v for k, v in HF[kind].items() if k not in [*optional, "model_type"]}
        cfg = from_hf_config(few | {"model_type": kind})
        theirs = AutoConfig.for_model(kind, **few)
        head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // 4
        assert (cfg.head_dim, cfg.tied) == (head_dim, theirs.tie_word_embeddings)
        assert (cfg.rms_eps, cfg.max_positions) == (
            theirs.rms_norm_eps,
            theirs.max_position_embeddings,
        )
        assert cfg.rope_theta == theirs.rope_parameters["rope_theta"]
        assert cfg.o_bias == getattr(theirs, "attention_bias", False)
    absent = {k: v for k, v in HF["llama"].items() if k != "num_key_value_heads"}
    assert from_hf_config(absent).num_kv_heads == 4


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("qwen2", {"model_type": "qwen3_moe"}, "model_type='qwen3_moe': a mixture of experts"),
        ("qwen2", {"model_type": "mixtral"}, "model_type='mixtral': a mixture of experts"),
        ("qwen2", {"model_type": "gemma3"}, "model_type='gemma3': not implemented.*qwen2, qwen3"),
        ("qwen2", {"model_type": None}, "model_type=None"),
        ("qwen2", {"architectures": ["Qwen2ForRewardModel"]}, "only Qwen2ForCausalLM"),
        ("qwen2", {"architectures": "Qwen2ForCausalLM"}, "only Qwen2ForCausalLM"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9}, "use_sliding_window=True"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.*window"),
        ("qwen3", {"layer_types": ["full_attention"]}, "names 1 layers.*num_hidden_layers=2"),
        ("qwen3", {"layer_types": 2}, "layer_types=2"),
        ("llama", {"sliding_window": 4096}, "sliding_window=4096: attention over a window"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act='gelu': only silu"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1: training with dropout"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config=.*quantized"),
        ("llama", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0: scaled"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ("llama", {"bias": True}, "bias=True: these biases"),
        (
            "qwen2",
            {"attention_bias": False},
            "attention_bias=False: a qwen2 model.*always has True",
        ),
        ("qwen3", {"mlp_bias": True}, "mlp_bias=True: a qwen3 model"),
        ("qwen2", {"hidden_size": None}, "lacks the field 'hidden_size'"),
        ("qwen2", {"vocab_size": "96"}, "vocab_size='96'"),
        ("qwen2", {"num_attention_heads": 0}, "num_attention_heads=0"),
        ("qwen2", {"num_attention_heads": 6}, "hidden_size=32 is no multiple.*heads=6"),
        ("qwen2", {"num_key_value_heads": 3}, "no multiple of num_kv_heads=3"),
        ("qwen2", {"head_dim": 7}, "head_dim=7"),
        ("qwen2", {"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0"),
        ("qwen2", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false'"),
        ("llama", {"attention_bias": 1}, "attention_bias=1 must be true or false"),
    ],
)
def test_refusals_name_field_and_value(kind, change, message):
    with pytest.raises(ValueError, match=message):
        from_hf_config(HF[kind] | change)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "'yarn'.*only the rope types default and llama3"),
        ({"type": "linear", "factor": 2.0}, "'linear'"),
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic'"),
        ({"rope_type": "longrope"}, "'longrope'"),
        ({"rope_type": ["llama3"]}, "only the rope types"),
        ({"rope_type": "default", "type": "yarn"}, "'yarn'"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, r"\['mrope_section'\] mean nothing"),
        ({"full_attention": {"rope_type": "default"}}, r"\['full_attention'\] mean nothing"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_type": "default", "rope_theta": "big"}, "rope_theta='big'"),
        ({"rope_type": "default", "rope_theta": 77.0}, "rope_theta=500.0: .* says 77.0"),
        (SCALED | {"factor": 0.5}, "factor must be at least 1"),
        (SCALED | {"low_freq_factor": 4.0}, "below high_freq_factor"),
        (SCALED | {"high_freq_factor": None}, "lacks the field 'high_freq_factor'"),
        (SCALED | {"original_max_position_embeddings": 0}, "original_max_position_embeddings=0"),
        ("llama3", "rope_.*='llama3': must be an object"),
    ],
)
@pytest.mark.parametrize("where", ["rope_parameters", "rope_scaling"])
def test_other_rotary_positions_are_refused(where, rope, message):
    bare = {k: v for k, v in HF["llama"].items() if not k.startswith("rope_")}
    theta = 500.0 if isinstance(rope, dict) and rope.get("rope_theta") == 77.0 else 5e5
    if isinstance(rope, dict) and rope.get("rope_type") == "llama3":
        rope = rope | {"rope_theta": theta}
    with pytest.raises(ValueError, match=message):
        from_hf_config(bare | {"rope_theta": theta, where: rope})


def test_spellings_that_disagree_are_refused():
    other = {"rope_type": "default"}
    with pytest.raises(ValueError, match=r"rope_parameters=.*rope_scaling=.*disagree"):
        from_hf_config(HF["llama"] | {"rope_scaling": other})
    with pytest.raises(ValueError, match=r"partial_rotary_factor=0\.25"):
        from_hf_config(HF["llama"] | {"partial_rotary_factor": 0.25})


def test_every_field_of_the_tables_is_refused_and_its_neutral_value_is_not():
    for name in OFF:
        with pytest.raises(ValueError, match=f"{name}=3"):
            from_hf_config(HF["llama"] | {name: 3})
        for value in (None, False, 0):
            assert from_hf_config(HF["llama"] | {name: value}) == KINDS["llama"]
    for name, (value, _) in NEUTRAL.items():
        with pytest.raises(ValueError, match=f"{name}=3"):
            from_hf_config(HF["llama"] | {name: 3})
        for same in (None, value):
            assert from_hf_config(HF["llama"] | {name: same}) == KINDS["llama"]
    for kind, fields in FIXED.items():
        for name, value in fields.items():
            with pytest.raises(ValueError, match=f"{name}={not value}"):
                from_hf_config(HF[kind] | {name: not value})
            assert from_hf_config(HF[kind] | {name: value}) == KINDS[kind]


def test_harmless_fields_are_let_through():
    fields = {"pretraining_tp": 2, "mask_value": -10000, "use_cache": False, "max_window_layers": 1}
    for kind in ("qwen2", "qwen3", "llama"):
        assert from_hf_config(HF[kind] | fields) == KINDS[kind]
    for kind in ("qwen2", "qwen3"):
        unused = {"use_sliding_window": False, "sliding_window": 4096}
        assert from_hf_config(HF[kind] | unused) == KINDS[kind]


ORIGIN = {name: value for name, value in HF["llama"].items() if name != "dtype"} | {
    "auto_map": {"AutoModel": "code.Model"},
    "_name_or_path": "there",
    "torch_dtype": "bfloat16",
    "eos_token_id": [5, 6],
    "unknown_to_us": {"kept": True},
}


def test_an_origin_is_kept_but_for_what_changed():
    cfg = dataclasses.replace(KINDS["llama"], vocab_size=100)
    back = to_hf_config(cfg, stop_id=6, pad_id=3, origin=ORIGIN, dtype="float16")
    want = ORIGIN | {"vocab_size": 100, "torch_dtype": "float16", "pad_token_id": 3}
    assert back == {k: v for k, v in want.items() if k not in ("auto_map", "_name_or_path")}
    assert to_hf_config(cfg, stop_id=7, pad_id=3, origin=ORIGIN)["eos_token_id"] == 7
    no_pad = ORIGIN | {"pad_token_id": None}
    assert to_hf_config(cfg, stop_id=6, pad_id=3, origin=no_pad)["pad_token_id"] is None
    newer = {k: v for k, v in ORIGIN.items() if k != "torch_dtype"}
    assert (
        to_hf_config(cfg, stop_id=6, pad_id=3, origin=newer, dtype="float16")["dtype"] == "float16"
    )
    assert "auto_map" in ORIGIN  # the caller's own is not touched


@pytest.mark.parametrize(
    "change", [{"rope_theta": 1.0}, {"tied": False}, {"qk_norm": True}, {"rope_scaling": None}]
)
def test_a_model_that_is_not_its_origin_is_refused(change):
    cfg = dataclasses.replace(KINDS["llama"], **change)
    with pytest.raises(ValueError, match=f"the model has .*'{next(iter(change))}'"):
        to_hf_config(cfg, stop_id=6, pad_id=3, origin=ORIGIN)


def test_how_we_compute_is_no_part_of_the_file():
    cfg = dataclasses.replace(KINDS["llama"], dtype="bfloat16", remat="full")
    assert to_hf_config(cfg, stop_id=1, pad_id=0, origin=HF["llama"]) == HF["llama"]


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 16},  # qwen2's class cuts the width
        {"mlp_bias": True},
        {"qkv_bias": False, "o_bias": True},
        {"qk_norm": True},  # with biases on q, k, v alone
        {"qk_norm": True, "qkv_bias": False, "mlp_bias": True},
        {"qkv_bias": False, "width": 30},  # llama's class refuses it
    ],
)
def test_what_no_family_is_is_not_written(change):
    with pytest.raises(ValueError, match="no class of transformers is a decoder with"):
        to_hf_config(dataclasses.replace(CFG, **change), stop_id=1, pad_id=0)
