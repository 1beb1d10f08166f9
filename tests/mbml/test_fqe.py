"""Fitted Q evaluation against the linear equations of small chains, solved."""

import numpy as np
import pytest
import torch

from mbml.fqe import FQEConfig, Logged, fqe_training
from mbml.learner import NotFinite
from mbml.rows import RowLayout
from mbml.seeding import generator_of
from mbml.training import run

STATES, DISCOUNT = 4, 0.9
LAYOUT = RowLayout(STATES, 1)
CONFIG = FQEConfig(hidden=(32,), steps=1_500, batch_size=64, discount=DISCOUNT, tau=0.1, learning_rate=3e-3)
POLICIES = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]])
"""What each of two policies does in each state."""


def chain(rewards: list[float], ends: bool) -> tuple[Logged, np.ndarray]:
    """Every transition of a ring of states, forward by the action 1 and back by -1, and both policies' values `[S, P]`
    by a linear system; with `ends`, going forward from the last state is the end."""
    rows, following = [], torch.zeros(STATES, 2, dtype=torch.long)
    eye = torch.eye(STATES)
    for state in range(STATES):
        for which, action in enumerate((-1, 1)):
            following[state, which] = (state + action) % STATES
            last = ends and state == STATES - 1 and action == 1
            parts = eye[state], torch.tensor([float(action)]), eye[following[state, which]]
            rows.append(torch.cat([*parts, torch.tensor([rewards[state] * (1 + action), float(last)])]))
    table = torch.stack(rows)
    seen, then = (part.argmax(1) for part in (table[:, :STATES], table[:, STATES + 1 : 2 * STATES + 1]))
    logged = Logged(table, POLICIES.T[seen].unsqueeze(-1), POLICIES.T[then].unsqueeze(-1))
    solved = []
    for policy in POLICIES:
        matrix, gain = np.eye(STATES), np.zeros(STATES)
        for state in range(STATES):
            which = int(policy[state] > 0)
            gain[state] = (1 - DISCOUNT) * rewards[state] * (1 + float(policy[state]))
            if not (ends and state == STATES - 1 and which == 1):
                matrix[state, following[state, which]] -= DISCOUNT
        solved.append(np.linalg.solve(matrix, gain))
    return logged, np.stack(solved, 1)[seen]


def test_values_are_those_of_the_linear_equations_whether_or_not_a_task_ends():
    both = chain([0.0, 1.0, -1.0, 3.0], False), chain([0.5, 0.0, 0.0, 2.0], True)
    tasks, wanted = [task for task, _ in both], [values for _, values in both]
    training = fqe_training(CONFIG, LAYOUT, tasks, generator_of(0, "fqe"))
    run(training)
    for found, true in zip(training.learner.values(tasks), wanted, strict=True):
        assert np.ptp(true) > 0.3
        np.testing.assert_allclose(found.numpy(), true, atol=0.05)


def test_a_constant_reward_is_known_before_anything_is_learned():
    task, _ = chain([0.0] * STATES, False)
    task.rows[:, -2] = 7.0
    training = fqe_training(CONFIG, LAYOUT, [task], generator_of(0, "fqe"))
    run(training)
    np.testing.assert_allclose(training.learner.values([task])[0].numpy(), 7.0, atol=0.02)


def test_values_stay_within_what_rewards_allow_for_actions_that_nothing_is_known_of():
    task, _ = chain([1.0, 1.0, 1.0, 2.0], False)
    wild = task._replace(action=task.action * 50, next_action=task.next_action * 50)
    training = fqe_training(FQEConfig(steps=300, tau=1.0, learning_rate=0.01), LAYOUT, [wild], generator_of(0, "fqe"))
    run(training)
    assert all(point["fqe_loss"] < 100 for point in training.curve)


def test_numbers_that_are_not_finite_end_it_with_a_sentence():
    task, _ = chain([1.0, 1.0, 1.0, 2.0], False)
    task.next_action[0] = float("nan")
    with pytest.raises(NotFinite, match="fqe_loss is not finite within the updates up to"):
        run(fqe_training(FQEConfig(steps=20), LAYOUT, [task], generator_of(0, "fqe")))
