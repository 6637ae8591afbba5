"""The policies that stage 2 keeps beside its state, and what of them lies there already.

Lives here: their shapes (`Others`), as `training.policies.Others` holds their arrays. Not here: the
state's own (`training/state.py`), the sampler's copy (`plan/sampler.py`).
"""

import dataclasses

import jax
from flax import linen as nn
from jax.sharding import Mesh

from l2s_jax.model.config import DTypeName, ModelConfig
from l2s_jax.model.decoder import Params, abstract_params
from l2s_jax.model.lora import LoraConfig
from l2s_jax.plan.planned import Trees, place
from l2s_jax.sharding import shardings
from l2s_jax.training.adapter import kept_as
from l2s_jax.training.grpo import GrpoRun
from l2s_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Others:
    """The policies beside the one that is trained, from a run's first update on."""

    behaviour: Params
    beside_behaviour: Trees  # all that is held but the arrays of the behaviour policy
    beside_state: Trees  # all that is held but the arrays of the state

    @staticmethod
    def of(cfg: GrpoRun, model: ModelConfig, mesh: Mesh, state: TrainState) -> "Others":
        """The policies of a run with this state."""
        first = weights_of(model, mesh, kept_as(cfg.lora))
        if cfg.lora is None:
            return Others._of_whole(cfg, first, weights_of(model, mesh, cfg.optim.weights), state)
        adapter = state.frozen["lora"]
        if cfg.refresh_every is None:  # the base is the behaviour policy
            own = dataclasses.replace(state, frozen={"lora": adapter})
            return Others(behaviour=first, beside_behaviour={"state": own}, beside_state={})
        behaviour, beside = taken_over(state, cfg.lora, model, mesh)
        made_of = {"adapter of behaviour": state.params}
        return Others(
            behaviour=behaviour,
            beside_behaviour=beside | made_of,
            beside_state={"behaviour": changed_by(adapter, first)} | made_of,
        )

    @staticmethod
    def _of_whole(cfg: GrpoRun, first: Params, trained: Params, state: TrainState) -> "Others":
        if cfg.refresh_every is None:
            behaviour, kept = first, {}
        else:
            behaviour = trained
            kept = {"reference": first} if cfg.preset.needs_reference else {}
        return Others(
            behaviour=behaviour,
            beside_behaviour={"state": state} | kept,
            beside_state={"behaviour": behaviour} | kept,
        )


def taken_over(
    state: TrainState, lora: LoraConfig | None, model: ModelConfig, mesh: Mesh
) -> tuple[Params, Trees]:
    """(what is trained as a sampler takes it over, all of the state that lies beside it)."""
    if lora is None:
        return state.params, {"optimizer": state.opt_state}
    merged, adapter = weights_of(model, mesh, lora.base), state.frozen["lora"]
    frozen = {"lora": adapter} | changed_by(adapter, merged)
    return merged, {"state": dataclasses.replace(state, frozen=frozen)}


def changed_by(adapter: Params, base: Params) -> Params:
    """What `merge` makes anew; all other weights are the base's own arrays."""
    changed: Params = {"layers": {}}
    for part, modules in adapter["layers"].items():
        kernels = base["layers"][part]
        changed["layers"][part] = {name: {"kernel": kernels[name]["kernel"]} for name in modules}
    if "token_ids" in adapter:
        changed |= {name: base[name] for name in ("embed", "lm_head") if name in base}
    return changed


def type_of(weights: Params) -> DTypeName:
    """The type in which a policy's parameters are kept."""
    return weights["embed"]["embedding"].dtype.name


def weights_of(model: ModelConfig, mesh: Mesh, dtype: DTypeName) -> Params:
    """A policy's parameters in the training layout, kept in a type."""
    boxed = abstract_params(model)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nn.unbox(boxed))
    return place(shapes, shardings(boxed, mesh))
