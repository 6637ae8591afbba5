"""What every test runs under: eight fake devices, checked annotations, no silent promotion."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Most of the suite's time is compiling, and most programs run once or twice. A user's processes
# (`user_environment`) have the optimisations.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("l2s_jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real benchmarks, traces and tokenizers; skips where it is not at hand."""
    root = pathlib.Path(os.environ.get("L2S_SHARED", REPOSITORY.parent / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"real data not found: {root / 'data'} (set L2S_SHARED to its parent)")
    return root / "data"


@pytest.fixture(scope="session")
def user_environment(tmp_path_factory) -> dict[str, str]:
    """The environment of a real `l2s` process, as a user has it: one device, optimised programs.

    All such processes of a test run, whichever worker starts them, keep what they compile in one
    place, so that it is compiled once.
    """
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    own = {name: value for name, value in os.environ.items() if name not in ours}
    base = tmp_path_factory.getbasetemp()
    whole_run = base.parent if "PYTEST_XDIST_WORKER" in own else base
    return own | {
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{own['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "JAX_COMPILATION_CACHE_DIR": str(whole_run / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs live no longer than their test file.

    Each takes many of the memory mappings that a process may have (65,530 on Linux by default);
    a worker that keeps those of all files ends with "Aborted" inside a compilation.
    """
    yield
    jax.clear_caches()
