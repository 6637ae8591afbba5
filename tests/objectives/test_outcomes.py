"""What a group may be asked for."""

import numpy as np
import pytest

from l2s_jax.objectives.outcomes import check_groups
from tests.objectives.rollouts import G, make_outcomes


def test_groups_that_were_asked_for_one_thing_pass():
    check_groups(make_outcomes(0), G)


@pytest.mark.parametrize("field", ["level", "max_tokens"])
def test_group_that_was_asked_for_two_things_is_named(field):
    outcomes = make_outcomes(0)
    asked = getattr(outcomes, field).copy()
    asked[G + 1] += 1
    with pytest.raises(ValueError, match=rf"Outcomes.{field} differs .* prompt 1: \["):
        check_groups(outcomes.replace(**{field: asked}), G)
    check_groups(outcomes.replace(**{field: np.arange(len(asked)) // G}), G)
