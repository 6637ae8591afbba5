"""A run's adapter out to `peft`, merged out to transformers, and an adapter in with its base."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from l2s_jax.cli.main import main
from l2s_jax.export.hf import export_hf
from l2s_jax.export.peft import export_adapter
from l2s_jax.model.hf.peft import WEIGHTS
from l2s_jax.model.lora import LoraConfig
from l2s_jax.training.policy import load_policy, save_policy
from l2s_jax.training.sft import run
from tests.model.hf.test_peft import theirs_with
from tests.model.test_decoder import from_zero, full_logits, ones
from tests.tiny_models import torch_logits
from tests.training.test_sft import sft_run
from tests.training.tiny import assert_trees_equal, untaught_policy

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A Hugging Face folder `hf`, and the workdir `run` of an adapter trained on it."""
    root = tmp_path_factory.mktemp("adapter")
    base = untaught_policy()
    export_hf(
        root / "hf",
        model=base.model,
        params=base.params,
        tokenizer=base.tokenizer,
        triggers=None,
    )
    lora = LoraConfig(rank=2, alpha=3.0)
    run(sft_run(root, model=str(root / "hf"), lora=lora, num_steps=3), root / "run")
    return root


@pytest.fixture(scope="module")
def exported(root):
    argv = ["export", "--checkpoint", str(root / "run"), "--out", str(root / "out"), "--adapter"]
    assert main(argv) == 0
    return root / "out"


def tokens():
    return np.random.default_rng(0).integers(0, 32, (2, 24), dtype=np.int32)


def test_peft_computes_what_the_run_does(root, exported):
    names = {path.name for path in exported.iterdir()}
    assert {"adapter_config.json", WEIGHTS, "tokenizer.json", "l2s.json"} <= names
    policy = load_policy(root / "run")
    got = full_logits(policy.model, policy.params, tokens(), from_zero(tokens()), ones(tokens()))
    want = torch_logits(theirs_with(root / "hf", exported), tokens())
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
    base = load_policy(root / "hf")
    plain = full_logits(base.model, base.params, tokens(), from_zero(tokens()), ones(tokens()))
    assert float(np.abs(got - plain).max()) > 1e-4  # three steps did something


def test_base_and_adapter_come_in_as_one(root, exported, capsys):
    argv = ["import", "--hf", str(root / "hf"), "--adapter", str(exported)]
    assert main([*argv, "--out", str(root / "merged")]) == 0
    got, want = load_policy(root / "merged"), load_policy(root / "run")
    assert_trees_equal(got.params, want.params)
    assert got.model == want.model and got.triggers == want.triggers
    assert main([*argv, "--out", str(root / "merged")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_merged_export_is_an_ordinary_folder(root):
    argv = ["export", "--checkpoint", str(root / "run"), "--out", str(root / "whole")]
    assert main(argv) == 0
    assert_trees_equal(
        jax.device_get(load_policy(root / "whole").params),
        jax.device_get(load_policy(root / "run").params),
    )
    assert "lora" not in "".join(load_file(root / "whole" / "model.safetensors"))


def test_a_vocabulary_that_grew_is_exported_merged_only(tmp_path):
    """The base's table has no free row, so that the triggers make it grow."""
    base = untaught_policy()
    size = len(base.tokenizer.hf)
    params = base.params | {"embed": {"embedding": base.params["embed"]["embedding"][:size]}}
    model = type(base.model)(**{**vars(base.model), "vocab_size": size})
    export_hf(tmp_path / "hf", model=model, params=params, tokenizer=base.tokenizer, triggers=None)
    cfg = sft_run(tmp_path, model=str(tmp_path / "hf"), lora=LoraConfig(rank=2), num_steps=1)
    run(cfg, tmp_path / "run")
    assert load_policy(tmp_path / "run").model.vocab_size == size + 4
    with pytest.raises(
        ValueError, match=rf"grow to {size + 4} rows.*has {size}\. Export the merged"
    ):
        export_adapter(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_no_adapter(tmp_path, capsys):
    save_policy(tmp_path / "whole", untaught_policy())
    argv = ["export", "--checkpoint", str(tmp_path / "whole"), "--out", str(tmp_path / "out")]
    assert main([*argv, "--adapter"]) == 2
    assert "holds a whole model and no adapter" in capsys.readouterr().err
    assert main([*argv, "--adapter", "--dry-run"]) == 2
    assert "--dry-run lists whole models only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
