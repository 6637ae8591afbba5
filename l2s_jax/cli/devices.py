"""How a run meets the machine: decided once, before jax wakes up.

Lives here: the settings of XLA's CPU backend. Not here: the mesh (`sharding.py`).
"""

import os

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

    # Collectives of overlapping steps can wait for each other when cores are fewer than threads.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
