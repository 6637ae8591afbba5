"""A Hugging Face folder as a workdir: types, refusals, and which devices carry it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l2s_jax.cli.main import main
from l2s_jax.export.import_hf import import_hf, local_mesh
from l2s_jax.model.hf.files import SINGLE
from l2s_jax.model.hf.read import load_hf
from l2s_jax.training.parameters import saved_params
from l2s_jax.training.policy import load_policy
from tests.export.tiny import tiny_model
from tests.tiny_models import FAMILIES, make_folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_workdir_holds_what_the_folder_held(tmp_path, family, dtype):
    make_folder(tmp_path / "hf", family=family, dtype=dtype, tie_word_embeddings=False)
    import_hf(tmp_path / "hf", tmp_path / "run")
    assert {leaf.dtype for leaf in saved_params(tmp_path / "run").values()} == {jnp.dtype(dtype)}
    policy = load_policy(tmp_path / "run", dtype=None)
    cfg, params = load_hf(tmp_path / "hf", dtype=None)
    assert policy.model == cfg and policy.origin is not None
    assert policy.origin.config == json.loads((tmp_path / "hf" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, policy.params, params)


def test_a_workdir_that_is_there_is_kept(tmp_path):
    make_folder(tmp_path / "hf")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        import_hf(tmp_path / "hf", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes"]


def test_what_is_not_finite_needs_the_flag(tmp_path, capsys):
    make_folder(tmp_path / "hf", tie_word_embeddings=True)
    tensors = load_file(tmp_path / "hf" / SINGLE)
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, tmp_path / "hf" / SINGLE)
    command = ["import", "--hf", str(tmp_path / "hf"), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "model.safetensors: tensor 'model.norm.weight' holds values that are not finite" in said
    assert "--allow-non-finite" in said
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]  # nothing is left behind
    assert main([*command, "--allow-non-finite"]) == 0
    scale = np.asarray(load_policy(tmp_path / "run").params["final_norm"]["scale"])
    assert np.isnan(scale[3]) and np.isfinite(scale).sum() == len(scale) - 1


@pytest.mark.parametrize(("width", "num_devices"), [(32, 8), (36, 1)])
def test_all_devices_carry_the_weights_if_they_divide(width, num_devices):
    assert local_mesh(tiny_model(width=width)).size == num_devices
