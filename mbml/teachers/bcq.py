"""Batch-constrained Q-learning (Fujimoto et al. 2019) as a teacher; parts of it serve the student and the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mbml.nets import StackedMLP, adam, soft_update, step
from mbml.rows import RowLayout, Transitions
from mbml.settings import Count, NotNegative, Share, Widths
from mbml.teachers.contract import PRESETS, TeacherConfig, TeacherEntry, TeacherLearner, Teachers, twin_error

PERTURBATION = 0.05
LATENT_CLAMP = 0.5


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """The target of batch-constrained Q-learning (Eq. 1); the defaults are the authors'."""

    target_candidates: Count = 10
    """Candidate actions per next observation in the target."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.005
    """Polyak rate of the target networks."""
    minimum_weight: Share = 0.75
    """Weight of the smaller target critic; the larger has the rest."""


@dataclass(frozen=True)
class BCQConfig(TargetConfig, TeacherConfig):
    """Batch-constrained Q-learning; the defaults are the authors'."""

    hidden: Widths = (400, 300)
    """Widths of the perturbation network and of each critic."""
    vae_hidden: Widths = (750, 750)
    """Widths of the VAE's encoder and decoder."""
    batch_size: Count = 100
    """Transitions per task in one iteration."""
    acting_candidates: Count = 10
    """Candidate actions per observation when acting."""
    kl_weight: NotNegative = 0.5
    """Weight of the VAE's divergence."""


def clamped_latents(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Latents nu ~ N(0, I) clamped to [-0.5, 0.5], as used whenever the decoder generates actions."""
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    return noise.clamp_(-LATENT_CLAMP, LATENT_CLAMP)


def perturbed(action: Tensor, perturbation: Tensor) -> Tensor:
    """`clip(a + 0.05 xi, -1, 1)` for a raw tanh output `perturbation`."""
    return (action + PERTURBATION * perturbation).clamp(-1.0, 1.0)


def best_actions(actions: Tensor, values: Tensor, candidates: int) -> Tensor:
    """Of every `candidates` actions in a row `[T, n * candidates, d_a]` the one of highest value, `[T, n, d_a]`."""
    best = values.unflatten(1, (-1, candidates)).argmax(2, keepdim=True)
    # Not take_along_dim, which an exported graph can only do for one number of rows.
    grouped = actions.unflatten(1, (-1, candidates))
    return grouped.gather(2, best.expand(-1, -1, -1, actions.shape[-1])).squeeze(2)


class CandidateNetworks(NamedTuple):
    """What generates, perturbs and values candidate actions in batch-constrained Q-learning.

    An embedding `z` `[T, n, Z]` of the task, if one is given, is the last input of all of them.
    """

    decoder: StackedMLP
    perturbation: StackedMLP
    critics: StackedMLP

    def act(self, observation: Tensor, candidates: int, generator: torch.Generator, *z: Tensor) -> Tensor:
        """BCQ's acting rule (paper, Fig. 3): of perturbed candidates the one that a single critic values most.

        Actions `[T, n, d_a]` for observations `[T, n, d_s]`.
        """
        latents = observation.shape[0], observation.shape[1] * candidates, 2 * self.decoder.sizes[-1]
        return self.choose(observation, candidates, clamped_latents(latents, generator), *z)

    def choose(self, observation: Tensor, candidates: int, latent: Tensor, *z: Tensor) -> Tensor:
        """The same of candidates from given latents `[T, n * candidates, 2 d_a]`."""
        observation, *told = (part.repeat_interleave(candidates, dim=1) for part in (observation, *z))
        actions = self.perturb(observation, self.decode(observation, latent, *told), *told)
        return best_actions(actions, self.critics(torch.cat([observation, actions, *told], -1)), candidates)

    @torch.no_grad()
    def td_target(self, batch: Transitions, config: TargetConfig, generator: torch.Generator, *z: Tensor) -> Tensor:
        """Eq. 1: `r + gamma max_a' Q'(s', a')` `[T, n, 1]` over candidates, of target networks, for both critics."""
        candidates = config.target_candidates
        observation, *told = (part.repeat_interleave(candidates, dim=1) for part in (batch.next_observation, *z))
        action = self.perturb(observation, self.generate(observation, generator, *told), *told)
        values = self.critics(torch.cat([observation, action, *told], -1)).unflatten(0, (2, -1))
        # The two critics are mixed per candidate, and the maximum is taken afterwards.
        mixed = config.minimum_weight * values.amin(0) + (1 - config.minimum_weight) * values.amax(0)
        best = mixed.unflatten(1, (-1, candidates)).amax(2)
        return batch.reward + (1 - batch.terminated) * config.discount * best

    def perturbation_loss(self, observation: Tensor, generator: torch.Generator, *z: Tensor) -> Tensor:
        """Minus the first critic's value of a candidate, per task `[T]`; reaches the perturbation alone."""
        with torch.no_grad():
            generated = self.generate(observation, generator, *z)
        pair = torch.cat([observation, self.perturb(observation, generated, *z), *z], -1)
        return -self.critics(pair, frozen=True, first=self.perturbation.stack).mean((1, 2))

    def generate(self, observation: Tensor, generator: torch.Generator, *z: Tensor) -> Tensor:
        """Actions `[T, n, d_a]` decoded from clamped latents."""
        latent = clamped_latents((*observation.shape[:2], 2 * self.decoder.sizes[-1]), generator)
        return self.decode(observation, latent, *z)

    def decode(self, observation: Tensor, latent: Tensor, *z: Tensor) -> Tensor:
        """Actions `[T, n, d_a]` of latents `[T, n, 2 d_a]`."""
        return torch.tanh(self.decoder(torch.cat([observation, latent, *z], -1)))

    def perturb(self, observation: Tensor, action: Tensor, *z: Tensor) -> Tensor:
        """Those `action` `[T, n, d_a]`, perturbed."""
        return perturbed(action, torch.tanh(self.perturbation(torch.cat([observation, action, *z], -1))))


def variational_loss(
    code: Tensor, decoder: StackedMLP, batch: Transitions, kl_weight: float, generator: torch.Generator, *z: Tensor
) -> Tensor:
    """VAE loss per task `[T]`: squared error of the decoded action plus the weighted divergence of the latent.

    `code` `[T, n, 2 L]` is the encoder's output, mean and log-std. The latent is not clamped here, and both terms are
    means over rows and dimensions. A `z` `[T, n, Z]` is the decoder's last input.
    """
    mean, log_std = code.chunk(2, dim=-1)
    std = log_std.clamp(-4.0, 15.0).exp()
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    decoded = torch.tanh(decoder(torch.cat([batch.observation, mean + std * noise, *z], -1)))
    divergence = -0.5 * (1 + std.square().log() - mean.square() - std.square()).mean((1, 2))
    return (decoded - batch.action).square().mean((1, 2)) + kl_weight * divergence


@dataclass(eq=False)
class BCQTeachers(Teachers):
    """K frozen BCQ policies: first critic Q_i, decoder G_i(s, nu) and perturbation xi_i(s, a)."""

    decoder: StackedMLP
    perturbation: StackedMLP
    acting_candidates: int = 10
    """Candidate actions per observation when acting."""
    kind: str = field(default="bcq", kw_only=True)

    def generate(self, observation: Tensor, latent: Tensor) -> Tensor:
        """G_i(s, nu), tanh outputs `[K, n, d_a]`."""
        return torch.tanh(self.decoder(torch.cat([observation, latent], -1)))

    def perturb(self, observation: Tensor, action: Tensor) -> Tensor:
        """Raw tanh output of xi_i(s, a) `[K, n, d_a]`, before the factor 0.05."""
        return torch.tanh(self.perturbation(torch.cat([observation, action], -1)))

    @property
    def candidates(self) -> int:
        """`acting_candidates`."""
        return self.acting_candidates

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """The best of `acting_candidates` generated ones."""
        return self._networks.act(observation.to(generator.device), self.acting_candidates, generator).cpu()

    def decide(self, observation: Tensor, latent: Tensor) -> Tensor:
        """The same from given normal noise, which is clamped."""
        latent = latent.clamp(-LATENT_CLAMP, LATENT_CLAMP).flatten(1, 2)
        return self._networks.choose(observation, self.acting_candidates, latent)

    @property
    def _networks(self) -> CandidateNetworks:
        return CandidateNetworks(self.decoder, self.perturbation, self.critic)


class BCQ(TeacherLearner):
    """T batch-constrained Q-learners side by side."""

    config: BCQConfig

    def __init__(self, config: BCQConfig, layout: RowLayout, tasks: int, generator: torch.Generator) -> None:
        super().__init__(config, layout, tasks, generator)
        pair, actions, latent = layout.pair_size, layout.action_size, 2 * layout.action_size
        self.perturbation = self.network(pair, *config.hidden, actions)
        self.critics = self.network(pair, *config.hidden, 1, copies=2)
        self.encoder = self.network(pair, *config.vae_hidden, 2 * latent)
        self.decoder = self.network(layout.observation_size + latent, *config.vae_hidden, actions)
        self.target_perturbation = self.network(*self.perturbation.sizes)
        self.target_critics = self.network(*self.critics.sizes, copies=2)
        for target, online in ((self.target_critics, self.critics), (self.target_perturbation, self.perturbation)):
            target.load_state_dict(online.state_dict())
            target.requires_grad_(False)
        self.vae_optimiser = adam([*self.encoder.parameters(), *self.decoder.parameters()], config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)
        self.perturbation_optimiser = adam(self.perturbation.parameters(), config.learning_rate)

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One iteration: VAE, critics, perturbation, targets, on rows `[T, batch, row]`; losses per task `[T]`."""
        config, generator = self.config, self.generator
        batch, pair = self.layout.split(rows), self.layout.pair(rows)

        vae_loss = variational_loss(self.encoder(pair), self.decoder, batch, config.kl_weight, generator)
        step(self.vae_optimiser, vae_loss.sum())

        targets = CandidateNetworks(self.decoder, self.target_perturbation, self.target_critics)
        critic_loss = twin_error(self.critics(pair), targets.td_target(batch, config, generator))
        step(self.critic_optimiser, critic_loss.sum())

        online = CandidateNetworks(self.decoder, self.perturbation, self.critics)
        actor_loss = online.perturbation_loss(batch.observation, generator)
        step(self.perturbation_optimiser, actor_loss.sum())

        soft_update(self.target_critics, self.critics, config.tau)
        soft_update(self.target_perturbation, self.perturbation, config.tau)
        return self.counted(vae_loss=vae_loss, critic_loss=critic_loss, actor_loss=actor_loss)

    def teachers(self) -> BCQTeachers:
        """Frozen copies of first critic, decoder and perturbation."""
        networks = self.frozen(self.critics, self.tasks), self.frozen(self.decoder), self.frozen(self.perturbation)
        return BCQTeachers(*networks, self.config.acting_candidates)


ENTRY = TeacherEntry(
    name="bcq",
    about="batch-constrained Q-learning, the paper's teacher",
    make=BCQ,
    config=BCQConfig,
    presets={
        "smoke": PRESETS["smoke"] | {"vae_hidden": (16, 16), "target_candidates": 2, "acting_candidates": 2},
        "laptop": PRESETS["laptop"] | {"vae_hidden": (128, 128), "batch_size": 64, "target_candidates": 5},
    },
    title="BCQ",
    policies=BCQTeachers,
)
