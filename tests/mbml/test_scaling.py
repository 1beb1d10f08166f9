"""The scale of logged data: what it makes of any scale, its inverse, and where its numbers come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbml.scaling import Scaling, Statistics
from mbml.transitions import DatasetError, TransitionBatch
from tests.mbml.logs.fleet import machine

NAMES = {"observation": ["t", "p", "k"], "action": ["left", "right"]}


def batch(number: int, seed: int = 0, ends: bool = False, **changes: Any) -> TransitionBatch:
    return replace(TransitionBatch(**machine((number,), seed, (ends,))), **changes)


def scaling_of(*batches: TransitionBatch, bounds: Any = None) -> Scaling:
    statistics = Statistics(NAMES, bounds or {})
    for one in batches:
        statistics.add(one)
    return statistics.scaling()


def test_every_task_weighs_the_same_and_everything_has_ordinary_size():
    short, long = batch(50, 1), batch(5_000, 2)
    long = replace(long, observation=long.observation + [20.0, 0.0, 0.0], reward=long.reward * 3)
    scaling = scaling_of(short, long)
    made = [scaling.scaled(one) for one in (short, long)]
    for name in ("observation", "reward"):
        first, second = (getattr(one, name).astype(float) for one in made)
        mean = (first.mean(0) + second.mean(0)) / 2
        size = ((first**2).mean(0) + (second**2).mean(0)) / 2
        varies = [True, True, False] if name == "observation" else True
        np.testing.assert_allclose(mean, 0, atol=1e-4)
        np.testing.assert_allclose(size, np.where(varies, 1.0, 0.0), atol=1e-4)
    for one in made:
        assert (np.abs(one.action) <= 1).all()
        for role in ("observation", "action", "next_observation", "reward"):
            assert getattr(one, role).dtype == np.float32
    assert np.array_equal(made[0].next_observation[:-1], made[0].observation[1:])
    assert scaling.meta["observation"]["about"] == ["", "", "is constant"]


@settings(max_examples=60, deadline=None)
@given(
    offset=st.floats(-1e9, 1e9), scale=st.floats(1e-3, 1e6), seed=st.integers(0, 2**31), number=st.integers(2, 40),
    known=st.booleans(),
)  # fmt: skip
def test_the_inverse_gives_the_log_back(offset, scale, seed, number, known):
    one = batch(number, seed)
    one = replace(one, observation=one.observation * scale + offset, action=one.action * scale)
    scaling = scaling_of(one, bounds={"left": (0.0, 40.0 * scale + 1)} if known else {})
    back = scaling.restored(scaling.scaled(one))
    for role in ("observation", "action", "reward"):
        values = getattr(one, role)
        # As exact as float32 is in units of the spread, however far from 0 the values are.
        tolerance = 1e-5 * (values.std(0) * 10 + 1e-9 * np.abs(values).max())
        assert (np.abs(getattr(back, role) - values) <= tolerance + 1e-6 * np.ptp(values, axis=0)).all(), role


def test_a_mean_is_taken_off_rewards_only_where_nothing_ends():
    goes_on, ends = batch(200, 1), batch(200, 2, ends=True)
    assert scaling_of(goes_on).meta["reward"]["offset"] == pytest.approx(goes_on.reward.mean())
    found = scaling_of(goes_on, ends).meta["reward"]
    assert found["offset"] == 0.0
    both = np.concatenate([goes_on.reward, ends.reward])
    assert found["scale"] == pytest.approx(np.sqrt((both**2).mean()))
    assert scaling_of(replace(goes_on, reward=np.full(200, 7.5))).meta["reward"] == {"offset": 7.5, "scale": 1.0}
    assert scaling_of(replace(ends, reward=np.zeros(200))).meta["reward"] == {"offset": 0.0, "scale": 1.0}


def limits(values: list[float], low: float | None = None, high: float | None = None) -> tuple[float, float, str]:
    action = np.stack([values, values], 1)
    meta = scaling_of(batch(len(values), action=action), bounds={"left": (low, high)}).meta["action"]
    offset, scale = meta["offset"][0], meta["scale"][0]
    return offset - scale, offset + scale, meta["about"][0]


def test_bounds_of_actions_are_those_given_or_estimated_with_a_margin():
    """Row D5: actions of any size end in [-1, 1], and it is said how."""
    assert limits([3.0, 5.0], 0, 10) == (0, 10, "from 0 to 10, as given")
    assert limits([0.0, 100.0]) == (-5, 105, "taken to go from -5 to 105, the least and largest value estimated")
    assert limits([0.0, 100.0], low=0) == (0, 105, "taken to go from 0 to 105, the largest value estimated")
    assert limits([50.0, 100.0], high=100) == (47.5, 100, "taken to go from 47.5 to 100, the least value estimated")
    assert limits([-0.9, 0.8])[:2] == (-1, 1)
    assert limits([0.01, 0.02])[:2] == pytest.approx((0.0095, 0.0205))
    assert limits([4.0, 4.0])[:2] == (3, 5)
    assert limits([9e15, 9e15])[:2] == pytest.approx((8.55e15, 9.45e15))
    assert limits([10.0 + 1e-6, 0.0], 0, 10)[:2] == (0, 10)
    with pytest.raises(
        DatasetError, match="left goes from -3 to 12, beyond its bounds of 0 to no bound; give the right"
    ):
        limits([-3.0, 12.0], low=0)


def test_a_rounding_beyond_a_bound_is_cut():
    one = batch(2, action=np.array([[10.0 + 1e-6, 1.0], [0.0, 0.0]]))
    made = scaling_of(one, bounds={"left": (0.0, 10.0)}).scaled(one)
    assert made.action[:, 0].tolist() == [1.0, -1.0]
