"""The paper's student: it generates candidate actions, perturbs them and takes the one that it values most."""

from __future__ import annotations

import torch
from torch import Tensor

from mbml.losses import generator_distillation_loss, perturbation_distillation_loss
from mbml.nets import StackedMLP
from mbml.registry import Entry
from mbml.rows import RowLayout
from mbml.students.contract import Student, StudentConfig, through
from mbml.teachers import Teachers
from mbml.teachers.bcq import candidate_outputs, clamped_latents, select_action


class GenerativeStudent(Student):
    """Q_D(s, a, z), the generator G_D(s, nu, z) and the perturbation xi_D(s, a, z) (paper, section 4)."""

    kind = "generative"

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        z, actions = config.encoder.embedding_size, layout.action_size
        self.latent_size = 2 * actions
        sizes = [layout.observation_size + self.latent_size + z, *config.decoder_hidden, actions]
        self.decoder = StackedMLP(1, sizes, generator=generator)
        sizes = [layout.pair_size + z, *config.perturbation_hidden, actions]
        self.perturbation = StackedMLP(1, sizes, generator=generator)

    def generate(self, observation: Tensor, latent: Tensor, z: Tensor) -> Tensor:
        """G_D, tanh outputs `[..., d_a]`."""
        return torch.tanh(through(self.decoder, observation, latent, z))

    def perturb(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Raw tanh output of xi_D `[..., d_a]`, before the factor 0.05."""
        return torch.tanh(through(self.perturbation, observation, action, z))

    def action_losses(
        self, teachers: Teachers, observation: Tensor, z: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Eq. 4 and Eq. 5: its generator and perturbation against the teachers', on the same latents."""
        latent = clamped_latents((*observation.shape[:2], self.latent_size), generator)
        with torch.no_grad():
            action = teachers.generate(observation, latent)
            perturbation = teachers.perturb(observation, action)
        return {
            "loss_g": generator_distillation_loss(self.generate(observation, latent, z), action),
            "loss_xi": perturbation_distillation_loss(self.perturb(observation, action, z), perturbation),
        }

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]` (BCQ's acting rule; Fig. 3)."""
        candidates = self.config.acting_candidates

        def run(network: StackedMLP, own: Tensor) -> Tensor:
            return candidate_outputs(network, observation.unsqueeze(0), own, z.unsqueeze(0))

        latent = clamped_latents((1, len(observation) * candidates, self.latent_size), generator)
        return select_action(
            torch.tanh(run(self.decoder, latent)),
            candidates,
            lambda action: torch.tanh(run(self.perturbation, action)),
            lambda action: run(self.value_network, action),
        ).squeeze(0)


ENTRY = Entry("generative", "generates, perturbs and chooses among candidates, as in the paper", GenerativeStudent)
