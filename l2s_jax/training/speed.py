"""How fast a step was: seconds by part, tokens per second, memory, share of the device's peak.

Lives here: the clock of a step, the table of peaks, the floating-point work of a decoder. Not here:
where the numbers go (`training/metrics.py`).

Work is counted as model FLOPs (Chowdhery et al., arXiv 2204.02311, appendix B): 6 per parameter of
a matrix and token, and attention over the tokens before. What rematerialisation computes again does
not count; so `mfu` falls where memory is bought with time.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from l2s_jax.model.config import ModelConfig

PEAK_FLOPS = {
    # Dense bfloat16, per second and device as JAX counts them, by the start of `device_kind`; the
    # makers' data sheets. A longer name comes before one that it begins with.
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
    """What a device can do per second; None where the table does not know it, as for a CPU."""
    words = device_kind.replace("-", " ").split()
    for name, peak in PEAK_FLOPS.items():
        if words[: len(name.split())] == name.split():
            return peak
    return None


def training_flops(cfg: ModelConfig, lengths: Sequence[int]) -> float:
    """Work of one forward and backward pass over sequences of these lengths.

    The head counts as a matrix, the embedding as none; attention sees half of a square.
    """
    heads = cfg.num_heads * cfg.head_dim
    kv_heads = cfg.num_kv_heads * cfg.head_dim
    block = cfg.width * (2 * heads + 2 * kv_heads) + 3 * cfg.width * cfg.ffn_width
    matrices = cfg.num_layers * block + cfg.width * cfg.vocab_size
    length = np.asarray(lengths, np.float64)
    return float(6 * matrices * length.sum() + 6 * cfg.num_layers * heads * (length**2).sum())


def memory_gib() -> dict[str, float]:
    """Memory of the fullest of this host's devices; empty where the backend does not tell."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    return {
        name: max(found[key] for found in stats) / 2**30
        for name, key in (("memory_gib", "bytes_in_use"), ("memory_peak_gib", "peak_bytes_in_use"))
        if stats and all(key in found for found in stats)
    }


class Clock:
    """Seconds of a step by part. Parts may overlap, and need not add up to the step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time inside to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def lap(
        self,
        *,
        tokens: int,
        useful_tokens: int,
        flops: float | None = None,
        steps: int = 1,
    ) -> dict[str, float]:
        """What to log of all since the last lap, which it ends.

        Args:
          tokens: places that the model computed, padding included.
          useful_tokens: of them, those that the run is there for.
          flops: of training, for `mfu`.
          steps: that were taken; seconds are per step.
        """
        now = time.perf_counter()
        whole, self._last = now - self._last, now
        parts, self.seconds = self.seconds, {}
        numbers = {f"seconds/{name}": spent / steps for name, spent in parts.items()}
        numbers |= {
            "seconds/step": whole / steps,
            "tokens_per_second": tokens / whole,
            "useful_tokens_per_second": useful_tokens / whole,
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if flops is not None and peak is not None:
            numbers["mfu"] = flops / (whole * peak * jax.device_count())
        return numbers | memory_gib()
