"""How fast and how frugal `load_hf` is: a 1 GB checkpoint, against reading its file.

    python benchmarks/import_hf.py [--folder F] [--repeat 5] [--sharded] [--no-torch]

Makes a checkpoint of Qwen2.5-0.5B's shape with random bfloat16 weights (988 MB; in --folder, where
it stays, or else in a temporary one), reads it once so that it lies in the page cache, and then
measures in rounds, every time in a fresh process:

    dd                  dd if=FILE of=/dev/null bs=1M: 1 MB of memory used over and over, so the
                        bytes are copied and none is kept; no loader can come near
    file.read()         Python's read of the whole file into memory: "reading the file" of the bar
    np.fromfile         the same into huge pages, the fastest single call that keeps the bytes
    load_hf             ours, types as on disk, to one CPU device
    load_hf, 8 devices  the same onto a mesh fsdp=8 of fake CPU devices
    import_hf           the whole of `l2s import`: loading, and saving through Orbax
    from_pretrained     transformers on the same folder, in bfloat16; needs torch. It maps the file
                        and returns before it has read it
    ... and touched     the same, and one value of every page looked at: what the first use costs

Seconds are of the call alone, in a process that has imported its libraries; what a first call
traces is in them. Before the call the process touches twice the checkpoint's size of memory and
frees it: a virtual machine gets memory from its host when it is first touched, which would cost
whoever comes first several times the reading. Memory is the process's peak of resident memory
during the call (VmHWM) less what was resident before, so without the libraries; mapped pages
count once touched. The bars: at least 50 % of the speed of reading, and at most the model's bytes
+ twice its largest tensor + 300 MB.

Linux only. Other work on the machine shows: compare within one run only.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
TOUCHED = "... and touched"
READS = ("dd", "file.read()", "np.fromfile")
MB = 1e6


def make_checkpoint(folder: pathlib.Path, *, sharded: bool) -> None:
    """Random weights in bfloat16; four files with an index if `sharded`."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from l2s_jax.model.hf.config import from_hf_config
    from l2s_jax.model.hf.names import expected_tensors

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    rng = np.random.default_rng(0)
    expected = expected_tensors(from_hf_config(CONFIG))
    num_files = 4 if sharded else 1
    where = {}
    for i in range(num_files):
        name = f"model-{i + 1:05d}-of-{num_files:05d}" if sharded else "model"
        tensors = {}
        for tensor in expected[i::num_files]:
            values = 0.02 * rng.standard_normal(tensor.shape, np.float32)
            tensors[tensor.name] = values.astype(ml_dtypes.bfloat16)
            where[tensor.name] = f"{name}.safetensors"
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    if sharded:
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ---- one measurement, in its own process ----


def resident(field: str) -> float:
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * float(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def touch_memory(num_bytes: int) -> None:
    """Has the machine at hand what the call will ask for; the peak counts from here on."""
    import numpy as np

    np.ones(num_bytes, np.uint8)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def measure(kind: str, folder: pathlib.Path) -> dict[str, float]:
    """Seconds of one call, and by how much it raised the peak of resident memory."""
    call = CALLS[kind](folder)
    touch_memory(2 * sum(file.stat().st_size for file in weight_files(folder)))
    before, start = resident("VmRSS"), time.perf_counter()
    kept = call()
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - before
    del kept
    return {"seconds": seconds, "peak": peak, "libraries": before}


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.safetensors"))


def prepare_dd(folder: pathlib.Path):
    command = ["dd", "of=/dev/null", "bs=1M", "status=none"]

    def call() -> None:
        for file in weight_files(folder):
            subprocess.run([*command, f"if={file}"], check=True)

    return call


def prepare_read(folder: pathlib.Path):
    return lambda: [file.read_bytes() for file in weight_files(folder)]


def prepare_fromfile(folder: pathlib.Path):
    import numpy as np

    return lambda: [np.fromfile(file, np.uint8) for file in weight_files(folder)]


def prepare_ours(folder: pathlib.Path, num_devices: int = 1):
    import jax

    from l2s_jax.model.hf.read import load_hf
    from l2s_jax.sharding import MeshConfig, make_mesh

    assert jax.device_count() == num_devices
    mesh = make_mesh(MeshConfig(data=1, fsdp=8)) if num_devices == 8 else None
    return lambda: jax.block_until_ready(load_hf(folder, dtype=None, mesh=mesh)[1])


def prepare_import(folder: pathlib.Path):
    from l2s_jax.export.import_hf import import_hf

    def call() -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as out:
            import_hf(folder, out)

    return call


def prepare_theirs(folder: pathlib.Path, touched: bool = False):
    import torch
    from transformers import Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    def call() -> Any:
        model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        if touched:
            for weight in model.parameters():
                weight.detach().reshape(-1)[::2048].float().sum()  # 2048 values are a page
        return model

    return call


CALLS = {
    "dd": prepare_dd,
    "file.read()": prepare_read,
    "np.fromfile": prepare_fromfile,
    "load_hf": prepare_ours,
    "load_hf, 8 devices": lambda folder: prepare_ours(folder, 8),
    "import_hf": prepare_import,
    "from_pretrained": prepare_theirs,
    TOUCHED: lambda folder: prepare_theirs(folder, touched=True),
}


# ---- all of them ----


def run_fresh(kind: str, folder: pathlib.Path) -> dict[str, Any]:
    """`measure` in a fresh process."""
    devices = 8 if "8 devices" in kind else 1
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, __file__, "--measure", kind, "--folder", str(folder)]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: pathlib.Path, kinds: list[str], repeat: int) -> None:
    """Prints the table; in rounds, so that all see the same noise."""
    files = weight_files(folder)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        file.read_bytes()  # into the page cache
    rounds = [{kind: run_fresh(kind, folder) for kind in kinds} for _ in range(repeat)]
    print(f"{len(files)} file(s), {total / MB:.0f} MB; medians of {repeat} fresh processes\n")
    share = [f"of {kind}" for kind in READS]
    head = ["seconds", "least", "GB/s", *share, "memory added", "libraries"]
    print(f"{'':20}" + "".join(f"{text:>16}" for text in head))
    medians: dict[str, dict[str, float]] = {}
    for kind in kinds:
        found = [one[kind] for one in rounds if "error" not in one[kind]]
        if not found:
            print(f"{kind:20} not measured: {rounds[0][kind]['error']}")
            continue
        medians[kind] = {name: statistics.median(one[name] for one in found) for name in found[0]}
        least = min(one["seconds"] for one in found)
        print(f"{kind:20}" + "".join(f"{t:>16}" for t in cells(medians, kind, least, total)))
    print_bars(medians, total)


def cells(medians: dict[str, dict[str, float]], kind: str, least: float, total: int) -> list[str]:
    """A row of the table."""
    seconds, peak, libraries = (medians[kind][name] for name in ("seconds", "peak", "libraries"))
    shares = [medians[r]["seconds"] / seconds if r in medians else None for r in READS]
    return [
        f"{seconds:.3f}",
        f"{least:.3f}",
        f"{total / 1e9 / seconds:.2f}",
        *("-" if share is None else f"{100 * share:.0f} %" for share in shares),
        "-" if kind == "dd" else f"{peak / MB:.0f} MB",
        f"{libraries / MB:.0f} MB",
    ]


def print_bars(medians: dict[str, dict[str, float]], total: int) -> None:
    """Whether the two bars hold."""
    largest = 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"]
    allowed = total + 2 * largest + 300 * MB
    print(f"\nmemory allowed: {total / MB:.0f} + 2 x {largest / MB:.0f} + 300 MB", end="")
    print(f" = {allowed / MB:.0f} MB; speed asked for: 50 % of file.read()")
    for kind in ("load_hf", "load_hf, 8 devices"):
        if kind in medians and "file.read()" in medians:
            share = medians["file.read()"]["seconds"] / medians[kind]["seconds"]
            frugal = "met" if medians[kind]["peak"] <= allowed else "MISSED"
            print(f"{kind}: memory {frugal}, speed {'met' if share >= 0.5 else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="of the checkpoint; kept")
    parser.add_argument("--repeat", type=int, default=5, help="processes per row [%(default)s]")
    parser.add_argument("--sharded", action="store_true", help="four files with an index")
    parser.add_argument("--no-torch", action="store_true", help="without transformers")
    parser.add_argument("--measure", choices=CALLS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder)))
        return
    sys.path.insert(0, str(ROOT))
    theirs = ("from_pretrained", TOUCHED) if args.no_torch else ()
    kinds = [kind for kind in CALLS if kind not in theirs]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        if not weight_files(folder):
            make_checkpoint(folder, sharded=args.sharded)
        compare(folder, kinds, args.repeat)


if __name__ == "__main__":
    main()
