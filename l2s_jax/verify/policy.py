"""What counts as the same answer where mathematics alone does not say.

Lives here: the conventions, each with its default and the reason for it. Not here: how they are
applied (`verify/compare.py`).

The defaults are a careful reader's: what a question fixes already (its unit, its variable's name,
the base of its digits) may be left out of an answer; what an answer says must not contradict the
reference.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Conventions of equality between a reference and a prediction."""

    # Where the answer stands in a text: its last box, and else the whole text. "lenient" takes what
    # a sentence states too ("The answer is 5."); never for rewards.
    answers: Literal["strict", "lenient"] = "strict"
    # 5% is 5 ("percent?" was asked), or 0.05. Never both: then a factor of 100 would be free.
    percent: Literal["unit", "hundredth"] = "unit"
    # 5 answers "5 cm", and "5 cm" answers 5; "5 cm" and "5 m" are different where both are known.
    # "exact": a unit must be said where the reference has one.
    units: Literal["may-be-left-out", "exact"] = "may-be-left-out"
    # 45° is pi/4.
    degrees_are_angles: bool = True
    # "1, 2" is what a question that has two answers gets: "2, 1" says the same. (1, 2) is ordered.
    lists_are_unordered: bool = True
    # "1, 2" answers (1, 2) in this order: the brackets were left out.
    brackets_may_be_left_out: bool = True
    # 1000,99 is 1000.99 where the other side is one number.
    decimal_comma: bool = True
    # Relative; 0 asks for exact equality, so that 0.333 is not 1/3.
    tolerance: float = 0.0

    def __post_init__(self):
        if not 0 <= self.tolerance < 0.1:
            raise ValueError(
                f"Policy.tolerance={self.tolerance}: a relative error of 0 or more, below 0.1. 0 is"
                " usual; 1e-3 accepts a rounded third."
            )
