"""Attention over whole sequences: time and memory of the routes, here or compiled for a TPU.

    python benchmarks/attention.py [--length 4096] [--rows 1] [--segments 1] [--dtype float32]
    TPU_SKIP_MDS_QUERY=1 python benchmarks/attention.py --topology v5e:2x2 [--length 4096]

The first times output and gradients on this machine, for the heads of Qwen2.5-0.5B (14 query, 2
key-value, size 64): dense scores, the route of this platform, and blocks in XLA; with the memory
that the compiled program holds beside its arguments and results, and the greatest difference of a
gradient from the dense one, relative to its greatest entry. On a GPU take --dtype bfloat16: that
is what cuDNN's kernels want, and nothing else has tried them yet.

The second needs `libtpu` (extra `plan`) and no TPU: it compiles one training step of
Qwen2.5-0.5B (AdamW in float32, bfloat16 computation, full remat, fsdp over all chips, one row a
chip) with each of dense scores, blocks and splash, and prints memory a chip.

Other work on the machine shows: compare within one run only.
"""

import argparse
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from l2s_jax.model.blockwise import attend_blocks
from l2s_jax.model.presets import preset
from l2s_jax.model.routes import attend_on, cut
from l2s_jax.model.seen import Attend, Seen, visible
from l2s_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from l2s_jax.training.optim import OptimConfig, make_optimizer
from l2s_jax.training.sft import loss_of
from l2s_jax.training.state import abstract_state, state_shardings
from l2s_jax.training.step import compile_step
from l2s_jax.types import Batch

HEADS, KV_HEADS, SIZE = 14, 2, 64
MIB = 2**20
TYPES = {"weights": jnp.float32, "easy": jnp.bool_, "routing": jnp.bool_}  # others are ids


def attend_dense(q_BTHE: Any, k_BTKE: Any, v_BTKE: Any, seen: Seen) -> Any:
    """With all scores at once."""
    mask_B1TT = visible(seen)[:, None]
    return jax.nn.dot_product_attention(q_BTHE, k_BTKE, v_BTKE, mask=mask_B1TT)


def gradients(attend: Attend) -> Any:
    def loss(q: Any, k: Any, v: Any, seen: Seen) -> Any:
        return jnp.sum(jnp.square(attend(q, k, v, seen).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, (0, 1, 2)))


def best_of(call: Any, repeat: int) -> float:
    """Seconds of the fastest call."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return min(taken)


def here(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    shape, dtype = (args.rows, args.length), jnp.dtype(args.dtype)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (jnp.asarray(rng.normal(size=(*shape, n, SIZE)), dtype) for n in heads)
    row = np.sort(np.arange(args.length) * args.segments // args.length + 1)
    seen = Seen(jnp.asarray(np.broadcast_to(row, shape), jnp.int32))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    want = None
    for name, attend in {
        "dense": attend_dense,
        f"route of {jax.default_backend()}": attend_on(mesh),
        "blocks": attend_blocks,
    }.items():
        back = gradients(attend).lower(q, k, v, seen).compile()
        got = [np.asarray(x, np.float32) for x in back(q, k, v, seen)]
        want = want or got
        apart = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, want, strict=True))
        forward = best_of(functools.partial(jax.jit(attend), q, k, v, seen), args.repeat)
        both = best_of(functools.partial(back, q, k, v, seen), args.repeat)
        held = back.memory_analysis().temp_size_in_bytes / MIB
        print(
            f"{name:14} forward {forward * 1e3:8.1f} ms, with gradients {both * 1e3:8.1f} ms,"
            f" {held:8.1f} MiB, {apart:.1e} from dense",
            flush=True,
        )


def for_topology(args: argparse.Namespace) -> None:
    topology = topologies.get_topology_desc(args.topology, "tpu")
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1), topology.devices)
    cfg = dataclasses.replace(preset("Qwen2.5-0.5B-Instruct"), dtype="bfloat16", remat="full")
    optimizer = make_optimizer(OptimConfig(), 100)
    places = state_shardings(cfg, optimizer, mesh)
    state = abstract_state(cfg, optimizer, mesh)
    rows = batch_sharding(mesh)
    shape = (args.rows * mesh.size, args.length)
    batch = Batch(
        **{
            field.name: jax.ShapeDtypeStruct(shape, TYPES.get(field.name, jnp.int32), sharding=rows)
            for field in dataclasses.fields(Batch)
            if field.name != "num_tokens"
        },
        num_tokens=jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh)),
    )
    for name, attend in {
        "splash": attend_on(mesh),
        "blocks": cut(attend_blocks, mesh),
        "dense": cut(attend_dense, mesh),
    }.items():
        start = time.perf_counter()
        step = compile_step(loss_of(cfg, attend=attend), optimizer, places)
        try:
            compiled = step.program.lower(*step.arguments(state, batch)).compile()
        except jax.errors.JaxRuntimeError as error:
            print(f"{name}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        memory = compiled.memory_analysis()
        assert memory is not None
        print(
            f"{name:7} {memory.argument_size_in_bytes / MIB:8.0f} MiB of arguments,"
            f" {memory.temp_size_in_bytes / MIB:8.0f} MiB beside them, a chip;"
            f" compiled in {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=1, help="of the batch, or of a chip")
    parser.add_argument("--segments", type=int, default=1, help="of a row")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--topology")
    args = parser.parse_args()
    for_topology(args) if args.topology else here(args)


if __name__ == "__main__":
    main()
