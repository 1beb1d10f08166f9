"""Batch PEARL against steps written row by row in float64, what moves in a step, and a toy of two tasks."""

from dataclasses import replace

import pytest
import torch

from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig, head_regulariser
from mbml.encoders import Belief, EncoderConfig
from mbml.policy import ContextAgent
from mbml.rows import RowLayout
from tests.mbml.toys import (
    LAYOUT,
    POINT,
    clone,
    forward,
    layers_of,
    naive_kl,
    naive_posterior,
    point_rows,
    point_step,
    random_rows,
    scatter,
    seeded,
    trainable,
)

# More tasks a step than there are: some are always drawn twice.
K, N, T, M, B, Z = 3, 12, 4, 5, 6, 2
SMALL = BatchPEARLConfig(
    encoder=EncoderConfig(hidden=(8, 8), embedding_size=Z),
    hidden=(9, 7),
    context_size=M,
    batch_size=B,
    tasks_per_step=T,
    learning_rate=1e-3,
)


def make_learner(seed=0, spread=True, rows=None, **changes):
    rows = random_rows(K, N) if rows is None else rows
    learner = BatchPEARL(replace(SMALL, **changes), LAYOUT, rows, seeded(seed), seeded(1_000 + seed))
    if spread:  # output layers as initialised are so small that all contexts and states look alike
        with torch.no_grad():
            for network in (learner.policy.encoder.body, learner.policy.actor, learner.critics, learner.value):
                network.weights[-1].mul_(200)
        scatter(learner.target_value)
    return learner


class NaivePEARL:
    """Its step a row at a time; draws from copies of the learner's generators in its order."""

    def __init__(self, learner):
        self.config, self.rows = learner.config, learner.rows
        self.batches, self.contexts = clone(learner.generator), clone(learner.context_generator)
        self.networks = {
            "encoder": layers_of(learner.policy.encoder.body),
            "first critic": layers_of(learner.critics, 0),
            "second critic": layers_of(learner.critics, 1),
            "value": layers_of(learner.value),
            "actor": layers_of(learner.policy.actor),
        }
        self.target = layers_of(learner.target_value)
        self.optimisers = {
            name: torch.optim.Adam(trainable(layers), lr=self.config.learning_rate, foreach=False)
            for name, layers in self.networks.items()
        }

    def draw(self):
        """The batch of one step: one tuple of s, a, s', r, d, action noise and its place in `tasks` per row."""
        tasks = torch.randint(K, (T,), generator=self.batches)
        context = torch.randint(N, (T, M), generator=self.contexts)
        beliefs = []
        for t in range(T):
            own = [LAYOUT.context(self.rows[tasks[t], n]) for n in context[t]]
            beliefs.append(naive_posterior(self.networks["encoder"], own, Z))
        z_noise = torch.randn(T, Z, generator=self.batches).double()
        indices = torch.randint(N, (T, B), generator=self.batches)
        noise = torch.randn(T * B, 2, generator=self.batches).double()
        batch = []
        for t in range(T):
            z = beliefs[t].mean + beliefs[t].variance.sqrt() * z_noise[t]
            for b in range(B):
                batch.append((LAYOUT.split(self.rows[tasks[t], indices[t, b]].double()), z, noise[t * B + b]))
        return beliefs, batch

    def smaller(self, s, a, z):
        return torch.minimum(*(forward(self.networks[f"{which} critic"], s, a, z)[0] for which in ("first", "second")))

    def update(self):
        """Losses of one step; the gradients that it followed stay with the parameters."""
        config = self.config
        beliefs, batch = self.draw()

        q_loss = torch.zeros(()).double()
        for row, z, _ in batch:
            with torch.no_grad():
                bootstrap = forward(self.target, row.next_observation, z)[0]
                y = config.reward_scale * row.reward[0] + (1 - row.terminated[0]) * config.discount * bootstrap
            for which in ("first", "second"):
                q = forward(self.networks[f"{which} critic"], row.observation, row.action, z)[0]
                q_loss = q_loss + (q - y) ** 2 / len(batch)
        prior = Belief(torch.zeros(Z).double(), torch.ones(Z).double())
        kl = torch.stack([naive_kl(q, prior) for q in beliefs]).sum()
        self.descend(q_loss + config.kl_weight * kl, "encoder", "first critic", "second critic")

        v_loss, policy_loss, regulariser, entropy = 0.0, 0.0, 0.0, 0.0
        for row, z, noise in batch:
            s, z = row.observation, z.detach()
            head = forward(self.networks["actor"], s, z)
            mean, log_std = head[:2], torch.clamp(head[2:], -20, 2)
            u = mean + log_std.exp() * noise
            log_density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
            log_density = (log_density - torch.log(1 - torch.tanh(u) ** 2 + 1e-6)).sum()
            q = self.smaller(s, torch.tanh(u), z)
            v_loss = v_loss + (forward(self.networks["value"], s, z)[0] - (q - log_density).detach()) ** 2 / len(batch)
            policy_loss = policy_loss + (log_density - q) / len(batch)
            regulariser = regulariser + ((mean**2).mean() + (log_std**2).mean()) / len(batch)
            entropy = entropy - log_density / len(batch)
        self.descend(v_loss, "value")
        with torch.no_grad():
            for old, new in zip(self.target, self.networks["value"], strict=True):
                for target, online in zip(old, new, strict=True):
                    target.copy_((1 - config.tau) * target + config.tau * online)
        self.descend(policy_loss + config.policy_regulariser * regulariser, "actor")
        return {"q_loss": q_loss, "kl": kl / T, "v_loss": v_loss, "policy_loss": policy_loss, "entropy": entropy}

    def descend(self, loss, *names):
        for name in names:
            self.optimisers[name].zero_grad()
        parameters = [p for name in names for pair in self.networks[name] for p in pair]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        for name in names:
            self.optimisers[name].step()


def members_of(learner):
    """Network and place in its stack of everything that is trained, by the names of `NaivePEARL`."""
    return {
        "encoder": (learner.policy.encoder.body, 0),
        "first critic": (learner.critics, 0),
        "second critic": (learner.critics, 1),
        "value": (learner.value, 0),
        "actor": (learner.policy.actor, 0),
    }


CASES = {
    "as published": {},
    "weighted": {"kl_weight": 2.0, "policy_regulariser": 0.5, "reward_scale": 2.0, "discount": 0.8, "tau": 0.3},
    # Steps so large that the policy's loss tells whether the critics had already moved.
    "fast": {"learning_rate": 0.03},
}


def assert_near(found, wanted, name, **tolerance):
    error = (found.detach().double().view_as(wanted) - wanted.detach()).abs()
    assert (error <= tolerance["atol"] + tolerance["rtol"] * wanted.detach().abs()).all(), name


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_networks_of_some_steps(case):
    learner = make_learner(**CASES[case])
    naive = NaivePEARL(learner)
    for _ in range(2):
        found, expected = learner.update(), naive.update()
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=2e-4, abs=1e-5), name
        for name, (network, member) in members_of(learner).items():
            twins = [p for pair in zip(*naive.networks[name], strict=True) for p in pair]
            for parameter, twin in zip(network.parameters(), twins, strict=True):
                assert parameter.grad is not None
                assert twin.grad is not None
                scale = twin.grad.abs().max().item() + 1e-8
                assert_near(parameter.grad[member], twin.grad, name, rtol=1e-3, atol=1e-4 * scale)
                assert_near(parameter[member], twin, name, rtol=1e-4, atol=2e-5)
    targets = [p for pair in zip(*naive.target, strict=True) for p in pair]
    for parameter, twin in zip(learner.target_value.parameters(), targets, strict=True):
        assert_near(parameter[0], twin, "target", rtol=1e-4, atol=2e-5)


def test_the_regulariser_sees_the_clamped_log_std():
    for beyond, limit in ((50.0, 2.0), (-50.0, -20.0)):
        outside, inside = (torch.tensor([[0.1, 0.3, value, 1.0]]) for value in (beyond, limit))
        expected = 1e-3 * ((0.1**2 + 0.3**2) / 2 + (limit**2 + 1.0) / 2)
        assert head_regulariser(inside, 1e-3).item() == pytest.approx(expected)
        assert torch.equal(head_regulariser(outside, 1e-3), head_regulariser(inside, 1e-3))


def test_contexts_have_a_generator_of_their_own():
    """Longer contexts are drawn without disturbing tasks, batches and noise."""
    short, long = make_learner(), make_learner(context_size=2 * M)
    for learner in (short, long):
        learner.update()
    assert torch.equal(short.generator.get_state(), long.generator.get_state())
    assert not torch.equal(short.context_generator.get_state(), long.context_generator.get_state())


def test_acting_is_the_squashed_mean_and_draws_nothing():
    policy = make_learner().policy
    observation, z, generator = torch.randn(5, 3, generator=seeded(1)), torch.randn(5, Z, generator=seeded(2)), seeded()
    found = policy.act(observation, z, generator)
    for n in range(5):
        expected = torch.tanh(forward(layers_of(policy.actor), observation[n], z[n])[:2])
        torch.testing.assert_close(found[n].double(), expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad
    assert torch.equal(generator.get_state(), seeded().get_state())


GOALS = torch.tensor([-0.6, 0.6])


def goal_rows(number, seed=0):
    """The point-mass toy with a goal per task: minus the squared distance from it."""
    rows = point_rows(number, seed, tasks=len(GOALS))
    rows[..., 3] = -(rows[..., 2] - GOALS.unsqueeze(1)).square()
    return rows


def test_it_infers_which_goal_and_goes_there():
    config = BatchPEARLConfig(
        encoder=EncoderConfig(hidden=(32, 32), embedding_size=Z),
        hidden=(32, 32),
        context_size=32,
        batch_size=32,
        tasks_per_step=4,
        learning_rate=1e-2,
        discount=0.5,
        tau=0.1,
    )
    learner = BatchPEARL(config, POINT, goal_rows(1_000), seeded(), seeded(1))
    q_loss = [learner.update()["q_loss"].item() for _ in range(300)]
    assert sum(q_loss[-50:]) < 0.1 * sum(q_loss[:50])

    # Transitions that it never saw, of both tasks, and then a walk under the embedding they imply.
    agent = ContextAgent(learner.policy, seeded(2), tasks=2)
    for rows in goal_rows(40, seed=1).unbind(1):
        s, a, moved, r, _ = POINT.split(rows)
        agent.observe(s, a, moved, r.squeeze(1))
    belief = agent.belief()
    gap = (belief.mean[0] - belief.mean[1]).abs() / belief.variance.sqrt().amax(0)
    assert gap.max() > 4
    agent.begin_episode()
    position = torch.zeros(2, 1)
    for _ in range(20):
        position = point_step(position, agent.act(position))
    assert ((position.squeeze(1) - GOALS).abs() < 0.4).all()  # the other task's goal is 1.2 away


def test_paper_size_makes_a_step():
    layout = RowLayout(4, 2)
    learner = BatchPEARL(BatchPEARLConfig(), layout, random_rows(2, 300, layout), seeded(), seeded(1))
    assert learner.policy.encoder.body.sizes == (11, 200, 200, 200, 10)
    assert learner.policy.actor.sizes == (9, 300, 300, 300, 4)
    assert (learner.critics.stack, learner.critics.sizes) == (2, (11, 300, 300, 300, 1))
    assert learner.value.sizes == learner.target_value.sizes == (9, 300, 300, 300, 1)
    for network, limit in ((learner.policy.actor, 0.001), (learner.critics, 0.003), (learner.value, 0.003)):
        assert 0.9 * limit < network.weights[-1].abs().max() <= limit
    assert all(torch.isfinite(value) for value in learner.update().values())
