"""How many tasks learn side by side."""

import pytest

from mbml.models import Ensemble, EnsembleConfig
from mbml.stacks import side_by_side
from mbml.teachers.iql import IQL, IQLConfig
from tests.mbml.toys import LAYOUT, seeded


@pytest.mark.parametrize(("hidden", "expected"), [((16, 16), 25), ((256, 256), 2), ((1024, 1024), 1)])
def test_small_networks_are_many_and_large_ones_few(hidden, expected):
    assert side_by_side(IQL(IQLConfig(hidden=hidden), LAYOUT, 1, seeded())) == expected
    learner = IQL(IQLConfig(hidden=hidden), LAYOUT, 1, seeded())
    numbers = sum(p.numel() for part in (learner.policy, learner.value, learner.critics, learner.target_critics)
                  for p in part.parameters()) + LAYOUT.action_size  # fmt: skip
    assert expected in (25, max(1, 2**20 // numbers))


def test_members_count():
    few, many = (Ensemble(EnsembleConfig(members=m, hidden=(128, 128)), LAYOUT, 1, "reward", seeded()) for m in (5, 20))
    assert side_by_side(few) > side_by_side(many) > 1
