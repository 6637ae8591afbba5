"""Objectives by name: which reward, advantage and loss go together in a paper.

Lives here: one function per name. Not here: the parts, with their formulas and sources.

AutoL2S (arXiv 2505.22662) exists in three versions. v1 has no stage 2. v2 is known in its
ingredients: binary correctness, a clipped ratio at 0.2 against the SFT policy, no length term. Of
Plus it is known that it is length-aware and clipped against the SFT policy; its formula is not,
so there are two readings. docs/objectives.md has all of them in one table.
"""

from typing import NoReturn

from l2s_jax.objectives.advantages import (
    AgainstLong,
    Centred,
    CentredScaled,
    LeaveOneOut,
    Standardised,
)
from l2s_jax.objectives.budgets import L1Exact, L1Max, Triangle, Truncation
from l2s_jax.objectives.kl import K3
from l2s_jax.objectives.losses import (
    CispoLoss,
    Clip,
    DapoLoss,
    DrGrpoLoss,
    GrpoLoss,
    RlooLoss,
    SequenceRatioLoss,
    ThinklessLoss,
)
from l2s_jax.objectives.objective import Objective
from l2s_jax.objectives.rewards import (
    Correct,
    KimiLength,
    LinearLength,
    O1Pruner,
    Overlong,
    SigmoidLength,
    Tldr,
)
from l2s_jax.objectives.routes import RareRoute, RouteReward, ShortBonus


def v1() -> NoReturn:
    """AutoL2S as first published: there is no stage 2, so that no objective can be given."""
    raise ValueError(
        "preset v1: the first version of AutoL2S has no stage 2. Its result is stage 1's workdir:"
        " evaluate or export that, with routing.switch=replace; do not run `l2s grpo`."
    )


def v2() -> Objective:
    """Correctness only. Groups that are always right teach nothing: see `flat_groups`."""
    return Objective(reward=Correct(), advantage=Standardised(), policy_loss=GrpoLoss())


def plus(accuracy_weight: float = 2.0) -> Objective:
    """Length-aware after O1-Pruner (arXiv 2501.12570), whom the paper has as a baseline.

    Two things are not O1-Pruner's, each against easy questions unlearned. Its bounds, -2 and 4,
    grow with a weight that they would cut: else a wrong answer costs less than a right one earns.
    And rewards are centred within groups, where it has `Whitened`: the mean saving of a group that
    goes both ways is above zero, and taking it from the whole step pushes down a group that is
    always right and equally long.
    """
    low, high = min(-2.0, -accuracy_weight), max(4.0, accuracy_weight)
    return Objective(
        reward=O1Pruner(accuracy_weight=accuracy_weight, low=low, high=high),
        advantage=CentredScaled(bonus=0.0),
        policy_loss=SequenceRatioLoss(),
    )


def plus_linear(alpha: float = 0.4) -> Objective:
    """Length-aware by a linear reward, with token ratios.

    Leave-one-out, as in Arora & Zanette (arXiv 2502.04463): divided by the group's deviation, a
    group that is always right would get the same advantages whatever alpha is.
    """
    return Objective(
        reward=LinearLength(alpha=alpha), advantage=LeaveOneOut(), policy_loss=GrpoLoss()
    )


def dr_grpo() -> Objective:
    """Dr. GRPO (arXiv 2503.20783): no deviation, a constant length."""
    return Objective(reward=Correct(), advantage=Centred(), policy_loss=DrGrpoLoss())


def dapo() -> Objective:
    """DAPO (arXiv 2503.14476). Its dynamic sampling is the loop's: groups without contrast."""
    return Objective(
        reward=Correct(wrong=-1.0),
        advantage=Standardised(),
        policy_loss=DapoLoss(),
        overlong=Overlong(),
    )


def gspo() -> Objective:
    """GSPO (arXiv 2507.18071): one ratio per rollout, in a very narrow clip."""
    return Objective(
        reward=Correct(),
        advantage=Standardised(),
        policy_loss=SequenceRatioLoss(clip=Clip(low=3e-4, high=4e-4)),
    )


def cispo() -> Objective:
    """CISPO of MiniMax-M1 (arXiv 2506.13585)."""
    return Objective(reward=Correct(), advantage=Standardised(), policy_loss=CispoLoss())


def rloo() -> Objective:
    """RLOO (arXiv 2402.14740), without its KL term."""
    return Objective(reward=Correct(), advantage=LeaveOneOut(), policy_loss=RlooLoss())


def efficient(alpha: float = 0.1) -> Objective:
    """Arora & Zanette (arXiv 2502.04463): right answers pay for being long among right ones."""
    return Objective(
        reward=SigmoidLength(alpha=alpha), advantage=LeaveOneOut(), policy_loss=RlooLoss()
    )


def kimi() -> Objective:
    """Kimi k1.5's length reward (arXiv 2501.12599) and baseline, under GRPO's clipped loss.

    Its own loss is a squared form of mirror descent, and its weight is not published.
    """
    return Objective(reward=KimiLength(), advantage=Centred(), policy_loss=GrpoLoss())


def tldr() -> Objective:
    """TLDR (arXiv 2505.07961): three levels of length, asked for in the prompt."""
    return Objective(reward=Tldr(), advantage=Standardised(), policy_loss=GrpoLoss())


def l1_exact() -> Objective:
    """L1-Exact (arXiv 2503.04697): as many tokens as were asked for."""
    return Objective(
        reward=L1Exact(), advantage=Standardised(), policy_loss=GrpoLoss(), kl=K3(weight=1e-3)
    )


def l1_max() -> Objective:
    """L1-Max (arXiv 2503.04697): no more tokens than were asked for; begins from L1-Exact."""
    return Objective(
        reward=L1Max(), advantage=Standardised(), policy_loss=GrpoLoss(), kl=K3(weight=1e-3)
    )


def dler() -> Objective:
    """DLER (arXiv 2510.15110): a hard limit, and what keeps training under it stable."""
    return Objective(
        reward=Truncation(),
        advantage=CentredScaled(),
        policy_loss=DapoLoss(clip=Clip(high=0.28, dual=10.0)),
        kl=K3(weight=5e-4),
    )


def curriculum() -> Objective:
    """ "Train Long, Think Short" (arXiv 2508.08940), with `budgets.Curriculum` as its budgets."""
    return Objective(reward=Triangle(), advantage=Standardised(), policy_loss=GrpoLoss())


def adaptthink(bonus: float = 0.05) -> Objective:
    """AdaptThink (arXiv 2505.13417); rollouts must be forced in pairs."""
    return Objective(
        reward=ShortBonus(bonus=bonus),
        advantage=AgainstLong(),
        policy_loss=SequenceRatioLoss(),
        design_probability=0.5,
    )


def thinkless() -> Objective:
    """Thinkless (arXiv 2505.13379): the marker is weighed apart; rollouts route themselves."""
    return Objective(
        reward=RouteReward(),
        advantage=Centred(),
        policy_loss=ThinklessLoss(),
        kl=K3(weight=1e-3),
    )


def arm() -> Objective:
    """ARM (arXiv 2505.20258): the group's rare route is boosted; rollouts route themselves."""
    return Objective(
        reward=RareRoute(), advantage=Standardised(), policy_loss=GrpoLoss(), kl=K3(weight=1e-3)
    )
