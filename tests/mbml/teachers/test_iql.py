"""Implicit Q-learning against one task written a row at a time in float64, and its expectile."""

import pytest
import torch

from mbml.rows import RowLayout
from mbml.teachers.iql import IQL, IQLConfig, expectile_loss
from tests.mbml.toys import LAYOUT, Layers, forward, layers_of, random_rows, scatter, seeded, trainable

SMALL = IQLConfig(hidden=(9, 7), learning_rate=3e-3, weight_limit=4.0)


def make(config: IQLConfig = SMALL, layout: RowLayout = LAYOUT, tasks: int = 1) -> IQL:
    return IQL(config, layout, tasks, seeded())


class NaiveIQL:
    """One task of Kostrikov et al., a row at a time: value, policy, critics, targets."""

    def __init__(self, iql: IQL) -> None:
        self.config = iql.config
        self.policy, self.value = layers_of(iql.policy), layers_of(iql.value)
        self.critics, self.targets = ([layers_of(n, k) for k in range(2)] for n in (iql.critics, iql.target_critics))
        self.log_std = iql.log_std[0, 0].detach().double().clone().requires_grad_()
        everything = {
            "value": trainable(self.value),
            "policy": [*trainable(self.policy), self.log_std],
            "critic": [p for critic in self.critics for p in trainable(critic)],
        }
        self.optimisers = {n: torch.optim.Adam(p, lr=3e-3, foreach=False) for n, p in everything.items()}

    def descend(self, name: str, losses: list[torch.Tensor]) -> float:
        loss = torch.stack(losses).mean()
        self.optimisers[name].zero_grad()
        loss.backward()
        self.optimisers[name].step()
        return loss.item()

    def update(self, rows: torch.Tensor) -> dict[str, float]:
        parts = [LAYOUT.split(row) for row in rows]
        lesser = [min(forward(target, row.observation, row.action).item() for target in self.targets) for row in parts]
        losses = []
        for row, q in zip(parts, lesser, strict=True):
            difference = q - forward(self.value, row.observation)[0]
            losses.append((0.3 if difference.item() < 0 else 0.7) * difference**2)
        value_loss = self.descend("value", losses)

        losses, weights = [], []
        for row, q in zip(parts, lesser, strict=True):
            advantage = q - forward(self.value, row.observation).item()
            weights.append(min(torch.exp(torch.tensor(3.0 * advantage).double()).item(), self.config.weight_limit))
            mean = torch.tanh(forward(self.policy, row.observation))
            density = torch.distributions.Normal(mean, self.log_std.exp()).log_prob(row.action.double()).sum()
            losses.append(-weights[-1] * density)
        policy_loss = self.descend("policy", losses)
        self.limited = sum(w == self.config.weight_limit for w in weights)

        losses = []
        for row in parts:
            following = forward(self.value, row.next_observation).item()
            target = row.reward.item() + (1 - row.terminated.item()) * 0.99 * following
            losses.append(sum((forward(c, row.observation, row.action)[0] - target) ** 2 for c in self.critics))
        critic_loss = self.descend("critic", losses)
        follow(self.targets, self.critics)
        return {"value_loss": value_loss, "policy_loss": policy_loss, "critic_loss": critic_loss}


def follow(targets: list[Layers], networks: list[Layers]) -> None:
    with torch.no_grad():
        for target, network in zip(targets, networks, strict=True):
            for old, new in zip(target, network, strict=True):
                for t, p in zip(old, new, strict=True):
                    t.copy_(0.995 * t + 0.005 * p)


def assert_same_weights(network, members: list[Layers]) -> None:
    for member, layers in enumerate(members):
        for found, wanted in zip(layers_of(network, member), layers, strict=True):
            for f, w in zip(found, wanted, strict=True):
                torch.testing.assert_close(f, w.detach(), rtol=1e-3, atol=2e-5)


def test_it_is_the_one_written_a_row_at_a_time():
    iql = make()
    scatter(iql.target_critics)
    naive, limited = NaiveIQL(iql), 0
    for number in range(4):
        rows = random_rows(1, 12, seed=number)
        found, expected = iql.update(rows), naive.update(rows[0])
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        limited += naive.limited
    assert 0 < limited < 48  # some weights are at their limit, some are not
    assert_same_weights(iql.policy, [naive.policy])
    assert_same_weights(iql.value, [naive.value])
    assert_same_weights(iql.critics, naive.critics)
    assert_same_weights(iql.target_critics, naive.targets)
    torch.testing.assert_close(iql.log_std[0, 0].double(), naive.log_std.detach(), rtol=1e-4, atol=1e-6)


def test_the_expectile_of_a_sample_is_where_its_loss_is_least():
    sample = torch.randn(1, 5_000, 1, generator=seeded()).double()
    for expectile, expected in ((0.5, sample.mean().item()), (0.9, 0.8616)):  # of a standard normal
        place = torch.zeros(1, 1, 1).double().requires_grad_()
        optimiser = torch.optim.Adam([place], lr=0.05)
        for _ in range(300):
            optimiser.zero_grad()
            expectile_loss(sample - place, expectile).sum().backward()
            optimiser.step()
        assert place.item() == pytest.approx(expected, abs=0.05)


def test_the_end_of_an_episode_is_worth_its_reward_alone():
    """However large the value of the next observation, a terminal row's target does not know it."""
    rows = random_rows(1, 12)
    rows[..., -1] = 1
    other = rows.clone()
    other[..., LAYOUT.pair_size : LAYOUT.pair_size + 3] = 50.0
    assert torch.equal(make().update(rows)["critic_loss"], make().update(other)["critic_loss"])
