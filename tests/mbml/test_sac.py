"""Soft actor-critic: its density, its gradient by hand, its acting rule, and a toy that it must solve."""

from dataclasses import replace

import pytest
import torch

from mbml.rows import RowLayout, sample_indices
from mbml.sac import SAC, SACConfig, Squashed
from tests.mbml.toys import (
    LAYOUT,
    POINT,
    assert_same_bits,
    clone,
    forward,
    layers_of,
    point_rows,
    point_step,
    random_rows,
    seeded,
)

SMALL = SACConfig(policy_hidden=(8, 8), critic_hidden=(9, 7), batch_size=12, critic_initialisation="torch")


def learner(tasks=2, seed=0, config=SMALL, layout=LAYOUT):
    return SAC(config, layout, tasks, seeded(seed))


def spread(sac):
    """Make the policy's output layer as large as the others; as initialised, all states look alike to it."""
    with torch.no_grad():
        sac.policy.weights[-1].mul_(500)
    return sac


def test_log_density_is_that_of_the_squashed_gaussian():
    head = torch.tensor([[0.3, -0.7, -0.5, 0.2]], dtype=torch.float64)
    action, log_density, *_ = Squashed.draw(head, seeded(1))
    base = torch.distributions.Normal(head[0, :2], head[0, 2:].exp())
    squashed = torch.distributions.TransformedDistribution(base, torch.distributions.transforms.TanhTransform())
    assert log_density.item() == pytest.approx(squashed.log_prob(action[0]).sum().item(), abs=1e-4)


def test_standard_deviation_is_clamped():
    """A log-density depends on the clamped log-std alone, whatever the head says beyond it."""
    for beyond, limit in ((50.0, 2.0), (-50.0, -20.0)):
        outside, inside = (torch.tensor([[0.1, value]]) for value in (beyond, limit))
        assert_same_bits(Squashed.draw(outside, seeded(1))[:2], Squashed.draw(inside, seeded(1))[:2])


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


@pytest.mark.parametrize("target", [-1.0, -0.25])
def test_temperature_is_tuned_towards_the_target_entropy(target):
    sac = learner(config=replace(SMALL, target_entropy=target))
    before, density = sac.log_alpha.detach().clone(), torch.randn(2, 12, 1, generator=seeded(1))
    loss = -(sac.log_alpha * (density + 2 * target)).mean((1, 2)).sum()  # of two actions; Haarnoja et al. 2019, Eq. 18
    (wanted,) = torch.autograd.grad(loss, sac.log_alpha)
    sac._step_alpha(density)
    torch.testing.assert_close(sac.log_alpha.grad, wanted)
    assert ((sac.log_alpha > before) == (wanted < 0)).all()


def test_paper_size_makes_a_step():
    layout = RowLayout(4, 2)
    sac = SAC(SACConfig(), layout, 1, seeded())
    assert sac.critics.sizes == (6, *(1024,) * 7, 1)
    assert sac.policy.sizes == (4, 256, 256, 4)
    losses = sac.update(random_rows(1, 256, layout))
    assert all(torch.isfinite(value).all() for value in losses.values())
