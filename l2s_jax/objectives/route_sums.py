"""What a batch says of the router and of each kind of item, as sums.

Lives here: counts of first choices and summed losses per kind of item, inside the step; and their
ratios, outside of it. Not here: the loss (`sft`), the router in use (`sampling.controllers`).

Sums, since micro-batches, devices and validation batches then add up whatever each of them holds;
a mean per kind would need a denominator, and a batch may have no item of a kind.

Shape letters: B rows, T time, D width, V vocabulary, C the two choices EASY and LONG.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PREFIX = "sum/"
ROUTES = ("easy", "long")  # what an item's first trigger is
CHOICES = ("easy", "long", "neither")  # what the policy would say there


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouteIds:
    """The ids that tell `<EASY>` from `<LONG>`, both in the same place."""

    easy: int
    long: int


def kind_sums(
    logp_BT: Float[Array, "B T"], weights_BT: Float[Array, "B T"], easy_BT: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Weighted negative log-likelihood and weight of EASY items and of regular ones."""
    # Select before the product: padding may hold -inf.
    nll_BT = -jnp.where(weights_BT != 0, logp_BT, 0.0) * weights_BT
    sums = {}
    for kind, of_kind_BT in (("easy", easy_BT), ("regular", ~easy_BT)):
        sums[f"{PREFIX}nll_{kind}"] = jnp.sum(nll_BT, where=of_kind_BT)
        sums[f"{PREFIX}weight_{kind}"] = jnp.sum(weights_BT, where=of_kind_BT)
    return jax.lax.stop_gradient(sums)


def choice_sums(
    hidden_BTD: Float[Array, "B T D"],
    head_CD: Float[Array, "C D"],
    logp_BT: Float[Array, "B T"],
    targets_BT: Int[Array, "B T"],
    routing_BT: Bool[Array, "B T"],
    ids: RouteIds,
) -> dict[str, Float[Array, ""]]:
    """How many items of each route would get each choice.

    "neither" is chosen where all other tokens together are likelier than either trigger.

    Args:
      head_CD: the head's rows of `ids.easy` and `ids.long`.
      logp_BT: of the targets, nats; read where `routing_BT` is True.
    """
    hidden_BTD, head_CD = jax.lax.stop_gradient((hidden_BTD, head_CD))
    logits_BTC = jnp.einsum(
        "btd,cd->btc", hidden_BTD, head_CD, preferred_element_type=jnp.float32
    ).astype(jnp.float32)
    to_easy_BT = targets_BT == ids.easy
    said_BT = jnp.where(to_easy_BT, logits_BTC[..., 0], logits_BTC[..., 1])
    # The partition function is known from the target's log-prob: no pass over the vocabulary.
    logp_BTC = logits_BTC + (jax.lax.stop_gradient(logp_BT) - said_BT)[..., None]
    p_BTC = jnp.exp(jnp.where(routing_BT[..., None], jnp.minimum(logp_BTC, 0.0), -jnp.inf))
    rest_BT = 1 - p_BTC.sum(axis=-1)
    choice_BT = jnp.argmax(jnp.concatenate([p_BTC, rest_BT[..., None]], axis=-1), axis=-1)
    sums = {}
    for route, of_route_BT in zip(ROUTES, (to_easy_BT, ~to_easy_BT), strict=True):
        for number, choice in enumerate(CHOICES):
            hit_BT = routing_BT & of_route_BT & (choice_BT == number)
            sums[f"{PREFIX}{route}_as_{choice}"] = jnp.sum(hit_BT).astype(jnp.float32)
    return sums


def readable(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics with sums turned into means; of a kind that was not there nothing is said."""
    told = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
    for kind in ("easy", "regular"):
        weight = metrics.get(f"{PREFIX}weight_{kind}", 0.0)
        if weight:
            told[f"nll_{kind}"] = metrics[f"{PREFIX}nll_{kind}"] / weight
    table = confusion(metrics)
    num = sum(sum(row.values()) for row in table.values())
    if num:
        told["route_accuracy"] = sum(table[route][route] for route in ROUTES) / num
    return told


def confusion(metrics: dict[str, float]) -> dict[str, dict[str, int]]:
    """Route → choice → number of items."""
    return {
        route: {c: int(metrics.get(f"{PREFIX}{route}_as_{c}", 0)) for c in CHOICES}
        for route in ROUTES
    }
