"""What the loss costs: log-probs in blocks of the vocabulary against all logits at once.

Measures, for value and gradient of a negative log-likelihood by hidden states and head: compiled
temporary memory (XLA's own analysis; arguments and results left out), and seconds a call (best of
--repeats, after one that warms up). Three programs: `full` writes out [tokens, vocabulary],
`blocks` is `token_logp` with all positions wanted, and `half` the same with every second one
wanted. A program that needs more than --most-gb is compiled, and not run: its seconds are null.

    python benchmarks/loss_memory.py --tokens 8192 --vocab 151936 --width 128

Prints one JSON line a program. The products grow with the width, the rest does not: a small width
shows what the exponentials cost, a large one what making the logits twice does.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp

from l2s_jax.objectives.logprobs import token_logp


def full_logp(hidden_BTD: Any, head_VD: Any, targets_BT: Any) -> Any:
    """The definition, as autodiff takes it."""
    logits_BTV = jnp.einsum(
        "btd,vd->btv",
        hidden_BTD,
        head_VD.astype(hidden_BTD.dtype),
        preferred_element_type=jnp.float32,
    )
    logp_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1)[..., 0]


def programs(block: int) -> dict[str, Any]:
    """Log-probs by name; each takes hidden states, head, targets and what is wanted."""
    return {
        "full": lambda h, w, t, _: full_logp(h, w, t),
        "blocks": lambda h, w, t, _: token_logp(h, w, t, block=block),
        "half": lambda h, w, t, wanted: token_logp(h, w, t, wanted_BT=wanted, block=block),
    }


def measure(
    logp_of: Any, arrays: tuple[Any, ...], repeats: int, most_gb: float
) -> dict[str, float | None]:
    """Temporary gigabytes of value and gradient, and seconds of the fastest call."""

    def loss(hidden: Any, head: Any, targets: Any, wanted: Any) -> Any:
        return -jnp.sum(jnp.where(wanted, logp_of(hidden, head, targets, wanted), 0.0))

    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arrays)
    compiled = lowered.compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None, "this backend reports no memory"
    temporary_gb = analysis.temp_size_in_bytes / 1e9
    if temporary_gb > most_gb:
        return {"temporary_gb": round(temporary_gb, 3), "seconds": None}
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        seconds.append(time.perf_counter() - begin)
    return {"temporary_gb": round(temporary_gb, 3), "seconds": round(min(seconds[1:]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--block", type=int, default=8192)
    parser.add_argument("--dtype", default="float32", help="of the hidden states")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-gb", type=float, default=12.0)
    parser.add_argument("--only", help="one program")
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (args.rows, args.tokens // args.rows)
    hidden = jax.random.normal(keys[0], (*shape, args.width)).astype(args.dtype)
    head = 0.1 * jax.random.normal(keys[1], (args.vocab, args.width))
    targets = jax.random.randint(keys[2], shape, 0, args.vocab)
    half = jnp.broadcast_to(jnp.arange(shape[1]) % 2 == 0, shape)
    for name, logp_of in programs(args.block).items():
        if args.only in (None, name):
            wanted = half if name == "half" else jnp.ones(shape, bool)
            numbers = measure(logp_of, (hidden, head, targets, wanted), args.repeats, args.most_gb)
            print(json.dumps({"program": name} | vars(args) | numbers), flush=True)


if __name__ == "__main__":
    main()
