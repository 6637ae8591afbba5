"""A Hugging Face folder as a policy's workdir.

Lives here: `import_hf`, and over which devices it spreads the weights on their way. Not here:
reading weights (`model/hf/read.py`), what a workdir holds (`training/policy.py`), the way back
(`export/hf.py`).
"""

import pathlib

import jax
from jax.sharding import Mesh

from l2s_jax.export.hf import beside, refuse_existing
from l2s_jax.model.config import ModelConfig
from l2s_jax.model.hf.files import read_hf_config
from l2s_jax.sharding import MeshConfig, make_mesh
from l2s_jax.tokens.tokenizer import model_folder
from l2s_jax.training.policy import load_policy, save_policy


def import_hf(
    hf_dir: str | pathlib.Path, out: str | pathlib.Path, *, allow_non_finite: bool = False
) -> None:
    """Makes `out` a policy's workdir; the weights keep the type that they have on disk."""
    out = pathlib.Path(out)
    refuse_existing(out)
    mesh = local_mesh(read_hf_config(model_folder(hf_dir)))
    policy = load_policy(hf_dir, mesh=mesh, dtype=None, allow_non_finite=allow_non_finite)
    with beside(out) as partial:
        save_policy(partial, policy)


def local_mesh(cfg: ModelConfig) -> Mesh:
    """This host's devices, the parameters cut over all of them; one device if they do not divide.

    A model need not fit on one device to be imported.
    """
    devices = jax.local_devices()
    # Along fsdp the width is cut, and nothing else (`sharding.RULES`).
    chosen = devices if cfg.width % len(devices) == 0 else devices[:1]
    return make_mesh(MeshConfig(data=1, fsdp=len(chosen)), chosen)
