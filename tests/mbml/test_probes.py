"""Probes on encoders built by hand, of which the answer is known."""

import pytest
import torch

from mbml.policy import Student, StudentConfig
from mbml.probes import own_posteriors, reward_swap
from tests.mbml.toys import LAYOUT, layers_of, naive_posterior, random_rows, seeded

K, P = 4, 200


def reader(column):
    """A student whose embedding is the mean of one column of the context, with unit variance per transition."""
    student = Student(StudentConfig((2,), 1, (4,), (4,), (4,)), LAYOUT, seeded())
    body = student.encoder.body
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.zero_()
        body.weights[0][0, column] = torch.tensor([1.0, -1.0])
        body.weights[1][0, :, 0] = torch.tensor([1.0, -1.0])
        body.biases[1][0, 0, 1] = 0.5413
    return student


def world():
    """Task j is at s = 10 j and pays 10 i to task i."""
    rows = random_rows(K, P)
    rows[..., 0] += 10 * torch.arange(K).unsqueeze(1)
    truth = torch.randn(K, K, P, generator=seeded(1)) + 10 * torch.arange(K).view(K, 1, 1)
    everyone = torch.arange(K)
    rows[..., -2] = truth[everyone, everyone]
    return rows, truth


@pytest.mark.parametrize(("column", "winner"), [(-1, "follows_reward"), (0, "follows_state_action")])
def test_reward_swap_of_encoders_that_read_one_column(column, winner):
    rows, truth = world()
    found = reward_swap(reader(column), rows, truth, LAYOUT, seeded(), size=32, repeats=2)
    shares = {name: found[name] for name in ("follows_reward", "follows_state_action", "other")}
    assert shares == {name: float(name == winner) for name in shares}
    assert found["own_identified"] == 1.0
    assert found["pairs"] == K * (K - 1)


def test_reward_swap_of_an_encoder_that_reads_something_else():
    rows, truth = world()
    rows[..., 3] = 10 * torch.arange(K).roll(0).unsqueeze(1)  # an action column, the same signal as the state
    assert reward_swap(reader(3), rows, truth, LAYOUT, seeded(), size=32)["follows_state_action"] == 1.0
    rows[..., 3] = 0
    found = reward_swap(reader(3), rows, truth, LAYOUT, seeded(), size=32)  # every context looks the same
    assert found["own_identified"] == pytest.approx(1 / K)
    assert found["follows_reward"] + found["follows_state_action"] + found["other"] == pytest.approx(1.0)


def test_own_posteriors():
    rows, _ = world()
    student = reader(-1)
    q = own_posteriors(student, rows, LAYOUT, 6, 3, seeded(2))
    assert q.mean.shape == (K, 3, 1)
    indices = torch.randint(P, (K, 18), generator=seeded(2))
    for j in range(K):
        for n in range(3):
            chosen = [LAYOUT.context(rows[j, t]) for t in indices[j, n * 6 : (n + 1) * 6]]
            expected = naive_posterior(layers_of(student.encoder.body), chosen, 1)
            torch.testing.assert_close(q.mean[j, n].double(), expected.mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(q.variance[j, n].double(), expected.variance, rtol=1e-4, atol=1e-6)
