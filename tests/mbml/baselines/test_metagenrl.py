"""MetaGenRL against one written a transition at a time in float64, its meta-gradient, its segments and its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbml.baselines.metagenrl import (
    LearnedObjective,
    MetaGenRL,
    MetaGenRLConfig,
    Segments,
    SegmentSampler,
    clipped_step,
    metagenrl_training,
    stretches,
)
from mbml.rollout import run_episode
from mbml.seeding import generator_of
from mbml.training import run
from tests.mbml.baselines.naive_metagenrl import NETWORKS, NaiveMetaGenRL, in_double
from tests.mbml.toys import (
    LAYOUT,
    UMAZE,
    assert_same_bits,
    env_maker,
    random_rows,
    seeded,
    snapshot,
    through_disk,
)

SMALL = MetaGenRLConfig(
    hidden=(6, 5),
    objective_hidden=(6, 4),
    lstm=3,
    steps=25,
    evaluation_episodes=2,
    segments=3,
    objective_segments=4,
    segment_length=4,
    inner_step=0.05,
    anneal=1_000,
)


def learner(seed=0, config=SMALL, rows=None, layout=LAYOUT):
    return MetaGenRL(config, layout, random_rows(1, 60) if rows is None else rows, seeded(seed))


@pytest.mark.parametrize("changes", [{}, {"bonus_on_terminal": False, "clip": 1e-3}])
def test_it_is_the_one_written_a_transition_at_a_time(changes):
    agent = in_double(learner(config=replace(SMALL, **changes)))
    naive = NaiveMetaGenRL(agent)
    for _ in range(3):
        found, expected = agent.update(), naive.update()
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name
    for name in NETWORKS:
        pairs = zip(getattr(agent, name).parameters(), getattr(naive, name).parameters(), strict=True)
        for f, w in pairs:
            torch.testing.assert_close(f, w, rtol=1e-5, atol=1e-7)
    assert torch.equal(agent.generator.get_state(), naive.generator.get_state())


def test_the_meta_gradient_is_that_of_finite_differences():
    agent = in_double(learner())
    segments = agent.sampler.draw(4, seeded(1))
    parameters = list(agent.objective.parameters())
    gradients = torch.autograd.grad(agent._objective_loss(segments), parameters)
    assert all(g.abs().max() > 0 for g in gradients[:-1])  # a constant in the error (the last bias) teaches little
    noise = seeded(2)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=noise).double()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
            ends.append(agent._objective_loss(segments).item())
            with torch.no_grad():
                parameter.sub_(sign * 1e-6 * direction)
        slope = (ends[0] - ends[1]) / 2e-6
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-4, abs=1e-8)


def test_a_step_changes_what_it_is_for_and_nothing_else():
    config = replace(SMALL, policy_every=2, objective_every=3)
    agent = learner(config=config)
    for done in range(7):
        before = {name: snapshot(getattr(agent, name).state_dict()) for name in NETWORKS}
        agent.update()
        changed = set()
        for name in NETWORKS:
            after = getattr(agent, name).state_dict()
            if any(not torch.equal(after[key], before[name][key]) for key in after):
                changed.add(name)
        expected = {"critics"}
        if done % 2 == 0:
            expected |= {"policy", "target_policy", "target_critics"}
        if done % 3 == 0:
            expected |= {"objective"}
        assert changed == expected
    agent.critic_optimiser.zero_grad()
    agent.objective_optimiser.zero_grad()
    clipped_step(agent.policy_optimiser, agent._policy_loss(agent.sampler.draw(3, seeded(1))), agent.policy, 1.0)
    assert all(p.grad is None for network in (agent.critics, agent.objective) for p in network.parameters())
    assert not any(p.requires_grad for name in NETWORKS[3:] for p in getattr(agent, name).parameters())


def test_the_learned_objective_takes_over_with_the_authors_environment_steps():
    agent = learner(config=MetaGenRLConfig(hidden=(3, 3), objective_hidden=(4,), lstm=2))
    found = []
    for done in (0, 9, 10, 155, 159, 160, 20_000):
        agent.steps_done = done
        found.append(agent.progress)
    assert found == pytest.approx([0.06, 0.06, 0.12, 0.96, 0.96, 1.0, 1.0])


def test_stretches_end_with_terminal_rows_or_with_the_data():
    for flags, expected in (
        ([0, 0, 1, 1, 0], [(0, 3), (3, 1), (4, 1)]),
        ([0, 0, 0], [(0, 3)]),
        ([1, 0, 1], [(0, 1), (1, 2)]),
    ):
        starts, lengths = stretches(torch.tensor(flags).float())
        assert list(zip(starts.tolist(), lengths.tolist(), strict=True)) == expected


def test_a_segment_never_crosses_a_terminal_and_every_stretch_is_as_likely():
    flags = torch.zeros(40)
    flags[[2, 30]] = 1  # stretches of 3, 28 and 9 rows
    rows = torch.zeros(1, 40, LAYOUT.row_size)
    rows[0, :, 0], rows[0, :, -1] = torch.arange(1, 41), flags
    drawn, mask = SegmentSampler(rows, 5).draw(6_000, seeded())
    number, length = drawn[..., 0], mask.sum((1, 2)).long()
    assert torch.equal(drawn * (1 - mask), torch.zeros_like(drawn))
    firsts, counts = number[:, 0].long().unique(return_counts=True)
    assert firsts.tolist() == [1, *range(4, 28), *range(32, 37)]
    assert length[number[:, 0] == 1].unique().tolist() == [3]
    assert length[number[:, 0] > 1].unique().tolist() == [5]
    steps = torch.arange(5)
    consecutive = number[:, :1] + steps
    assert torch.equal(number, consecutive * (steps < length[:, None]))
    # A terminal row is the last of its segment.
    last = (steps == length[:, None] - 1).float()
    assert (drawn[..., -1] * (1 - last)).sum() == 0
    assert (drawn[..., -1] * last).sum() > 2_000
    for expected, found in ((2_000, counts[0]), (2_000 / 24, counts[1:25]), (2_000 / 5, counts[25:])):
        assert (np.abs(found.numpy() - expected) < 5 * np.sqrt(expected)).all()


def test_padding_changes_nothing():
    agent = in_double(learner())
    segments = agent.sampler.draw(6, seeded(3))
    assert 0 < segments.mask.mean() < 1
    filled = torch.where(segments.mask > 0, segments.rows, torch.full_like(segments.rows, 3.0))
    losses = []
    for rows in (segments.rows, filled):
        changed = Segments(rows, segments.mask)
        agent.generator.manual_seed(4)
        losses.append([f(changed).item() for f in (agent._critic_loss, agent._policy_loss, agent._objective_loss)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_the_objective_looks_ahead_and_not_back():
    objective = LearnedObjective((6, 4), 3, seeded())
    batch = LAYOUT.split(random_rows(5, 4))
    mask, values = torch.ones(5, 4, 1), torch.randn(5, 4, 2, generator=seeded(1))
    action = torch.randn(5, 4, 2, generator=seeded(2)).tanh().requires_grad_()
    for step in range(4):
        errors = objective(batch, mask, action, values)
        reach = torch.autograd.grad(errors[:, step].sum(), action)[0].abs().sum((0, 2)) > 0
        assert reach.tolist() == [later >= step for later in range(4)]


def test_errors_are_bounded():
    objective = LearnedObjective((6, 4), 3, seeded())
    with torch.no_grad():
        list(objective.error.parameters())[-2].mul_(1e6)
    batch = LAYOUT.split(random_rows(5, 4))
    errors = objective(batch, torch.ones(5, 4, 1), batch.action, torch.randn(5, 4, 2))
    assert 900 < errors.abs().max() <= 1000


TOY = MetaGenRLConfig(
    hidden=(24, 24),
    objective_hidden=(8, 8),
    lstm=8,
    segments=16,
    objective_segments=16,
    segment_length=4,
    learning_rate=1e-2,
    anneal=10**9,
    discount=0.9,
    tau=0.05,
)


def wanted(observation):
    return 0.7 * torch.tanh(2 * observation[..., :2])


def bandit_rows(number):
    """Random rows whose reward is minus the squared distance of the action from the one wanted."""
    rows = random_rows(1, number)
    batch = LAYOUT.split(rows)
    rows[..., -2] = -(batch.action - wanted(batch.observation)).square().sum(-1)
    return rows


def test_the_policy_learns_what_is_rewarded_while_the_critic_leads():
    agent = learner(config=replace(TOY, objective_every=10**9), rows=bandit_rows(2_000))
    observation = torch.randn(200, 3, generator=seeded(5))

    def error():
        return (agent.act(observation) - wanted(observation)).square().sum(-1).mean().item()

    assert error() > 1.0
    for _ in range(200):
        agent.update()
    assert error() < 0.4


def test_the_objective_learns_to_raise_the_value_that_its_step_leaves():
    for seed in range(3):
        agent = learner(seed, TOY, bandit_rows(500))
        segments = agent.sampler.draw(16, seeded(3))
        without = (agent._value(LAYOUT.split(segments.rows).observation) * segments.mask).mean()
        first = -agent._objective_loss(segments)
        for _ in range(20):
            clipped_step(agent.objective_optimiser, agent._objective_loss(segments), agent.objective, 1.0)
        assert -agent._objective_loss(segments) > max(without, first) + 0.02


def test_paper_size_makes_a_round():
    agent = learner(config=MetaGenRLConfig(), rows=random_rows(1, 300, UMAZE), layout=UMAZE)
    shapes = [tuple(p.shape) for p in agent.policy.parameters() if p.dim() == 2]
    assert shapes == [(350, 4), (350, 350), (2, 350)]
    assert [tuple(p.shape) for p in agent.critics[1].parameters() if p.dim() == 2] == [(350, 6), (350, 350), (1, 350)]
    assert tuple(agent.objective.cell.weight_ih.shape) == (128, 64)
    assert all(torch.isfinite(value) for value in agent.update().values())


ROWS = random_rows(1, 60, UMAZE)


def make(config=SMALL, seed=0):
    return metagenrl_training(config, UMAZE, ROWS, env_maker("umaze_goal", [4], 15), 4, seed)


def finish(training):
    run(training)
    return training


def test_the_schedule_and_the_means_of_the_losses():
    training = finish(make())
    assert [(row["task"], row["step"]) for row in training.curve] == [(4, 10), (4, 20), (4, 25)]
    plain = MetaGenRL(SMALL, UMAZE, ROWS, generator_of(0, "metagenrl", 4))
    losses = [plain.update() for _ in range(25)]
    assert_same_bits(plain.state_dict(), training.learner.state_dict())
    for name in ("critic_loss", "policy_loss", "objective_loss"):
        for row, rounds in zip(training.curve, (losses[:10], losses[10:20], losses[20:]), strict=True):
            values = [found[name].item() for found in rounds if name in found]
            assert row[name] == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_evaluation_is_the_mean_return_of_the_policy():
    training = finish(make(replace(SMALL, evaluation_episodes=3)))
    stack = env_maker("umaze_goal", [4], 15)(300)
    stack.seed(range(300))
    many = run_episode(stack, training.learner.act)
    before = snapshot(training.learner.state_dict())
    (point,) = training.on_due(training.done, {})
    found = point["return"]
    assert abs(found - many.mean()) < 5 * many.std() / np.sqrt(3) + 1e-6
    assert found == training.curve[-1]["return"]
    assert_same_bits(before, training.learner.state_dict())


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_resumed_training_is_one_that_never_stopped(rounds, tmp_path):
    config = replace(SMALL, evaluation_every=15)
    whole, resumed = make(config), make(config)
    for _ in range(rounds):
        whole.advance()
    resumed.load_state_dict(through_disk(tmp_path, whole.state_dict()))
    assert_same_bits(finish(whole).state_dict(), finish(resumed).state_dict())
    assert whole.curve != finish(make(config, seed=1)).curve
