"""Rotary positions from and to the fields of a `config.json`.

Lives here: both spellings, `rope_parameters` of transformers 5 and `rope_theta` beside
`rope_scaling` of older releases (and of vLLM with them), and the refusal of other kinds of
scaling. Not here: the angles (`model/layers.py`).

Where transformers 5 finds two spellings it takes `rope_scaling`, older releases know no other: a
file whose spellings disagree means different things to different readers, and is refused.
"""

from collections.abc import Mapping
from typing import Any

from l2s_jax.model.config import RopeScaling
from l2s_jax.model.hf.fields import integer, positive
from l2s_jax.model.hf.unsupported import ROTARY, refuse

DEFAULT_THETA = 10_000.0  # of transformers, where no field names one
SPELLINGS = ("rope_parameters", "rope_scaling")
BASE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
ORIGINAL = "original_max_position_embeddings"
FIELDS = {"default": BASE, "llama3": BASE | {*FACTORS, ORIGINAL}}  # type → what it may say


def rope_from_hf(hf: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """The base of the rates, and their scaling if there is one."""
    read = {name: _read(hf, name) for name in SPELLINGS if hf.get(name)}
    if not read:
        _whole_heads(hf)
        return positive(hf, "rope_theta", DEFAULT_THETA), None
    found = list(read.values())
    if any(other != found[0] for other in found):
        raise ValueError(
            f"config.json: rope_parameters={hf['rope_parameters']!r} and"
            f" rope_scaling={hf['rope_scaling']!r} disagree; remove the wrong one."
        )
    return found[0]


def _read(hf: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    rope = hf[where]
    if not isinstance(rope, dict):
        refuse(where, rope, "must be an object with rope_type.")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in FIELDS or rope.get("type", kind) != kind:
        why = "only the rope types default and llama3 are implemented; take a model with one."
        refuse(where, rope, why)
    strange = sorted(set(rope) - FIELDS[kind])
    if strange:
        refuse(where, rope, f"the fields {strange} mean nothing to rope type {kind!r}.")
    _whole_heads(hf)
    _whole_heads(rope)
    theta = positive(rope, "rope_theta", positive(hf, "rope_theta", DEFAULT_THETA))
    if hf.get("rope_theta") not in (None, theta):
        refuse("rope_theta", hf["rope_theta"], f"{where} says {theta}; remove the wrong one.")
    return theta, None if kind == "default" else _scaling(rope)


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    factors = {name: positive(rope, name) for name in FACTORS}
    return RopeScaling(**factors, original_positions=integer(rope, ORIGINAL))


def _whole_heads(fields: Mapping[str, Any]) -> None:
    if fields.get("partial_rotary_factor", 1) not in (None, 1):
        refuse("partial_rotary_factor", fields["partial_rotary_factor"], ROTARY)


def rope_to_hf(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The fields in both spellings."""
    if scaling is None:
        default = {"rope_type": "default", "rope_theta": theta}
        return {"rope_theta": theta, "rope_parameters": default}
    llama3: dict[str, Any] = {"rope_type": "llama3"}
    llama3 |= {name: getattr(scaling, name) for name in FACTORS}
    llama3[ORIGINAL] = scaling.original_positions
    return {
        "rope_theta": theta,
        "rope_scaling": llama3,
        "rope_parameters": llama3 | {"rope_theta": theta},
    }
