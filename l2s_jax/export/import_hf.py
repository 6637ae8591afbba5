"""A Hugging Face folder as a policy's workdir.

Lives here: `import_hf`. Not here: reading weights (`model/hf/read.py`), what a workdir holds
(`training/policy.py`), the way back (`export/hf.py`).
"""

import pathlib

from l2s_jax.export.hf import beside, refuse_existing
from l2s_jax.training.policy import load_policy, save_policy


def import_hf(
    hf_dir: str | pathlib.Path, out: str | pathlib.Path, *, allow_non_finite: bool = False
) -> None:
    """Makes `out` a policy's workdir with the weights and tokenizer of a Hugging Face folder."""
    out = pathlib.Path(out)
    refuse_existing(out)
    policy = load_policy(hf_dir)
    with beside(out) as partial:
        save_policy(partial, policy)
