import json

import jax
import numpy as np
import pytest

from l2s_jax.model.decoder import abstract_params
from l2s_jax.model.hf.config import family, from_hf_config, to_hf_config
from l2s_jax.model.presets import PRESETS, preset

REAL = [
    "Qwen2.5-0.5B",
    "Qwen2.5-0.5B-Instruct",
    "Qwen2.5-1.5B-Instruct",
    "Qwen2.5-3B",
    "Qwen2.5-7B-Instruct",
    "Qwen2.5-Math-1.5B",
    "DeepSeek-R1-Distill-Qwen-1.5B",
    "Qwen3-1.7B",
    "Qwen3-4B",
    "Llama-3.2-1B-Instruct",
]
# In billions, as the model cards say (Qwen2.5's technical report: 0.49, 1.54, 3.09, 7.61, ...).
BILLIONS = {
    "Qwen2.5-0.5B": 0.49,
    "Qwen2.5-1.5B": 1.54,
    "Qwen2.5-3B": 3.09,
    "Qwen2.5-7B": 7.61,
    "Qwen2.5-14B": 14.7,
    "Qwen2.5-32B": 32.5,
    "Qwen2.5-72B": 72.7,
    "Qwen3-8B": 8.2,
    "Qwen3-14B": 14.8,
    "Qwen3-32B": 32.8,
    "Llama-3.2-1B": 1.23,
    "Llama-3.2-3B": 3.21,
    "Llama-3.1-8B": 8.03,
    "Llama-3.1-70B": 70.6,
}


@pytest.mark.parametrize("name", REAL)
def test_presets_are_the_real_files(shared_data, name):
    hf = json.loads((shared_data / "configs" / name / "config.json").read_text())
    if name.startswith("Llama"):  # the copy at hand lacks its scaling; the model's own file has it
        hf["rope_scaling"] = to_hf_config(preset(name), stop_id=None, pad_id=None)["rope_scaling"]
    assert preset(name) == from_hf_config(hf)


@pytest.mark.parametrize("name", BILLIONS)
def test_number_of_parameters(name):
    leaves = jax.tree.leaves(abstract_params(preset(name)))
    billions = sum(int(np.prod(leaf.shape)) for leaf in leaves) / 1e9
    assert billions == pytest.approx(BILLIONS[name], rel=0.01)


def test_every_preset_is_of_the_family_in_its_name():
    for name, cfg in PRESETS.items():
        kind = next(kind for kind in ("qwen3", "qwen", "llama") if kind in name.lower())
        assert family(cfg) == {"qwen": "qwen2"}.get(kind, kind)
        hf = to_hf_config(cfg, stop_id=None, pad_id=None)
        assert from_hf_config(json.loads(json.dumps(hf))) == cfg


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "Near it are Qwen2.5-1.5B-Instruct"),
        ("qwen3-4b", "Qwen3-4B"),
        ("zzz", "There are Qwen2-0.5B"),
    ],
)
def test_unknown_names_list_near_ones(name, near):
    with pytest.raises(ValueError, match=f"preset '{name}' is not known.*{near}"):
        preset(name)
