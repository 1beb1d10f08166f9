"""The stacked soft actor-critic against one written per task in float64, and on a toy that it must solve."""

import pytest
import torch

from mbml.rows import RowLayout, sample_indices
from mbml.sac import SAC, SACConfig, Squashed, squashed_sample
from tests.mbml.toys import (
    LAYOUT,
    POINT,
    assert_resumes,
    assert_same_bits,
    assert_seed_decides_every_bit,
    clone,
    forward,
    layers_of,
    point_rows,
    point_step,
    random_rows,
    scatter,
    seeded,
    trainable,
)

SMALL = SACConfig(policy_hidden=(8, 8), critic_hidden=(9, 7), batch_size=12, critic_initialisation="torch")


def learner(tasks=2, seed=0, config=SMALL, layout=LAYOUT):
    return SAC(config, layout, tasks, seeded(seed))


def spread(sac):
    """Make the policy's output layer as large as the others; as initialised, all states look alike to it."""
    with torch.no_grad():
        sac.policy.weights[-1].mul_(500)
    return sac


class NaiveSAC:
    """One task of section 1.2, a row at a time; noise comes from outside."""

    def __init__(self, sac, task):
        tasks = sac.tasks
        self.policy = layers_of(sac.policy, task)
        self.critics = [layers_of(sac.critics, task), layers_of(sac.critics, tasks + task)]
        self.targets = [layers_of(sac.target_critics, task), layers_of(sac.target_critics, tasks + task)]
        self.log_alpha = sac.log_alpha[task].detach().double().reshape(()).clone().requires_grad_()

        def optimiser(parameters):
            return torch.optim.Adam(parameters, lr=3e-4, foreach=False)

        self.policy_optimiser = optimiser(trainable(self.policy))
        self.critic_optimisers = [optimiser(trainable(critic)) for critic in self.critics]
        self.alpha_optimiser = optimiser([self.log_alpha])

    def draw(self, s, noise):
        """Action and log-density for one observation."""
        head = forward(self.policy, s)
        size = len(head) // 2
        action, log_density = [], torch.zeros((), dtype=torch.float64)
        for d in range(size):
            std = torch.exp(torch.clamp(head[size + d], -20, 2))
            u = head[d] + std * noise[d].double()
            normal = torch.distributions.Normal(head[d], std)
            log_density = log_density + normal.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2 + 1e-6)
            action.append(torch.tanh(u))
        return torch.stack(action), log_density

    def update(self, rows, layout, noise, next_noise):
        s, a, s2, r, d = layout.split(rows)
        number = len(rows)
        drawn = [self.draw(s[b], noise[b]) for b in range(number)]

        gaps = [(log_density - layout.action_size).detach() for _, log_density in drawn]
        self.descend(self.alpha_optimiser, -sum(self.log_alpha * gap for gap in gaps) / number)
        alpha = self.log_alpha.detach().exp()

        targets = []
        with torch.no_grad():
            for b in range(number):
                action, log_density = self.draw(s2[b], next_noise[b])
                value = min(forward(target, s2[b], action).item() for target in self.targets)
                targets.append(r[b].item() + (1 - d[b].item()) * 0.99 * (value - (alpha * log_density).item()))
        critic_losses = []
        for critic, optimiser in zip(self.critics, self.critic_optimisers, strict=True):
            loss = sum((forward(critic, s[b], a[b])[0] - targets[b]) ** 2 for b in range(number)) / number
            critic_losses.append(self.descend(optimiser, loss))

        policy_loss = torch.zeros(())
        for b, (action, log_density) in enumerate(drawn):
            value = torch.minimum(*(forward(critic, s[b], action)[0] for critic in self.critics))
            policy_loss = policy_loss + (alpha * log_density - value) / number
        policy_loss = self.descend(self.policy_optimiser, policy_loss)

        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for old, new in zip(target, critic, strict=True):
                    for t, c in zip(old, new, strict=True):
                        t.copy_(0.995 * t + 0.005 * c)
        entropy = -sum(log_density.item() for _, log_density in drawn) / number
        return {
            "critic_loss": sum(critic_losses) / 2,
            "policy_loss": policy_loss,
            "alpha": alpha.item(),
            "entropy": entropy,
        }

    @staticmethod
    def descend(optimiser, loss):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_stack_is_separate_learners_written_a_row_at_a_time(tasks):
    sac = spread(learner(tasks))
    scatter(sac.target_critics)
    naive = [NaiveSAC(sac, task) for task in range(tasks)]
    for update in range(3):
        rows = random_rows(tasks, 12, seed=update)
        generator = clone(sac.generator)
        noise, next_noise = torch.randn(tasks, 24, 2, generator=generator).chunk(2, dim=1)
        found = sac.update(rows)
        for task in range(tasks):
            expected = naive[task].update(rows[task], LAYOUT, noise[task], next_noise[task])
            for name, value in expected.items():
                assert found[name][task].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for task in range(tasks):
        stacked = {
            "policy": (sac.policy, [(task, naive[task].policy)]),
            "critics": (sac.critics, [(task + k * tasks, naive[task].critics[k]) for k in range(2)]),
            "targets": (sac.target_critics, [(task + k * tasks, naive[task].targets[k]) for k in range(2)]),
        }
        for network, members in stacked.values():
            for member, layers in members:
                for found_pair, wanted_pair in zip(layers_of(network, member), layers, strict=True):
                    for f, w in zip(found_pair, wanted_pair, strict=True):
                        torch.testing.assert_close(f, w.detach(), rtol=1e-4, atol=2e-5)
        assert sac.log_alpha[task].item() == pytest.approx(naive[task].log_alpha.item(), abs=1e-6)


def test_targets_start_as_copies_and_no_gradient_reaches_them():
    sac = learner()
    assert_same_bits(sac.critics.state_dict(), sac.target_critics.state_dict())
    sac.update(random_rows(2, 12))
    assert all(p.grad is None for p in sac.target_critics.parameters())


def test_log_density_is_that_of_the_squashed_gaussian():
    head = torch.tensor([[0.3, -0.7, -0.5, 0.2]], dtype=torch.float64)
    action, log_density = squashed_sample(head, seeded(1))
    base = torch.distributions.Normal(head[0, :2], head[0, 2:].exp())
    squashed = torch.distributions.TransformedDistribution(base, torch.distributions.transforms.TanhTransform())
    assert log_density.item() == pytest.approx(squashed.log_prob(action[0]).sum().item(), abs=1e-4)


def test_standard_deviation_is_clamped():
    """A log-density depends on the clamped log-std alone, whatever the head says beyond it."""
    for beyond, limit in ((50.0, 2.0), (-50.0, -20.0)):
        outside, inside = (torch.tensor([[0.1, value]]) for value in (beyond, limit))
        assert_same_bits(squashed_sample(outside, seeded(1)), squashed_sample(inside, seeded(1)))


def test_gradient_of_a_draw_is_that_of_autograd():
    head = torch.randn(2, 9, 6, generator=seeded(3), dtype=torch.float64)
    head[0, 0, 3:] = torch.tensor([2.5, -20.5, 1.9])  # clamped above, below, and not
    head.requires_grad_()
    drawn = Squashed.draw(head, seeded(1))
    to_action = torch.randn(drawn.action.shape, generator=seeded(4))
    to_log_density = torch.tensor([0.3, -0.7]).view(2, 1, 1)
    scalar = (drawn.action * to_action).sum() + (drawn.log_density * to_log_density).sum()
    (wanted,) = torch.autograd.grad(scalar, head)
    assert wanted[0, 0, 3:5].abs().sum() == 0
    torch.testing.assert_close(drawn.backward(to_action, to_log_density).detach(), wanted)


def test_acting():
    sac = spread(learner())
    observation = torch.randn(2, 5, 3, generator=seeded(1))
    before = clone(sac.generator)
    mean = sac.act(observation, deterministic=True)
    assert torch.equal(sac.generator.get_state(), before.get_state())
    for task in range(2):
        expected = torch.tanh(forward(layers_of(sac.policy, task), observation[task])[:, :2])
        torch.testing.assert_close(mean[task].double(), expected, rtol=1e-5, atol=1e-6)
    noise = torch.randn(2, 5, 2, generator=before)
    for task in range(2):
        head = forward(layers_of(sac.policy, task), observation[task])
        draws = torch.tanh(head[:, :2] + head[:, 2:].clamp(-20, 2).exp() * noise[task].double())
        if task == 0:
            sampled = sac.act(observation)
        torch.testing.assert_close(sampled[task].double(), draws, rtol=1e-4, atol=1e-5)


def test_a_resumed_learner_is_one_that_never_stopped(tmp_path):
    assert_resumes(learner, tmp_path, 12)


def test_the_seed_decides_every_bit():
    assert_seed_decides_every_bit(learner, 12, "policy")


def point_return(policy, steps=20):
    x = torch.linspace(-1, 1, 11).view(1, -1, 1)
    total = 0.0
    for _ in range(steps):
        x = point_step(x, policy(x))
        total += -x.square().mean().item()
    return total


def test_it_learns_to_move_a_point_to_zero():
    config = SACConfig(
        policy_hidden=(32, 32),
        critic_hidden=(32, 32),
        critic_initialisation="torch",
        batch_size=64,
        learning_rate=3e-3,
        alpha_learning_rate=3e-3,
        initial_alpha=0.1,
        discount=0.9,
        tau=0.02,
    )
    sac = learner(1, config=config, layout=POINT)
    rows = point_rows(2_000)
    before = point_return(lambda x: sac.act(x, deterministic=True))
    batches = seeded(1)
    for _ in range(500):
        sac.update(rows[:, sample_indices(1, 64, 2_000, batches)[0]])
    after = point_return(lambda x: sac.act(x, deterministic=True))
    # Going straight at 0.3 a step from a uniform start loses about 0.7; standing still 8.
    best = point_return(lambda x: (-x / 0.3).clamp(-1, 1))
    assert before < 4 * best
    assert after > 1.5 * best


def test_paper_size_makes_a_step():
    layout = RowLayout(4, 2)
    sac = SAC(SACConfig(), layout, 1, seeded())
    assert sac.critics.sizes == (6, *(1024,) * 7, 1)
    assert sac.policy.sizes == (4, 256, 256, 4)
    losses = sac.update(random_rows(1, 256, layout))
    assert all(torch.isfinite(value).all() for value in losses.values())
