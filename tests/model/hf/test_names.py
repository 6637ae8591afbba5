import jax

from l2s_jax.model.hf.names import flatten, unflatten
from l2s_jax.model.hf.read import load_hf
from tests.tiny_models import make_folder


def test_tree_by_paths_and_back(tmp_path):
    make_folder(tmp_path, tie_word_embeddings=False)
    _, params = load_hf(tmp_path)
    assert {"lm_head", "embed.embedding", "layers.mlp.up_proj.kernel"} <= flatten(params).keys()
    assert jax.tree.structure(unflatten(flatten(params))) == jax.tree.structure(params)
