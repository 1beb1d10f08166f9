"""Contextual BCQ against its iteration written a row at a time in float64, its policy, and a toy problem."""

from dataclasses import replace

import pytest
import torch

from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.encoders import Belief, EncoderConfig
from mbml.policy import ContextAgent
from mbml.rows import RowLayout
from mbml.students import Student, StudentConfig
from tests.mbml.toys import (
    LAYOUT,
    POINT,
    assert_same_bits,
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
    snapshot,
    trainable,
)

K, N, M, B, Z, C = 3, 12, 5, 4, 3, 3
STUDENT = StudentConfig(
    encoder=EncoderConfig(hidden=(8, 8), embedding_size=Z),
    value_hidden=(9, 7),
    decoder_hidden=(8, 6),
    perturbation_hidden=(7, 7),
)
SMALL = ContextualBCQConfig(
    student=STUDENT, vae_encoder_hidden=(8, 7), context_size=M, batch_size=B, target_candidates=C
)
ONLINE = ("encoder", "critics", "vae_encoder", "decoder", "perturbation")


def make_learner(seed=0, **changes):
    learner = ContextualBCQ(
        replace(SMALL, **changes), LAYOUT, random_rows(K, N, seed=5), seeded(seed), seeded(1_000 + seed)
    )
    scatter(learner.target_perturbation, learner.target_critics)
    with torch.no_grad():  # the output layer as initialised is so small that all contexts look alike
        learner.encoder.body.weights[-1].mul_(300)
    return learner


class NaiveContextualBCQ:
    """Its iteration a row at a time; draws from copies of the learner's generators in its order."""

    def __init__(self, learner):
        self.config, self.rows = learner.config, learner.rows
        self.draws, self.contexts = clone(learner.generator), clone(learner.context_generator)
        self.encoder, self.vae_encoder = layers_of(learner.encoder.body), layers_of(learner.vae_encoder)
        self.decoder, self.xi = layers_of(learner.decoder), layers_of(learner.perturbation)
        self.critics = [layers_of(learner.critics, k) for k in range(2)]
        self.targets = [layers_of(learner.target_critics, k) for k in range(2)]
        self.xi_target = layers_of(learner.target_perturbation)
        self.parameters = {
            "vae": trainable(self.vae_encoder) + trainable(self.decoder),
            "critics": [p for critic in self.critics for p in trainable(critic)],
            "encoder": trainable(self.encoder),
            "xi": trainable(self.xi),
        }
        self.optimisers = {
            name: torch.optim.Adam(parameters, lr=self.config.learning_rate, foreach=False)
            for name, parameters in self.parameters.items()
        }

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.draws).double()

    def generate(self, s, latent, z):
        return torch.tanh(forward(self.decoder, s, latent, z))

    @staticmethod
    def perturb(xi, s, a, z):
        return torch.clamp(a + 0.05 * torch.tanh(forward(xi, s, a, z)), -1, 1)

    def descend(self, name, gradients):
        for parameter, gradient in zip(self.parameters[name], gradients, strict=True):
            parameter.grad = gradient
        self.optimisers[name].step()

    def update(self):
        indices = torch.randint(N, (K, M), generator=self.contexts)
        q = [naive_posterior(self.encoder, [LAYOUT.context(self.rows[i, t]) for t in indices[i]], Z) for i in range(K)]
        noise = self.randn(K, Z)
        zs = [q[i].mean + q[i].variance.sqrt() * noise[i] for i in range(K)]
        indices = torch.randint(N, (K, B), generator=self.draws)
        rows = [LAYOUT.split(self.rows[i, t]) for i in range(K) for t in indices[i]]
        z = [zs[i] for i in range(K) for _ in range(B)]

        vae_loss = self.vae_loss(rows, z)
        prior = Belief(torch.zeros(Z).double(), torch.ones(Z).double())
        kl = torch.stack([naive_kl(belief, prior) for belief in q]).sum()
        routed = self.config.kl_weight * kl
        if self.config.encoder_losses == "critic_and_vae":
            routed = routed + vae_loss
        encoder = torch.autograd.grad(routed, self.parameters["encoder"], retain_graph=True)
        self.descend("vae", torch.autograd.grad(vae_loss, self.parameters["vae"], retain_graph=True))

        critic_loss = self.critic_loss(rows, z, self.td_targets(rows, z))
        more = torch.autograd.grad(critic_loss, self.parameters["encoder"], retain_graph=True)
        self.descend("critics", torch.autograd.grad(critic_loss, self.parameters["critics"]))
        self.descend("encoder", [one + other for one, other in zip(encoder, more, strict=True)])

        actor_loss = self.actor_loss(rows, z)
        self.descend("xi", torch.autograd.grad(actor_loss, self.parameters["xi"]))
        with torch.no_grad():
            for target, online in [(self.xi_target, self.xi), *zip(self.targets, self.critics, strict=True)]:
                for old, new in zip(target, online, strict=True):
                    for t, c in zip(old, new, strict=True):
                        t.copy_(0.995 * t + 0.005 * c)
        return {"vae_loss": vae_loss, "critic_loss": critic_loss, "actor_loss": actor_loss, "kl": kl / K}

    def vae_loss(self, rows, z):
        noise = self.randn(K * B, 4)
        loss = torch.zeros(()).double()
        for n, row in enumerate(rows):
            output = forward(self.vae_encoder, row.observation, row.action, z[n])
            mean, std = output[:4], torch.exp(torch.clamp(output[4:], -4, 15))
            decoded = self.generate(row.observation, mean + std * noise[n], z[n])
            divergence = -0.5 * (1 + torch.log(std**2) - mean**2 - std**2)
            loss = loss + ((decoded - row.action.double()) ** 2).mean() + 0.5 * divergence.mean()
        return loss / (K * B)

    @torch.no_grad()
    def td_targets(self, rows, z):
        noise = self.randn(K * B * C, 4).clamp(-0.5, 0.5)
        targets = []
        for n, row in enumerate(rows):
            values = []
            for m in range(C):
                action = self.generate(row.next_observation, noise[n * C + m], z[n])
                action = self.perturb(self.xi_target, row.next_observation, action, z[n])
                q = [forward(target, row.next_observation, action, z[n]).item() for target in self.targets]
                values.append(0.75 * min(q) + 0.25 * max(q))
            targets.append(row.reward.item() + (1 - row.terminated.item()) * 0.99 * max(values))
        return targets

    def critic_loss(self, rows, z, targets):
        loss = torch.zeros(()).double()
        for critic in self.critics:
            for n, row in enumerate(rows):
                loss = loss + (forward(critic, row.observation, row.action, z[n])[0] - targets[n]) ** 2
        return loss / (K * B)

    def actor_loss(self, rows, z):
        noise = self.randn(K * B, 4).clamp(-0.5, 0.5)
        loss = torch.zeros(()).double()
        for n, row in enumerate(rows):
            s, fixed = row.observation, z[n].detach()
            action = self.perturb(self.xi, s, self.generate(s, noise[n], fixed).detach(), fixed)
            loss = loss - forward(self.critics[0], s, action, fixed)[0]
        return loss / (K * B)

    def members(self, learner):
        """Pairs of a member of the learner's networks and its own layers."""
        return {
            "encoder": (learner.encoder.body, 0, self.encoder),
            "vae_encoder": (learner.vae_encoder, 0, self.vae_encoder),
            "decoder": (learner.decoder, 0, self.decoder),
            "perturbation": (learner.perturbation, 0, self.xi),
            "target_perturbation": (learner.target_perturbation, 0, self.xi_target),
            **{f"critic {k}": (learner.critics, k, self.critics[k]) for k in range(2)},
            **{f"target critic {k}": (learner.target_critics, k, self.targets[k]) for k in range(2)},
        }


CASES = {
    "authors": {},
    "paper": {"encoder_losses": "critic"},
    "regularised": {"kl_weight": 0.3},
    "paper_regularised": {"encoder_losses": "critic", "kl_weight": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_networks_are_those_written_a_row_at_a_time(case):
    learner = make_learner(learning_rate=3e-3, **CASES[case])
    naive = NaiveContextualBCQ(learner)
    for _ in range(2):
        found, expected = learner.update(), naive.update()
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
        for name, (network, member, layers) in naive.members(learner).items():
            for weight, bias, wanted in zip(network.weights, network.biases, layers, strict=True):
                for parameter, target in zip((weight, bias), wanted, strict=True):
                    values = parameter[member].detach().double().view_as(target)
                    torch.testing.assert_close(values, target.detach(), rtol=1e-4, atol=2e-5, msg=name)
                    if "target" in name:
                        assert parameter.grad is None
                        continue
                    # The gradients of the step are still there.
                    assert parameter.grad is not None
                    assert target.grad is not None
                    gradient = parameter.grad[member].double().view_as(target)
                    scale = target.grad.abs().max().item() + 1e-8
                    torch.testing.assert_close(gradient, target.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("encoder_losses", ["critic_and_vae", "critic"])
def test_the_vae_reaches_the_encoder_in_the_authors_code_alone(encoder_losses):
    """With critics deaf to z the encoder learns from the VAE or not at all; the actor's loss never moves it."""
    learner = make_learner(encoder_losses=encoder_losses)
    with torch.no_grad():
        learner.critics.weights[0][:, -Z:] = 0
    before = snapshot(learner.encoder.state_dict())
    learner.update()
    moved = [not torch.equal(value, before[name]) for name, value in learner.encoder.state_dict().items()]
    assert all(moved) if encoder_losses == "critic_and_vae" else not any(moved)


def test_the_policy_is_a_copy_that_values_by_the_first_critic(tmp_path):
    learner = make_learner()
    learner.update()
    policy = learner.policy
    before = snapshot(policy.state_dict())
    s, a, nu, z = (torch.randn(4, n, generator=seeded(n)) for n in (3, 2, 4, Z))
    for found, expected in (
        (policy.value(s, a, z), forward(layers_of(learner.critics, 0), s, a, z)),
        (policy.generate(s, nu, z), torch.tanh(forward(layers_of(learner.decoder), s, nu, z))),
        (policy.perturb(s, a, z), torch.tanh(forward(layers_of(learner.perturbation), s, a, z))),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert_same_bits(policy.encoder.state_dict(), learner.encoder.state_dict())
    policy.save(tmp_path / "policy.safetensors", step=1)
    loaded = Student.load(tmp_path / "policy.safetensors")
    assert torch.equal(loaded.act(s, z, seeded()), policy.act(s, z, seeded()))
    for _ in range(3):
        learner.update()
    assert_same_bits(before, policy.state_dict())
    assert_same_bits(before, loaded.state_dict())


def test_taking_the_policy_changes_nothing():
    learner, other = make_learner(), make_learner()
    for _ in range(3):
        learner.policy.act(torch.zeros(1, 3), torch.zeros(1, Z), seeded())
        assert_same_bits(learner.update(), other.update())


def test_it_goes_to_the_goal_that_its_context_rewards():
    """Two tasks of one batch of motions, paid for being near -0.6 or 0.6: only the rewards in the context differ."""
    goals = torch.tensor([-0.6, 0.6])
    rows = point_rows(2_000).repeat(2, 1, 1)
    rows[..., 3] = -(rows[..., 2] - goals.unsqueeze(1)).square()
    student = StudentConfig("generative", EncoderConfig("product", (32, 32), 2), (32, 32), (32, 32), (32, 32))
    config = ContextualBCQConfig(
        student, (32, 32), context_size=16, batch_size=64, learning_rate=3e-3, discount=0.8, tau=0.05
    )
    learner = ContextualBCQ(config, POINT, rows, seeded(), seeded(1))
    for _ in range(300):
        learner.update()
    agent = ContextAgent(learner.policy, seeded(2), tasks=2)
    for t in range(16):
        s, a, s2, r, _ = POINT.split(rows[:, t])
        agent.observe(s, a, s2, r.squeeze(1))
    agent.begin_episode()
    position = torch.zeros(2, 1)
    for _ in range(10):
        position = point_step(position, agent.act(position))
    torch.testing.assert_close(position.squeeze(1), goals, rtol=0, atol=0.3)


def test_paper_size_makes_a_step():
    layout = RowLayout(4, 2)
    config = ContextualBCQConfig(batch_size=2, context_size=16)
    learner = ContextualBCQ(config, layout, random_rows(2, 30, layout), seeded(), seeded(1))
    assert learner.encoder.body.sizes == (11, 200, 200, 200, 40)
    assert learner.critics.sizes == learner.target_critics.sizes == (26, *(1024,) * 9, 1)
    assert learner.perturbation.sizes == (26, *(1024,) * 8, 2)
    assert learner.vae_encoder.sizes == (26, *(1024,) * 7, 8)
    assert learner.decoder.sizes == (28, *(1024,) * 7, 2)
    assert (learner.critics.stack, learner.decoder.stack) == (2, 1)
    assert all(torch.isfinite(value) for value in learner.update().values())
