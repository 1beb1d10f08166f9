"""Batch-constrained Q-learning, stacked over tasks (specification, section 2), and the frozen teachers it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mbml.fused import perceptrons
from mbml.nets import StackedMLP, adam, join_stacks, select_stack, soft_update, step
from mbml.products import affine
from mbml.rows import RowLayout

PERTURBATION = 0.05
LATENT_CLAMP = 0.5
_LARGE = 1 << 24
"""Multiplications in a layer from which `perceptrons` makes up for its calls when acting."""


@dataclass(frozen=True)
class BCQConfig:
    """Batch-constrained Q-learning; the defaults are the authors'."""

    hidden: tuple[int, ...] = (400, 300)
    """Widths of the perturbation network and of each critic."""
    vae_hidden: tuple[int, ...] = (750, 750)
    """Widths of the VAE's encoder and decoder."""
    batch_size: int = 100
    """Transitions per task in one iteration."""
    learning_rate: float = 3e-4
    """Adam learning rate of all networks."""
    target_candidates: int = 10
    """Candidate actions per next observation in the target."""
    acting_candidates: int = 10
    """Candidate actions per observation when acting."""
    discount: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Polyak rate of the target networks."""
    minimum_weight: float = 0.75
    """Weight of the smaller target critic; the larger has the rest."""
    kl_weight: float = 0.5
    """Weight of the VAE's divergence."""


def clamped_latents(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Latents nu ~ N(0, I) clamped to [-0.5, 0.5] (C4), as used whenever the decoder generates actions."""
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return noise.clamp_(-LATENT_CLAMP, LATENT_CLAMP)


def perturbed(action: Tensor, perturbation: Tensor) -> Tensor:
    """`clip(a + 0.05 xi, -1, 1)` for a raw tanh output `perturbation`."""
    return (action + PERTURBATION * perturbation).clamp(-1.0, 1.0)


def candidate_outputs(network: StackedMLP, observation: Tensor, own: Tensor, embedding: Tensor | None = None) -> Tensor:
    """Outputs `[T, n * candidates, out]` of a network of `s | own`, or of `s | own | z`.

    Candidates differ in `own` `[T, n * candidates, d]` alone. What they share, `observation` `[T, n, d_s]` and
    `embedding` `[T, n, Z]`, goes through the first layer once for all of them.
    """
    (first, *weights), (bias, *biases) = network.layers
    begin, end = observation.shape[-1], observation.shape[-1] + own.shape[-1]
    shared = torch.baddbmm(bias, observation, first[:, :begin])
    if embedding is not None:
        shared.baddbmm_(embedding, first[:, end:])
    x = shared.repeat_interleave(own.shape[1] // shared.shape[1], dim=1)
    x.baddbmm_(own, first[:, begin:end])
    if x.is_cpu and x.shape[1] * x.shape[2] ** 2 >= _LARGE:
        return perceptrons(x.relu_(), weights, biases)
    for weight, bias in zip(weights, biases, strict=True):
        x = affine(x.relu_(), weight, bias)
    return x


def select_action(
    generated: Tensor, candidates: int, perturb: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor]
) -> Tensor:
    """BCQ's acting rule (Fig. 3): perturb the generated candidates, take the one of highest value.

    The functions map actions `[T, n * candidates, d_a]`, the shape of `generated`. Returns actions `[T, n, d_a]`.
    """
    actions = perturbed(generated, perturb(generated))
    best = value(actions).unflatten(1, (-1, candidates)).argmax(2, keepdim=True)
    actions = actions.unflatten(1, (-1, candidates))
    return actions.gather(2, best.expand(-1, -1, -1, actions.shape[-1])).squeeze(2)


def variational_loss(
    code: Tensor, action: Tensor, decode: Callable[[Tensor], Tensor], kl_weight: float, generator: torch.Generator
) -> Tensor:
    """VAE loss per task `[T]`: squared error of the decoded action plus the weighted divergence of the latent.

    `code` `[T, n, 2 L]` is the encoder's output, mean and log-std; `decode` maps latents `[T, n, L]`, here unclamped,
    to actions `[T, n, d_a]`. Both terms are means over rows and dimensions (specification, section 2.2).
    """
    mean, log_std = code.chunk(2, dim=-1)
    std = log_std.clamp(-4.0, 15.0).exp()
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    decoded = decode(mean + std * noise)
    divergence = -0.5 * (1 + std.square().log() - mean.square() - std.square()).mean((1, 2))
    return (decoded - action).square().mean((1, 2)) + kl_weight * divergence


def candidate_maximum(values: Tensor, candidates: int, minimum_weight: float) -> Tensor:
    """Highest candidate value `[..., n, 1]` of twin values `[2, ..., n * candidates, 1]`.

    The two critics are mixed per candidate, the smaller with `minimum_weight`, and the maximum is taken afterwards.
    """
    mixed = minimum_weight * values.amin(0) + (1 - minimum_weight) * values.amax(0)
    return mixed.unflatten(-2, (-1, candidates)).amax(-2)


class Teachers:
    """K frozen BCQ policies: first critic Q_i, decoder G_i and perturbation xi_i, stacked over tasks."""

    def __init__(self, critic: StackedMLP, decoder: StackedMLP, perturbation: StackedMLP) -> None:
        self.critic, self.decoder, self.perturbation = critic, decoder, perturbation
        for network in (critic, decoder, perturbation):
            network.requires_grad_(False)
        self.action_size = decoder.sizes[-1]
        self.latent_size = 2 * self.action_size

    @property
    def tasks(self) -> int:
        """Number of teachers K."""
        return self.critic.stack

    @classmethod
    def join(cls, parts: Sequence[Teachers]) -> Teachers:
        """All teachers of several stacks, in order."""
        return cls(*(join_stacks(list(group)) for group in zip(*(p.networks().values() for p in parts), strict=True)))

    def value(self, pair: Tensor) -> Tensor:
        """Q_i(s, a) `[K, n, 1]` of the first critic head for pairs `[K, n, d_s + d_a]`."""
        return self.critic(pair)

    def generate(self, observation: Tensor, latent: Tensor) -> Tensor:
        """G_i(s, nu), tanh outputs `[K, n, d_a]`."""
        return torch.tanh(self.decoder(torch.cat([observation, latent], -1)))

    def perturb(self, observation: Tensor, action: Tensor) -> Tensor:
        """Raw tanh output of xi_i(s, a) `[K, n, d_a]`, before the factor 0.05."""
        return torch.tanh(self.perturbation(torch.cat([observation, action], -1)))

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, candidates: int = 10) -> Tensor:
        """Every teacher's action for its own observations `[K, n, d_s]`, `[K, n, d_a]`; both are on the CPU."""
        observation = observation.to(generator.device)
        latent = clamped_latents((self.tasks, observation.shape[1] * candidates, self.latent_size), generator)
        return select_action(
            torch.tanh(candidate_outputs(self.decoder, observation, latent)),
            candidates,
            lambda action: torch.tanh(candidate_outputs(self.perturbation, observation, action)),
            lambda action: candidate_outputs(self.critic, observation, action),
        ).cpu()

    def networks(self) -> dict[str, StackedMLP]:
        """The three stacked networks by name."""
        return {"critic": self.critic, "decoder": self.decoder, "perturbation": self.perturbation}

    def parameters(self) -> list[Tensor]:
        """All weights and biases, first axis the teachers."""
        return [p for network in self.networks().values() for p in network.parameters()]

    def to(self, device: torch.device | str) -> Teachers:
        """These teachers, moved to `device`."""
        for network in self.networks().values():
            network.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Weights and shapes; `load` rebuilds the teachers from it."""
        return {name: network.save() for name, network in self.networks().items()}

    @classmethod
    def load(cls, state: dict[str, Any]) -> Teachers:
        """Teachers from `state_dict`."""
        return cls(*(StackedMLP.load(state[name]) for name in ("critic", "decoder", "perturbation")))


class BCQ:
    """T batch-constrained Q-learners side by side, on the device of the generator; `update` takes packed rows
    `[T, batch, row]`."""

    def __init__(self, config: BCQConfig, layout: RowLayout, tasks: int, generator: torch.Generator) -> None:
        self.config, self.layout, self.tasks, self.generator = config, layout, tasks, generator
        pair, actions = layout.pair_size, layout.action_size
        self.latent_size = 2 * actions

        def network(stack: int, sizes: Sequence[int]) -> StackedMLP:
            return StackedMLP(stack, sizes, generator=generator, initialisation="torch")

        self.perturbation = network(tasks, [pair, *config.hidden, actions])
        self.critics = network(2 * tasks, [pair, *config.hidden, 1])
        self.encoder = network(tasks, [pair, *config.vae_hidden, 2 * self.latent_size])
        self.decoder = network(tasks, [layout.observation_size + self.latent_size, *config.vae_hidden, actions])
        self.target_perturbation = network(tasks, self.perturbation.sizes)
        self.target_critics = network(2 * tasks, self.critics.sizes)
        for target, online in self._targets():
            target.load_state_dict(online.state_dict())
            target.requires_grad_(False)
        self.vae_optimiser = adam([*self.encoder.parameters(), *self.decoder.parameters()], config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)
        self.perturbation_optimiser = adam(self.perturbation.parameters(), config.learning_rate)

    def _targets(self) -> list[tuple[StackedMLP, StackedMLP]]:
        return [(self.target_critics, self.critics), (self.target_perturbation, self.perturbation)]

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One iteration: VAE, critics, perturbation, targets, on rows `[T, batch, row]`; losses per task `[T]`."""
        batch = self.layout.split(rows)
        pair = self.layout.pair(rows)

        vae_loss = self._vae_loss(batch.observation, batch.action, pair)
        step(self.vae_optimiser, vae_loss.sum())

        target = self._td_target(batch.next_observation, batch.reward, batch.terminated)
        values = self.critics(pair).unflatten(0, (2, self.tasks))
        critic_loss = (values - target).square().mean((2, 3)).sum(0)
        step(self.critic_optimiser, critic_loss.sum())

        actor_loss = self._actor_loss(batch.observation)
        step(self.perturbation_optimiser, actor_loss.sum())

        for target_network, online in self._targets():
            soft_update(target_network, online, self.config.tau)
        return {
            "vae_loss": vae_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
        }

    def _vae_loss(self, observation: Tensor, action: Tensor, pair: Tensor) -> Tensor:
        def decode(latent: Tensor) -> Tensor:
            return torch.tanh(self.decoder(torch.cat([observation, latent], -1)))

        return variational_loss(self.encoder(pair), action, decode, self.config.kl_weight, self.generator)

    @torch.no_grad()
    def _td_target(self, observation: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        candidates = self.config.target_candidates
        repeated = observation.repeat_interleave(candidates, dim=1)
        action = self._generate(repeated)
        raw = torch.tanh(self.target_perturbation(torch.cat([repeated, action], -1)))
        pair = torch.cat([repeated, perturbed(action, raw)], -1)
        values = self.target_critics(pair).unflatten(0, (2, self.tasks))
        best = candidate_maximum(values, candidates, self.config.minimum_weight)
        return reward + (1 - terminated) * self.config.discount * best

    def _actor_loss(self, observation: Tensor) -> Tensor:
        with torch.no_grad():
            action = self._generate(observation)
        raw = torch.tanh(self.perturbation(torch.cat([observation, action], -1)))
        pair = torch.cat([observation, perturbed(action, raw)], -1)
        return -self.critics(pair, frozen=True, first=self.tasks).mean((1, 2))

    def _generate(self, observation: Tensor) -> Tensor:
        latent = clamped_latents((*observation.shape[:2], self.latent_size), self.generator)
        return torch.tanh(self.decoder(torch.cat([observation, latent], -1)))

    def teachers(self) -> Teachers:
        """Copies of the networks that act now, frozen."""
        everyone = range(self.tasks)
        return Teachers(*(select_stack(n, everyone) for n in (self.critics, self.decoder, self.perturbation)))

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers and generator."""
        return {
            **{name: getattr(self, name).state_dict() for name in _STATEFUL},
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])


_STATEFUL = (
    "perturbation",
    "critics",
    "encoder",
    "decoder",
    "target_perturbation",
    "target_critics",
    "vae_optimiser",
    "critic_optimiser",
    "perturbation_optimiser",
)
