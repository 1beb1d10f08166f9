"""Batches in which good episodes are drawn more often, beside loops over episodes and rows."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from mbml.rows import FlatRows, Lengths
from mbml.seeding import generator_of
from mbml.settings import ConfigError
from mbml.teachers.td3_bc import TD3BCConfig
from mbml.transitions import TransitionBatch
from mbml.weighting import episode_weights, weighted_batches


def shard(rewards: list[float], episodes: list[int]) -> TransitionBatch:
    number = len(rewards)
    vector, flag = np.zeros((number, 1), np.float32), np.zeros(number, bool)
    numbers = np.array(episodes, np.int32)
    return TransitionBatch(vector, vector, vector, np.array(rewards, np.float32), flag, flag, numbers, numbers)


def test_a_row_weighs_by_its_episode_s_return_among_its_task_s_whatever_shard_it_is_in():
    rewards, episodes = [1.0, 2.0, -3.0, 4.0, 0.5, 0.5], [7, 7, 2, 2, 9, 9]
    shards = [shard(rewards[:3], episodes[:3]), shard(rewards[3:], episodes[3:])]
    returns = {e: sum(r for r, own in zip(rewards, episodes, strict=True) if own == e) for e in episodes}
    low, high = min(returns.values()), max(returns.values())
    wanted = [math.exp(2.5 * (returns[e] - low) / (high - low)) for e in episodes]
    mean = sum(wanted) / len(wanted)
    assert episode_weights(shards, 2.5).tolist() == pytest.approx([w / mean for w in wanted])
    assert episode_weights(shards, 0.0).tolist() == [1.0] * 6
    assert episode_weights([shard([1.0, 1.0], [0, 1])], 5.0).tolist() == [1.0, 1.0]  # no episode is better
    best = episode_weights(shards, 1e300).tolist()  # the best alone
    assert best == pytest.approx([3.0, 3.0, 0, 0, 0, 0])


@pytest.mark.parametrize("lengths", [(4, 4, 4), (2, 5, 3)])
def test_rows_are_drawn_as_often_as_they_weigh_among_their_task_s(lengths):
    number = sum(lengths)
    flat = torch.arange(float(number)).unsqueeze(1).expand(-1, 6).contiguous()
    rows = flat.view(3, -1, 6) if len(set(lengths)) == 1 else FlatRows(flat, Lengths(lengths))
    weights = torch.rand(number, generator=generator_of(0, "weights"), dtype=torch.float64) + 0.1
    weights[1] = 0.0
    draw = weighted_batches(rows, weights, 500, generator_of(0, "drawn"))
    counts = Counter[float]()
    for _ in range(40):
        (batch,) = draw()
        assert batch.shape == (3, 500, 6)
        for task, own in enumerate(batch[..., 0].tolist()):
            start = sum(lengths[:task])
            assert all(start <= row < start + lengths[task] for row in own)
            counts.update(own)
    for task, own in enumerate(weights.split(lengths)):
        start = sum(lengths[:task])
        for row, share in enumerate((own / own.sum()).tolist()):
            deviation = math.sqrt(share * (1 - share) / 20_000)
            assert counts[start + row] / 20_000 == pytest.approx(share, abs=5 * deviation + 1e-12)
    assert counts[1.0] == 0


def test_shares_that_round_to_more_or_less_than_one_leave_every_row_inside_its_task():
    lengths = (1, 1_000, 1)
    flat = torch.arange(1_002.0).unsqueeze(1)
    weights = torch.full((1_002,), 1 / 3, dtype=torch.float64)
    draw = weighted_batches(FlatRows(flat, Lengths(lengths)), weights, 2_000, generator_of(1))
    (batch,) = draw()
    assert set(batch[0, :, 0].tolist()) == {0.0}
    assert batch[1, :, 0].min() >= 1
    assert batch[1, :, 0].max() <= 1_000
    assert set(batch[2, :, 0].tolist()) == {1_001.0}


def test_others_transitions_have_no_weights():
    with pytest.raises(ConfigError, match="set one"):
        TD3BCConfig(foreign_share=0.5, return_weight=2.0)
