"""One leaf at a time from a checkpoint, whatever mesh wrote it."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

from l2s_jax.model.decoder import abstract_params, init_params
from l2s_jax.model.hf.names import flatten
from l2s_jax.sharding import MeshConfig, make_mesh, shardings
from l2s_jax.training.leaves import CheckpointLeaves
from l2s_jax.training.parameters import save_params
from tests.export.tiny import tiny_model


@pytest.mark.parametrize("axes", [{"fsdp": 1}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaves_are_those_that_were_saved(tmp_path, axes, dtype):
    model = tiny_model()
    num = int(np.prod(list(axes.values())))
    mesh = make_mesh(MeshConfig(data=1, **axes), jax.devices()[:num])
    params = nn.unbox(init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    params = jax.device_put(params, shardings(abstract_params(model), mesh))
    save_params(tmp_path, params)
    leaves, want = CheckpointLeaves(tmp_path), flatten(params)
    assert {path: leaf.shape for path, leaf in leaves.shapes.items()} == {
        path: leaf.shape for path, leaf in want.items()
    }
    for path, leaf in want.items():
        got = leaves.fetch(path)
        assert type(got) is np.ndarray and got.dtype == leaves.shapes[path].dtype == leaf.dtype
        np.testing.assert_array_equal(got, leaf)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        CheckpointLeaves(tmp_path)
    save_params(tmp_path, {"embed": {"embedding": jax.numpy.ones((2, 3))}})
    with pytest.raises(ValueError, match=r"holds no parameter 'lm_head'"):
        CheckpointLeaves(tmp_path).fetch("lm_head")


PROC = pathlib.Path("/proc/self/status")
GROWTH = """
import contextlib, pathlib, sys
import jax
from l2s_jax.training.leaves import CheckpointLeaves

def peak():
    # Not ru_maxrss: a child inherits that of the process that forked it.
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024

jax.devices()
leaves = CheckpointLeaves(pathlib.Path(sys.argv[1]))
leaves.fetch("small")
with contextlib.suppress(OSError):  # not every kernel lets a process
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # begin its peak anew
before, kept = peak(), []
for path in leaves.shapes:
    leaf = leaves.fetch(path)
    if sys.argv[2] == "all":
        kept.append(leaf)
print(peak() - before)
"""


@pytest.mark.skipif(not PROC.exists(), reason="peak memory is read from /proc")
def test_the_host_holds_one_leaf(tmp_path):
    """A fresh process reads 10 leaves of 40 MB; its peak is that of a few, not of the model.

    A leaf costs its bytes on disk and its array. Above 32 MB, so that the allocator gives freed
    memory back and keeps none of the last ones. A reader that keeps them all shows what the bound
    would catch.
    """
    rng = np.random.default_rng(0)
    size = 40 * 2**20
    tree = {f"leaf{i}": rng.random(size // 4, dtype=np.float32) for i in range(10)}
    save_params(tmp_path, jax.device_put(tree | {"small": np.ones(3, np.float32)}))
    grown = {}
    for kept in ("one", "all"):
        command = [sys.executable, "-c", GROWTH, str(tmp_path), kept]
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[kept] = int(done.stdout) / (10 * size)
    assert grown["one"] < 0.5 < 0.9 < grown["all"]
