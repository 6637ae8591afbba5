"""How a run meets the machine: decided once, before jax wakes up.

Lives here: the settings of XLA's CPU backend, and of libtpu where no TPU is. Not here: the mesh
(`sharding.py`).
"""

import importlib.util
import os
import pathlib

FLAG = "--xla_force_host_platform_device_count"
NUM_CPU_DEVICES = 2
"""Fixed and not the number of cores, so that a run gives the same numbers on every machine."""


def use_cpu_cores() -> None:
    """Lets a small model on a CPU use two cores, as two devices of one mesh.

    XLA splits the work of one CPU device badly when its matrices are small: two devices train the
    demo's model twice as fast. Only where nobody chose a number; accelerators are not touched.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}={NUM_CPU_DEVICES}".strip()
    import jax

    # The loops wait for what collectives make (`sharding.settled`); this does so for all else.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def quiet_absent_tpu() -> None:
    """Has libtpu, which `l2s plan` needs, say nothing on a machine without a TPU.

    Once it is installed, JAX has it look for a TPU whatever the program; it finds none, and writes
    lines to standard error that look like errors.
    """
    if not tpu_chips() and importlib.util.find_spec("libtpu") is not None:
        quiet_libtpu()


def tpu_chips() -> list[pathlib.Path]:
    """The device files of this machine's TPU chips."""
    return [*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]


def quiet_libtpu() -> None:
    """Has libtpu look for no TPU and say nothing of it: it is here to compile."""
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # or it asks Google's metadata server, and waits for it
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or the second process at a time is refused
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
