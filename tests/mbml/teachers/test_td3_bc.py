"""TD3+BC against one task written a row at a time in float64, and its delay."""

import pytest
import torch

from mbml.teachers.td3_bc import TD3BC, TD3BCConfig
from tests.mbml.teachers.test_iql import assert_same_weights, follow
from tests.mbml.toys import LAYOUT, clone, forward, layers_of, random_rows, scatter, seeded, snapshot, trainable

SMALL = TD3BCConfig(hidden=(9, 7), learning_rate=3e-3, target_noise=0.4)


def make(config: TD3BCConfig = SMALL) -> TD3BC:
    return TD3BC(config, LAYOUT, 1, seeded())


class NaiveTD3BC:
    """One task of Fujimoto and Gu, a row at a time; noise comes from outside."""

    def __init__(self, td3: TD3BC) -> None:
        self.policy, self.target_policy = layers_of(td3.policy), layers_of(td3.target_policy)
        self.critics, self.targets = ([layers_of(n, k) for k in range(2)] for n in (td3.critics, td3.target_critics))
        critics = [p for critic in self.critics for p in trainable(critic)]
        self.critic_optimiser = torch.optim.Adam(critics, lr=3e-3, foreach=False)
        self.policy_optimiser = torch.optim.Adam(trainable(self.policy), lr=3e-3, foreach=False)
        self.iteration = 0

    @staticmethod
    def descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> float:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    def update(self, rows: torch.Tensor, noise: torch.Tensor) -> dict[str, float]:
        self.iteration += 1
        parts = [LAYOUT.split(row) for row in rows]
        losses = []
        for row, drawn in zip(parts, noise, strict=True):
            action = torch.tanh(forward(self.target_policy, row.next_observation))
            action = torch.clamp(action + torch.clamp(0.4 * drawn.double(), -0.5, 0.5), -1, 1)
            value = min(forward(target, row.next_observation, action).item() for target in self.targets)
            wanted = row.reward.item() + (1 - row.terminated.item()) * 0.99 * value
            losses.append(sum((forward(c, row.observation, row.action)[0] - wanted) ** 2 for c in self.critics))
        result = {"critic_loss": self.descend(self.critic_optimiser, torch.stack(losses).mean())}
        if self.iteration % 2:
            return result
        chosen = [torch.tanh(forward(self.policy, row.observation)) for row in parts]
        values = [forward(self.critics[0], row.observation, a)[0] for row, a in zip(parts, chosen, strict=True)]
        size = sum(abs(value.item()) for value in values) / len(values)
        imitation = torch.stack([((a - row.action) ** 2).mean() for row, a in zip(parts, chosen, strict=True)]).mean()
        loss = imitation - 2.5 / size * torch.stack(values).mean()
        result["policy_loss"] = self.descend(self.policy_optimiser, loss)
        follow(self.targets, self.critics)
        follow([self.target_policy], [self.policy])
        return result


def test_it_is_the_one_written_a_row_at_a_time():
    td3 = make()
    scatter(td3.target_critics, td3.target_policy)
    naive = NaiveTD3BC(td3)
    for number in range(5):
        rows = random_rows(1, 12, seed=number)
        noise = torch.randn(1, 12, 2, generator=clone(td3.generator))
        found, expected = td3.update(rows), naive.update(rows[0], noise[0])
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert_same_weights(td3.policy, [naive.policy])
    assert_same_weights(td3.target_policy, [naive.target_policy])
    assert_same_weights(td3.critics, naive.critics)
    assert_same_weights(td3.target_critics, naive.targets)


def test_policy_and_targets_wait_for_their_turn():
    td3, moved = make(TD3BCConfig(hidden=(8, 8), policy_delay=3)), []
    for number in range(7):
        before = snapshot([td3.policy.state_dict(), td3.target_critics.state_dict()])
        losses = td3.update(random_rows(1, 12, seed=number))
        after = [td3.policy.state_dict(), td3.target_critics.state_dict()]
        changed = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(after, before, strict=True)]
        assert changed == ["policy_loss" in losses] * 2
        moved += [number + 1] * changed[0]
    assert moved == [3, 6]


def test_without_a_weight_on_the_value_it_clones_the_batch():
    td3 = make(TD3BCConfig(hidden=(32, 32), learning_rate=1e-2, alpha=0.0, policy_delay=1))
    rows = random_rows(1, 64)
    rows[..., 3:5] = torch.tanh(rows[..., :2])
    for _ in range(300):
        td3.update(rows)
    shown = LAYOUT.split(rows)
    assert (td3.teachers().act(shown.observation, seeded()) - shown.action).abs().mean() < 0.05
