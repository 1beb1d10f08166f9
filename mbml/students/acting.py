"""A student that imitates what its teachers do, not how they choose it: one network acts, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from mbml.losses import acting_distillation_loss
from mbml.nets import StackedMLP
from mbml.registry import Entry
from mbml.rows import RowLayout
from mbml.students.contract import Student, StudentConfig, through
from mbml.teachers import Teachers


class ActingStudent(Student):
    """Q_D(s, a, z), which alone teaches the encoder, and the actor A_D(s, z); any teacher that acts will do."""

    kind = "acting"

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        inputs = layout.observation_size + config.encoder.embedding_size
        self.actor = StackedMLP(1, [inputs, *config.decoder_hidden, layout.action_size], generator=generator)

    def action_losses(
        self, teachers: Teachers, observation: Tensor, z: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Its action against the one that each teacher takes by its own acting rule."""
        target = teachers.act(observation, generator).to(observation.device)
        return {"loss_action": acting_distillation_loss(self._action(observation, z), target)}

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]`; nothing is drawn."""
        return self._action(observation, z)

    def _action(self, observation: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(through(self.actor, observation, z))


ENTRY = Entry("acting", "one network imitates the action that the teacher takes", ActingStudent)
