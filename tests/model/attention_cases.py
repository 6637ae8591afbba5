"""Attention over whole sequences by its definition, in loops, and sequences to try it on."""

import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """Runs of (segment, branch, tokens) in each row; heads; the size of one."""

    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    heads: int
    kv_heads: int
    size: int

    @property
    def segment_ids(self):
        return np.stack([np.repeat([s for s, _, _ in r], [n for *_, n in r]) for r in self.rows])

    @property
    def branches(self):
        return np.stack([np.repeat([b for _, b, _ in r], [n for *_, n in r]) for r in self.rows])

    def arrays(self):
        """(q, k, v, gradient of the output), float32."""
        rng, (batch, length) = np.random.default_rng(0), self.segment_ids.shape
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [
            jnp.asarray(rng.normal(size=(batch, length, h, self.size)), jnp.float32) for h in heads
        ]


CASES = {
    "packed and padded": Case(
        rows=(
            ((1, 0, 70), (2, 0, 1), (3, 0, 60), (0, 0, 19)),
            ((1, 0, 130), (2, 0, 20)),
        ),
        heads=4,
        kv_heads=2,
        size=64,
    ),
    "branched": Case(
        rows=(
            ((1, 0, 20), (1, 1, 9), (1, 2, 40), (2, 0, 5), (2, 1, 30), (2, 2, 14), (0, 0, 12)),
            ((1, 0, 3), (1, 1, 60), (1, 2, 1), (1, 3, 1), (2, 0, 65)),
        ),
        heads=3,
        kv_heads=1,
        size=128,
    ),
    "padded on the left": Case(
        rows=(((0, 0, 100), (1, 0, 28)), ((0, 0, 127), (1, 0, 1)), ((1, 0, 128),)),
        heads=2,
        kv_heads=2,
        size=64,
    ),
}


def sees_by_loops(segments, branches, t, s):
    """Whether token t of a row sees token s."""
    same = segments[t] == segments[s] and segments[s] > 0
    return t == s or (s < t and same and branches[s] in (0, branches[t]))


def attend_by_loops(q, k, v, grad, segment_ids, branches):
    """Output, and the gradients of q, k and v for that of the output; float64."""
    q, k, v, grad = (np.asarray(x, np.float64) for x in (q, k, v, grad))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    shared, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    for b, t in np.ndindex(q.shape[:2]):
        row = segment_ids[b], branches[b]
        seen = [s for s in range(t + 1) if sees_by_loops(*row, t, s)]
        for h in range(q.shape[2]):
            of = b, seen, h // shared
            probs = np.exp(k[of] @ q[b, t, h] * scale)
            probs /= probs.sum()
            out[b, t, h] = probs @ v[of]
            dprobs = v[of] @ grad[b, t, h]
            dscores = probs * (dprobs - probs @ dprobs) * scale
            dq[b, t, h] = dscores @ k[of]
            dk[of] += dscores[:, None] * q[b, t, h]
            dv[of] += probs[:, None] * grad[b, t, h]
    return out, dq, dk, dv
