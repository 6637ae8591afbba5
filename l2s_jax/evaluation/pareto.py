"""Which points are worth having when accuracy is wanted and tokens are paid for.

Lives here: the frontier of (tokens, accuracy) points and the area under it, in numpy. Not here:
the figure (`plots`). Shape letter: N points.
"""

import numpy as np
from jaxtyping import Float, Int


def frontier(
    tokens_N: Float[np.ndarray, " N"], accuracy_N: Float[np.ndarray, " N"]
) -> Int[np.ndarray, " F"]:
    """Indices of the points that no other point beats, by rising tokens.

    A point is beaten by one that is no longer and no less accurate and differs in one of the two;
    of equal points the first stays.
    """
    # By tokens, and at equal tokens the most accurate first: then only a rise is worth its price.
    order_N = np.lexsort((-accuracy_N, tokens_N))
    best_before_N = np.maximum.accumulate(np.concatenate([[-np.inf], accuracy_N[order_N]]))[:-1]
    return order_N[accuracy_N[order_N] > best_before_N]


def area(
    tokens_N: Float[np.ndarray, " N"], accuracy_N: Float[np.ndarray, " N"], *, max_tokens: float
) -> float:
    """Mean over budgets from 0 to `max_tokens` of the best accuracy that a budget buys, 0 to 1.

    A budget too small for any point buys 0. Compare areas only at the same `max_tokens`.
    """
    if not max_tokens > 0:
        raise ValueError(
            f"area: max_tokens={max_tokens:g} leaves no budget to average over. Give the mean"
            " tokens of the longest mode that you compare."
        )
    kept_F = frontier(tokens_N, accuracy_N)
    edges = np.concatenate([np.minimum(tokens_N[kept_F], max_tokens), [max_tokens]])
    return float(np.sum(np.diff(edges) * accuracy_N[kept_F]) / max_tokens)
