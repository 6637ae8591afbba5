"""Random rollouts for the tests of objectives, with every edge case among them."""

import jax
import jax.numpy as jnp
import numpy as np

from l2s_jax.objectives.outcomes import Outcomes
from l2s_jax.objectives.terms import Terms

G, LIMIT, TIME = 4, 100, 7


def make_outcomes(seed: int, prompts: int = 8, **changes) -> Outcomes:
    """Groups that are always right, never right, of one length, of one route, once right; others.

    The last row of the first group is empty, as one that only fills the batch would be.
    """
    rng = np.random.default_rng(seed)
    rows = prompts * G
    correct, short = rng.uniform(size=rows) < 0.5, rng.uniform(size=rows) < 0.5
    tokens = rng.integers(1, LIMIT + 1, rows).astype(np.int32)
    correct[:G], correct[G : 2 * G] = True, False
    tokens[2 * G : 3 * G] = 41  # 41 * (1 / 41) is not 1 in float32
    short[3 * G : 4 * G], short[4 * G : 5 * G] = True, False
    correct[5 * G : 6 * G] = [True, False, False, False]
    tokens[G - 1], correct[G - 1] = 0, False
    stopped = (tokens > 0) & ((tokens < LIMIT) | correct)
    fields = {
        "correct": correct,
        "num_tokens": tokens,
        "stopped": stopped,
        "short": short,
        "level": np.repeat(rng.integers(0, 4, prompts), G).astype(np.int32),
        "max_tokens": np.repeat(rng.choice([0, 20, 41, 90], prompts), G).astype(np.int32),
        "limit": LIMIT,
        "progress": 0.0,
    }
    return Outcomes(**{**fields, **changes})


def by_rows(outcomes: Outcomes, score) -> np.ndarray:
    """`score(rows of the group, row)` of every row, by a loop."""
    rows = len(outcomes.correct)
    groups = [range(start, start + G) for start in range(0, rows, G)]
    return np.asarray([float(score(group, b)) for group in groups for b in group])


def make_terms(seed: int, rows: int = 8, **changes) -> Terms:
    """Rollouts of the full length, of one token (its stop), of none, of a marker alone; others.

    A token in the middle is forced, markers are forced in every other row, and what stands where
    nothing is free is nan.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([TIME, 1, 0, 1, *rng.integers(2, TIME + 1, rows - 4)])
    used = np.arange(TIME) < lengths[:, None]
    marker = (np.arange(TIME) == 0) & used
    marker[1] = False
    free = used & ~(marker & (np.arange(rows)[:, None] % 2 == 0))
    free[0, 2] = False

    def logp(spread):
        noise = rng.normal(size=(rows, TIME)) * spread
        return np.where(used, base + noise, np.nan).astype(np.float32)

    base = -rng.exponential(size=(rows, TIME)) - 0.1
    adv = rng.normal(size=rows)
    adv[2] = np.nan  # of the row without a token
    fields = {
        "logp": logp(0.0),
        "old_logp": logp(0.3),
        "ref_logp": logp(0.5),
        "sampler_logp": logp(0.5),
        "advantages": adv.astype(np.float32),
        "free": free,
        "marker": marker,
        "num_sequences": np.float32(7.0),
        "num_tokens": np.float32(23.0),
        "max_tokens": np.float32(TIME),
    }
    return Terms(**{**fields, **changes})


def rows_of(terms: Terms, rows: slice) -> Terms:
    """Some rows, with the denominators of all."""
    parts = ("logp", "old_logp", "ref_logp", "sampler_logp", "advantages", "free", "marker")
    return terms.replace(**{name: getattr(terms, name)[rows] for name in parts})


def on_device(terms: Terms) -> Terms:
    """The terms as the step hands them to a loss."""
    return jax.tree.map(jnp.asarray, terms)
