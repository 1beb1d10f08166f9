"""Contextual BCQ: batch-constrained Q-learning on all tasks at once, its networks told the task (section 6.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mbml.context import ContextEncoder, kl_to_prior, set_posterior
from mbml.losses import posterior_regulariser
from mbml.nets import StackedMLP, adam, anneal, select_stack, soft_update, step
from mbml.policy import Student, StudentConfig
from mbml.rows import RowLayout, Rows, Transitions, gather_rows, sample_indices
from mbml.teachers.bcq import candidate_maximum, clamped_latents, perturbed, variational_loss


@dataclass(frozen=True)
class ContextualBCQConfig:
    """Contextual BCQ; the defaults are the authors'."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """Shapes of context encoder, each critic, VAE decoder and perturbation network (C12)."""
    vae_encoder_hidden: tuple[int, ...] = (1024,) * 7
    """Widths of the VAE's encoder."""
    encoder_losses: Literal["critic_and_vae", "critic"] = "critic_and_vae"
    """Losses that train the context encoder: both in the authors' code, the value loss alone in the paper (C11)."""
    kl_weight: float = 0.0
    """Weight of the posterior's divergence from the prior, summed over tasks and dimensions; the authors have none."""
    steps: int = 100_000
    """Gradient steps."""
    snapshot_every: int = 10_000
    """Steps between snapshots that are evaluated."""
    context_size: int = 128
    """Own context transitions per task and step."""
    batch_size: int = 128
    """Transitions per task and step."""
    learning_rate: float = 3e-4
    """Adam learning rate of all networks."""
    final_learning_rate: float = 1.0
    """Share of the learning rate that is left at the last step, reached linearly; 1 keeps it constant, as the paper."""
    target_candidates: int = 10
    """Candidate actions per next observation in the target."""
    discount: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Polyak rate of the target networks."""
    minimum_weight: float = 0.75
    """Weight of the smaller target critic; the larger has the rest."""
    vae_kl_weight: float = 0.5
    """Weight of the VAE's divergence."""


class ContextualBCQ:
    """One BCQ for K tasks: `update` draws its own contexts and batches from all tasks' rows `[K, N, row]`.

    Every network is shared by the tasks and takes z as its last input; the twin critics are a stack of two. Batches
    and contexts have a generator each.
    """

    def __init__(
        self,
        config: ContextualBCQConfig,
        layout: RowLayout,
        rows: Rows,
        generator: torch.Generator,
        context_generator: torch.Generator,
    ) -> None:
        self.config, self.layout, self.rows = config, layout, rows
        self.generator, self.context_generator = generator, context_generator
        self.tasks = rows.shape[0]
        shapes, actions = config.student, layout.action_size
        self.latent_size = 2 * actions
        z = shapes.embedding_size
        pair = layout.pair_size + z
        latent_input = layout.observation_size + self.latent_size + z

        def network(stack: int, sizes: Sequence[int]) -> StackedMLP:
            return StackedMLP(stack, sizes, generator=generator, initialisation="torch")

        self.encoder = ContextEncoder(layout.context_size, shapes.encoder_hidden, z, generator=generator)
        self.critics = network(2, [pair, *shapes.value_hidden, 1])
        self.vae_encoder = network(1, [pair, *config.vae_encoder_hidden, 2 * self.latent_size])
        self.decoder = network(1, [latent_input, *shapes.decoder_hidden, actions])
        self.perturbation = network(1, [pair, *shapes.perturbation_hidden, actions])
        self.target_critics = select_stack(self.critics, range(2)).requires_grad_(False)
        self.target_perturbation = select_stack(self.perturbation, range(1)).requires_grad_(False)
        self.vae_optimiser = adam([*self.vae_encoder.parameters(), *self.decoder.parameters()], config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)
        self.encoder_optimiser = adam(self.encoder.parameters(), config.learning_rate)
        self.perturbation_optimiser = adam(self.perturbation.parameters(), config.learning_rate)
        self.steps_done = 0

    def update(self) -> dict[str, Tensor]:
        """One step of VAE, critics, context encoder, perturbation and targets, in this order; returns the losses.

        `kl` is the mean over tasks of the posterior's divergence from the prior.
        """
        config = self.config
        self._anneal()
        indices = sample_indices(self.tasks, config.context_size, self.rows.shape[1], self.context_generator)
        belief = set_posterior(self.encoder(self.layout.context(gather_rows(self.rows, indices))))
        z = belief.sample(self.generator).repeat_interleave(config.batch_size, dim=0).unsqueeze(0)
        indices = sample_indices(self.tasks, config.batch_size, self.rows.shape[1], self.generator)
        batch = self.layout.split(gather_rows(self.rows, indices).flatten(0, 1).unsqueeze(0))
        # VAE and critics leave their gradients at this leaf, so that the encoder is passed backwards once.
        z_leaf = z.detach().requires_grad_()
        z_fixed = z.detach()

        vae_loss = self._vae_loss(batch, z_leaf if config.encoder_losses == "critic_and_vae" else z_fixed)
        step(self.vae_optimiser, vae_loss)

        target = self._td_target(batch, z_fixed)
        values = self.critics(torch.cat([batch.observation, batch.action, z_leaf], -1))
        critic_loss = (values - target).square().mean((1, 2)).sum()
        step(self.critic_optimiser, critic_loss)

        assert z_leaf.grad is not None
        step(self.encoder_optimiser, (z * z_leaf.grad).sum() + posterior_regulariser(belief, config.kl_weight))

        actor_loss = self._actor_loss(batch.observation, z_fixed)
        step(self.perturbation_optimiser, actor_loss)

        soft_update(self.target_critics, self.critics, config.tau)
        soft_update(self.target_perturbation, self.perturbation, config.tau)
        self.steps_done += 1
        return {
            "vae_loss": vae_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "kl": kl_to_prior(belief).detach().mean(),
        }

    def _anneal(self) -> None:
        config, progress = self.config, self.steps_done / self.config.steps
        optimisers = [getattr(self, name) for name in _OPTIMISERS]
        anneal(optimisers, config.learning_rate, config.final_learning_rate, progress)

    def _vae_loss(self, batch: Transitions, z: Tensor) -> Tensor:
        def decode(latent: Tensor) -> Tensor:
            return self._decode(batch.observation, latent, z)

        code = self.vae_encoder(torch.cat([batch.observation, batch.action, z], -1))
        return variational_loss(code, batch.action, decode, self.config.vae_kl_weight, self.generator).sum()

    @torch.no_grad()
    def _td_target(self, batch: Transitions, z: Tensor) -> Tensor:
        candidates = self.config.target_candidates
        observation, z = (part.repeat_interleave(candidates, dim=1) for part in (batch.next_observation, z))
        action = self._perturb(self.target_perturbation, observation, self._generate(observation, z), z)
        values = self.target_critics(torch.cat([observation, action, z], -1))
        best = candidate_maximum(values, candidates, self.config.minimum_weight)
        return batch.reward + (1 - batch.terminated) * self.config.discount * best

    def _actor_loss(self, observation: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            generated = self._generate(observation, z)
        action = self._perturb(self.perturbation, observation, generated, z)
        return -self.critics(torch.cat([observation, action, z], -1), frozen=True, first=1).mean()

    def _decode(self, observation: Tensor, latent: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.decoder(torch.cat([observation, latent, z], -1)))

    def _generate(self, observation: Tensor, z: Tensor) -> Tensor:
        latent = clamped_latents((*observation.shape[:2], self.latent_size), self.generator)
        return self._decode(observation, latent, z)

    @staticmethod
    def _perturb(network: StackedMLP, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        return perturbed(action, torch.tanh(network(torch.cat([observation, action, z], -1))))

    @property
    def policy(self) -> Student:
        """Copies of the networks that act now: it infers z, generates, perturbs and chooses by the first critic."""
        student = Student(self.config.student, self.layout, torch.Generator()).to(self.generator.device)
        student.encoder.load_state_dict(self.encoder.state_dict())
        student.value_network = select_stack(self.critics, [0])
        student.decoder.load_state_dict(self.decoder.state_dict())
        student.perturbation.load_state_dict(self.perturbation.state_dict())
        return student

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, generators and step count."""
        return {
            **{name: getattr(self, name).state_dict() for name in _STATEFUL},
            "generator": self.generator.get_state(),
            "context_generator": self.context_generator.get_state(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.context_generator.set_state(state["context_generator"])
        self.steps_done = state["steps_done"]


_OPTIMISERS = ("vae_optimiser", "critic_optimiser", "encoder_optimiser", "perturbation_optimiser")
_STATEFUL = (
    "encoder",
    "critics",
    "vae_encoder",
    "decoder",
    "perturbation",
    "target_critics",
    "target_perturbation",
    *_OPTIMISERS,
)
