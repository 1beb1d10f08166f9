"""What logs say of a policy: stretches and their tasks, next actions, blocks of episodes."""

import numpy as np
import pytest
import torch

from mbml.assess import by_blocks, identified, next_actions, under
from mbml.encoders import Belief
from mbml.seeding import generator_of
from mbml.transitions import TransitionBatch
from tests.mbml.logs.fleet import machine
from tests.mbml.toys import UMAZE, random_rows


class Reads:
    """A policy whose belief of a task is the mean reward seen, and whose action is that belief."""

    layout = UMAZE

    class encoder:
        @staticmethod
        def infer(context: torch.Tensor) -> Belief:
            if context.shape[-2] == 0:
                return Belief(*torch.zeros(2, *context.shape[:-2], 1))
            return Belief(context[..., -1].mean(-1, keepdim=True), torch.zeros(*context.shape[:-2], 1))

        @staticmethod
        def divergence(a: Belief, b: Belief) -> torch.Tensor:
            return (a.mean - b.mean).square().sum(-1)

    @staticmethod
    def act(observation: torch.Tensor, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return z.expand(len(observation), UMAZE.action_size)


def rows_of_reward(reward: float, number: int) -> torch.Tensor:
    rows = random_rows(1, number, UMAZE)[0].clone()
    rows[:, -2] = reward
    return rows


def test_stretches_are_of_the_task_whose_belief_is_nearest():
    known = Belief(torch.tensor([[0.0], [1.0], [2.0]]), torch.zeros(3, 1))
    policy, generator = Reads(), generator_of(0)
    held = [rows_of_reward(0.1, 30), rows_of_reward(0.9, 30), rows_of_reward(0.2, 4)]
    # The third is taken for the first; it is too short for five transitions.
    assert identified(policy, known, held, 1, 8, generator) == pytest.approx(2 / 3)  # pyright: ignore[reportArgumentType]
    assert identified(policy, known, held, 5, 8, generator) == 1.0  # pyright: ignore[reportArgumentType]
    assert np.isnan(identified(policy, known, held, 31, 8, generator))  # pyright: ignore[reportArgumentType]


def test_a_policy_acts_under_what_it_has_seen_or_untold():
    observation, rows = torch.zeros(5, UMAZE.observation_size), rows_of_reward(0.7, 10)
    told = under(Reads(), UMAZE.context(rows), generator_of(0))(observation)  # pyright: ignore[reportArgumentType]
    untold = under(Reads(), None, generator_of(0))(observation)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(told, torch.full((5, UMAZE.action_size), 0.7))
    assert (untold == 0).all()


def test_the_next_action_is_that_of_the_next_row_of_the_episode():
    batch = TransitionBatch(**machine((3, 1, 2)))
    wanted = batch.action[[1, 2, 2, 3, 5, 5]]
    assert np.array_equal(next_actions(batch), wanted)


def test_blocks_are_successive_episodes_with_their_means():
    episode = np.array([3, 3, 4, 9, 9, 9])
    values = np.arange(12.0).reshape(6, 2)
    assert np.array_equal(by_blocks(values, episode), [[1.0, 2.0], [4.0, 5.0], [8.0, 9.0]])
    many = np.repeat(np.arange(1_000), 2)
    blocks = by_blocks(many[:, None].astype(float), many)
    assert blocks[:, 0].tolist() == [20 * block + 9.5 for block in range(50)]
