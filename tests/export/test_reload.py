"""A fresh process notices whatever differs between what was exported and what is on disk."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l2s_jax.export.hf import export_hf
from l2s_jax.export.reload import check_reloaded, facts, folder_facts
from l2s_jax.model.hf.files import SINGLE
from l2s_jax.model.hf.write import fingerprint, from_memory, hf_tensors
from tests.export.tiny import policy_parts


@pytest.fixture(scope="module")
def parts():
    return policy_parts()


@pytest.fixture
def folder(parts, tmp_path):
    export_hf(tmp_path / "out", **parts)
    return tmp_path / "out"


def wanted(parts, folder):
    """The facts by another route: from memory, but for the generation config."""
    tensors = hf_tensors(parts["model"], from_memory(parts["params"]), "float32")
    prints = {name: fingerprint(array) for name, array in tensors}
    generation = json.loads((folder / "generation_config.json").read_text())
    return facts(prints, parts["model"], generation, parts["tokenizer"], parts["triggers"])


def test_one_changed_number_is_noticed(parts, folder):
    want = wanted(parts, folder)
    check_reloaded(folder, want)
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.1.self_attn.q_proj.bias"][2] += np.float32(1e-7)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn\.q_proj\.bias") as error:
        check_reloaded(folder, want)
    assert "layers.0" not in str(error.value)


def test_every_other_file_counts(parts, folder):
    want = wanted(parts, folder)
    assert folder_facts(folder) == want

    def differs(name, change):
        """The facts that change with a file."""
        path = folder / name
        before = path.read_text()
        path.write_text(change(before))
        got = folder_facts(folder)
        path.write_text(before)
        return {fact for fact in want if got.get(fact) != want[fact]}

    assert differs("config.json", lambda t: t.replace("1e-06", "2e-06")) == {"config"}
    assert differs("generation_config.json", lambda t: t.replace("10000.0", "9.0")) == {
        "generation"
    }
    assert "ids of a question" in differs("chat_template.jinja", lambda t: t.replace("Q", "q"))
    (folder / "l2s.json").unlink()
    assert "triggers" not in folder_facts(folder)


def test_a_folder_that_cannot_be_read(folder, parts):
    want = wanted(parts, folder)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-1])
    with pytest.raises(RuntimeError, match="a fresh process cannot read the export"):
        check_reloaded(folder, want)
