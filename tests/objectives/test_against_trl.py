"""Losses, their gradients and advantages against TRL's own, on the same tensors.

A tiny model of transformers writes the log-probs; TRL's trainer takes its loss of them, and ours
is handed what TRL read. The forced token in the middle is what TRL calls a tool's.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2s_jax.data.arithmetic import make_tokenizer
from l2s_jax.objectives.advantages import Centred, LeaveOneOut, Standardised
from l2s_jax.objectives.importance import TruncatedImportance
from l2s_jax.objectives.kl import K3, RatioK3
from l2s_jax.objectives.losses import CispoLoss, Clip, GrpoLoss, SequenceRatioLoss
from l2s_jax.objectives.presets import cispo, dapo, dr_grpo, gspo, rloo, v2
from l2s_jax.objectives.terms import Terms
from tests.objectives.rollouts import make_outcomes
from tests.tiny_models import make_model

pytestmark = [
    # TRL uses names that transformers 5.23 gives up.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning"),
]

ROWS, TIME, GROUP = 8, 7, 4
TOKENIZER = make_tokenizer()
LENGTHS = np.array([TIME, 1, 0, 3, 5, 2, TIME, 6])

SEQUENCES = {"importance_sampling_level": "sequence", "loss_type": "grpo"}
CASES = {
    "grpo": (v2(), {"loss_type": "grpo"}),
    "grpo, k3": (
        dataclasses.replace(v2(), kl=K3(weight=0.1)),
        {"loss_type": "grpo", "use_bias_correction_kl": False},
    ),
    "dr_grpo, k3 by ratio": (
        dataclasses.replace(dr_grpo(), kl=RatioK3(weight=0.1)),
        {"loss_type": "dr_grpo"},
    ),
    "grpo, dual clip": (
        dataclasses.replace(v2(), policy_loss=GrpoLoss(clip=Clip(dual=1.5))),
        {"loss_type": "grpo", "delta": 1.5},
    ),
    "dr_grpo": (dr_grpo(), {"loss_type": "dr_grpo"}),
    "dapo": (dapo(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo, k3, importance": (
        dataclasses.replace(
            dapo(), kl=RatioK3(weight=0.1), importance=TruncatedImportance(cap=1.3)
        ),
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "gspo": (gspo(), {**SEQUENCES, "epsilon": 3e-4, "epsilon_high": 4e-4}),
    "o1_pruner": (dataclasses.replace(v2(), policy_loss=SequenceRatioLoss()), SEQUENCES),
    "cispo": (
        dataclasses.replace(cispo(), policy_loss=CispoLoss(ceiling=1.2)),
        {"loss_type": "cispo", "epsilon_high": 1.2},
    ),
    "rloo": (rloo(), None),
}


def trainer_of(folder, options, reward=None):
    """TRL's trainer of a tiny random model; RLOO's where `options` is None."""
    import datasets
    import torch
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    shared = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "gradient_checkpointing": False, "disable_tqdm": True, "num_generations": GROUP,
        "per_device_train_batch_size": ROWS, "beta": 0.0, "max_completion_length": TIME,
    }  # fmt: skip
    kind, config = (RLOOTrainer, RLOOConfig) if options is None else (GRPOTrainer, GRPOConfig)
    model = make_model(vocab_size=len(TOKENIZER.hf), num_hidden_layers=1, eos_token_id=0)
    torch.set_num_threads(1)  # two would wait for each other on a busy machine
    trainer = kind(
        model=model,
        reward_funcs=reward or (lambda completions, **_: [0.0] * len(completions)),
        args=config(**shared, **(options or {})),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["1 + 1"] * ROWS}),
        processing_class=TOKENIZER.hf,
    )
    model.eval()  # what TRL divides by in training is set by its loop
    return trainer


def tensors(seed):
    """Tokens, masks, and how far the other policies' log-probs are off."""
    rng = np.random.default_rng(seed)
    used = np.arange(TIME) < LENGTHS[:, None]
    free = used.copy()
    free[0, 2] = False
    noise = {name: rng.normal(size=used.shape) * s for name, s in [("old", 0.3), ("ref", 0.5)]}
    noise["sampler"] = rng.normal(size=used.shape) * 0.3
    adv = np.where(used.any(axis=1), rng.normal(size=ROWS), 0.0)
    ids = rng.integers(1, len(TOKENIZER.hf), (ROWS, 3 + TIME))
    return ids, used, free, noise, adv.astype(np.float32)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_loss_and_its_gradient_equal_trls(tmp_path, name, seed):
    import torch

    objective, options = CASES[name]
    trainer = trainer_of(tmp_path, options)
    ids, used, free, noise, adv = tensors(seed)
    if options is None:
        free = used  # RLOO of TRL knows no tools
    ids_pt, mask_pt = torch.tensor(ids), torch.tensor(used).long()
    prompt_mask = torch.ones(ROWS, 3, dtype=torch.long)
    logp_pt, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids_pt, torch.cat([prompt_mask, mask_pt], dim=1), TIME
    )
    logp = logp_pt.detach().numpy()
    old, ref = ((logp + noise[key]).astype(np.float32) for key in ("old", "ref"))
    sampler = (old + noise["sampler"]).astype(np.float32)
    inputs = {
        "prompt_ids": ids_pt[:, :3],
        "prompt_mask": prompt_mask,
        "completion_ids": ids_pt[:, 3:],
        "completion_mask": mask_pt,
        "tool_mask": torch.tensor(free).long(),
        "old_per_token_logps": torch.tensor(old),
        "old_logps": torch.tensor((old * used).sum(axis=1)),
        "ref_per_token_logps": torch.tensor(ref),
        "advantages": torch.tensor(adv),
        "num_items_in_batch": torch.tensor(float(free.sum())),
    }
    # Both after the start, which would look for a reference model and for a server.
    if objective.kl is not None:
        trainer.beta = objective.kl.weight
    if objective.importance is not None:
        trainer.use_vllm = True
        cut = torch.clamp(torch.exp(torch.tensor(old - sampler)), max=objective.importance.cap)
        inputs["importance_sampling_ratio"] = cut
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    their_grads = gradients(trainer.model)

    terms = Terms(
        logp=jnp.asarray(logp), old_logp=jnp.asarray(old), advantages=jnp.asarray(adv),
        free=jnp.asarray(free), marker=jnp.zeros_like(free), num_sequences=jnp.float32(ROWS),
        num_tokens=jnp.float32(free.sum()), max_tokens=jnp.float32(TIME),
        ref_logp=jnp.asarray(ref), sampler_logp=jnp.asarray(sampler),
    )  # fmt: skip
    ours, grad = jax.value_and_grad(lambda logp: objective.loss(terms.replace(logp=logp))[0])(
        terms.logp
    )
    np.testing.assert_allclose(float(ours), theirs.item(), rtol=1e-5, atol=1e-6)
    trainer.model.zero_grad()
    (logp_pt * torch.tensor(np.array(grad))).sum().backward()
    for key, value in gradients(trainer.model).items():
        np.testing.assert_allclose(value, their_grads[key], rtol=1e-5, atol=1e-5, err_msg=key)
    assert max(np.abs(value).max() for value in their_grads.values()) > 1e-2


def gradients(model):
    named = model.named_parameters()
    return {name: p.grad.numpy().copy() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(
    ("advantage", "options"),
    [
        (Standardised(epsilon=1e-4), {"scale_rewards": "group"}),
        (Centred(), {"scale_rewards": "none"}),
        (LeaveOneOut(), None),
    ],
    ids=["group", "none", "rloo"],
)
def test_advantages_equal_trls(tmp_path, advantage, options):
    rewards = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)
    trainer = trainer_of(tmp_path, options, lambda completions, **_: rewards.tolist())
    rows = [{"prompt": "1 + 1"}] * GROUP + [{"prompt": "2 + 3"}] * GROUP
    theirs = trainer._generate_and_score_completions(rows)["advantages"].numpy()
    ours = advantage(jnp.asarray(rewards), make_outcomes(0), group_size=GROUP)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
