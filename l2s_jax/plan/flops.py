"""How much arithmetic a program does, counted in what was traced, loops multiplied out.

Lives here: `count_flops`. Not here: what the compiler makes of a program (`plan/hlo.py`); its own
count has the body of a loop once, however often it runs, and knows nothing of hand-written kernels.

Products of matrices count, two operations for each multiplication; what else a decoder computes is
some percent of it. Of branches the dearest counts. What rematerialisation computes again is in the
trace, and so in the count.
"""

import math
from typing import Any

from jax.extend import core

CAUSAL = "splash"  # opens the name of JAX's kernel: its grid is a square, half of which it skips


def count_flops(jaxpr: Any, *, while_trips: tuple[int, ...] = ()) -> float:
    """Operations of all devices together.

    Args:
      jaxpr: of a program; a closed one does as well.
      while_trips: how often the body of a loop runs whose end depends on data, of one that lies in
        such a loop, and so on; deeper ones run once.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum((_of_equation(equation, while_trips) for equation in inner.eqns), 0.0)


def _of_equation(equation: Any, trips: tuple[int, ...]) -> float:
    name, params = equation.primitive.name, equation.params

    def within(jaxpr: Any, trips: tuple[int, ...] = trips) -> float:
        return count_flops(jaxpr, while_trips=trips)

    if name == "dot_general":
        return _of_product(equation)
    if name == "scan":
        return params["length"] * within(params["jaxpr"])
    if name == "while":
        often, *deeper = trips or (1,)
        parts = (params["body_jaxpr"], params["cond_jaxpr"])
        return often * sum(within(part, tuple(deeper)) for part in parts)
    if name == "cond":
        return max(map(within, params["branches"]))
    if name == "shard_map":
        sizes = [params["mesh"].shape[axis] for axis in params["newly_manual_axes"]]
        return math.prod(sizes) * within(params["jaxpr"])
    if name == "pallas_call":
        return _of_kernel(equation, trips)
    return sum(map(within, _jaxprs(params)), 0.0)


def _of_product(equation: Any) -> float:
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    (_, contracted_right), (_, batched_right) = equation.params["dimension_numbers"]
    free = math.prod(
        size for axis, size in enumerate(right) if axis not in (*contracted_right, *batched_right)
    )
    return 2.0 * math.prod(left) * free


def _of_kernel(equation: Any, trips: tuple[int, ...]) -> float:
    """A kernel's body, once for each point of its grid."""
    grid = [size for size in equation.params["grid_mapping"].grid if isinstance(size, int)]
    whole = math.prod(grid) * count_flops(equation.params["jaxpr"], while_trips=trips)
    if not str(equation.params["name"]).startswith(CAUSAL):
        return whole
    return whole * (grid[-1] + 1) / (2 * grid[-1])


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """The programs inside an equation that merely calls them."""
    found = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                found.append(part)
    return found
