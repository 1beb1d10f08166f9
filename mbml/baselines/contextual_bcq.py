"""Contextual BCQ: batch-constrained Q-learning on all tasks at once, its networks told the task (paper, appendix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mbml.distill import SCHEDULE
from mbml.encoders import make_encoder
from mbml.learner import Learner
from mbml.losses import posterior_regulariser
from mbml.nets import StackedMLP, adam, select_stack, soft_update, step
from mbml.rows import RowLayout, Rows, Transitions, gather_rows, sample_indices
from mbml.settings import Count, NotNegative, Positive, Share, Widths
from mbml.students import STUDENT_PRESETS, StudentConfig
from mbml.students.generative import GenerativeStudent
from mbml.teachers.bcq import candidate_maximum, clamped_latents, perturbed, variational_loss


@dataclass(frozen=True)
class ContextualBCQConfig:
    """Contextual BCQ; the defaults are the authors'."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """Shapes of context encoder, each critic, VAE decoder and perturbation network; `kind` plays no role."""
    vae_encoder_hidden: Widths = (1024,) * 7
    """Widths of the VAE's encoder."""
    encoder_losses: Literal["critic_and_vae", "critic"] = "critic_and_vae"
    """Losses that train the context encoder: both in the authors' code, the value loss alone in the paper."""
    kl_weight: NotNegative = 0.0
    """Weight of the posterior's divergence from the prior, summed over tasks and dimensions; the authors have none."""
    steps: Count = 100_000
    """Gradient steps."""
    snapshot_every: Count = 10_000
    """Steps between snapshots that are evaluated."""
    context_size: Count = 128
    """Own context transitions per task and step."""
    batch_size: Count = 128
    """Transitions per task and step."""
    learning_rate: Positive = 3e-4
    """Adam learning rate of all networks."""
    final_learning_rate: Share = 1.0
    """Share of the learning rate that is left at the last step, reached linearly; 1 keeps it constant, as the paper."""
    target_candidates: Count = 10
    """Candidate actions per next observation in the target."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.005
    """Polyak rate of the target networks."""
    minimum_weight: Share = 0.75
    """Weight of the smaller target critic; the larger has the rest."""
    vae_kl_weight: NotNegative = 0.5
    """Weight of the VAE's divergence."""


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": STUDENT_PRESETS["smoke"] | SCHEDULE["smoke"] | {"vae_encoder_hidden": (16, 16), "target_candidates": 2},
    # As many own context rows as the multi-task learner has rows.
    "laptop": STUDENT_PRESETS["laptop"]
    | SCHEDULE["laptop"]
    | {"vae_encoder_hidden": (256, 256, 256), "context_size": 64, "target_candidates": 5, "tau": 0.01},
}


class ContextualBCQ(Learner):
    """One BCQ for K tasks: `update` draws its own contexts and batches from all tasks' rows `[K, N, row]`.

    Every network is shared by the tasks and takes z as its last input; the twin critics are a stack of two. Batches
    and contexts have a generator each.
    """

    constant = False  # the learning rate changes

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
        z = shapes.encoder.embedding_size
        pair = layout.pair_size + z
        latent_input = layout.observation_size + self.latent_size + z

        def network(stack: int, sizes: Sequence[int]) -> StackedMLP:
            return StackedMLP(stack, sizes, generator=generator, initialisation="torch")

        self.encoder = make_encoder(layout.context_size, shapes.encoder, generator)
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

    def update(self) -> dict[str, Tensor]:
        """One step of VAE, critics, context encoder, perturbation and targets, in this order; returns the losses.

        `kl` is the mean over tasks of the posterior's divergence from the prior.
        """
        config = self.config
        self.anneal()

        # Infer every task, and draw one long batch [1, K * B, row]
        indices = sample_indices(self.tasks, config.context_size, self.rows.shape[1], self.context_generator)
        belief = self.encoder.infer(self.layout.context(gather_rows(self.rows, indices)))
        z = belief.sample(self.generator).repeat_interleave(config.batch_size, dim=0).unsqueeze(0)
        indices = sample_indices(self.tasks, config.batch_size, self.rows.shape[1], self.generator)
        batch = self.layout.split(gather_rows(self.rows, indices).flatten(0, 1).unsqueeze(0))
        fixed_z = z.detach()
        # z cut off from the encoder: what VAE and critics want of it adds up in its gradient.
        wanted_z = fixed_z.clone().requires_grad_()

        # VAE
        vae_loss = self._vae_loss(batch, wanted_z if config.encoder_losses == "critic_and_vae" else fixed_z)
        step(self.vae_optimiser, vae_loss)

        # Critics
        target = self._td_target(batch, fixed_z)
        values = self.critics(torch.cat([batch.observation, batch.action, wanted_z], -1))
        critic_loss = (values - target).square().mean((1, 2)).sum()
        step(self.critic_optimiser, critic_loss)

        # Context encoder: this product has the gradient of both losses in z, so it is passed backwards once for both
        assert wanted_z.grad is not None
        losses_through_z = (z * wanted_z.grad).sum()
        step(self.encoder_optimiser, losses_through_z + posterior_regulariser(self.encoder, belief, config.kl_weight))

        # Perturbation
        actor_loss = self._actor_loss(batch.observation, fixed_z)
        step(self.perturbation_optimiser, actor_loss)

        # Targets
        soft_update(self.target_critics, self.critics, config.tau)
        soft_update(self.target_perturbation, self.perturbation, config.tau)
        self.steps_done += 1
        return {
            "vae_loss": vae_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "kl": self.encoder.regulariser(belief).detach().mean(),
        }

    def _vae_loss(self, batch: Transitions, z: Tensor) -> Tensor:
        def decode(latent: Tensor) -> Tensor:
            return self._decode(batch.observation, latent, z)

        code = self.vae_encoder(torch.cat([batch.observation, batch.action, z], -1))
        return variational_loss(code, batch.action, decode, self.config.vae_kl_weight, self.generator).sum()

    @torch.no_grad()
    def _td_target(self, batch: Transitions, z: Tensor) -> Tensor:
        """Target of Eq. 1, under z."""
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
    def policy(self) -> GenerativeStudent:
        """Copies of the networks that act now: it infers z, generates, perturbs and chooses by the first critic."""
        student = GenerativeStudent(self.config.student, self.layout, torch.Generator()).to(self.generator.device)
        student.encoder.load_state_dict(self.encoder.state_dict())
        student.value_network = select_stack(self.critics, [0])
        student.decoder.load_state_dict(self.decoder.state_dict())
        student.perturbation.load_state_dict(self.perturbation.state_dict())
        return student
