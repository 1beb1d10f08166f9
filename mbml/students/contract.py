"""What every student does: act under z, value under z, and say what it asks of its teachers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mbml.encoders import EncoderConfig, make_encoder
from mbml.losses import value_distillation_loss
from mbml.nets import StackedMLP
from mbml.policy import ContextPolicy
from mbml.rows import RowLayout, Transitions
from mbml.settings import Count, Widths
from mbml.teachers import Teachers


@dataclass(frozen=True)
class StudentConfig:
    """Which multi-task networks, and their shapes; the defaults are the authors' (paper, appendix)."""

    kind: str = "generative"
    """One of `mbml.students.STUDENTS`."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The context encoder q_phi."""
    value_hidden: Widths = (1024,) * 9
    """Widths of Q_D."""
    decoder_hidden: Widths = (1024,) * 7
    """Widths of G_D, or of the one network that an acting student acts with."""
    perturbation_hidden: Widths = (1024,) * 8
    """Widths of xi_D."""
    acting_candidates: Count = 10
    """Candidate actions per observation when acting."""

    def __post_init__(self) -> None:
        from mbml.students import STUDENTS  # here, because its entries are built on this module

        STUDENTS[self.kind]


_WIDTHS = ("student.value_hidden", "student.decoder_hidden", "student.perturbation_hidden")
STUDENT_PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        **dict.fromkeys((*_WIDTHS, "student.encoder.hidden"), (16, 16)),
        "student.encoder.embedding_size": 4,
        "student.acting_candidates": 2,
    },
    "laptop": dict.fromkeys(_WIDTHS, (256, 256, 256)),
}
"""What the presets change of the field `student` of a learner's configuration."""


class Student(ContextPolicy):
    """A policy distilled from K teachers: an encoder, Q_D(s, a, z), and whatever it acts with."""

    config_type = StudentConfig
    config: StudentConfig

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        self.encoder = make_encoder(layout.context_size, config.encoder, generator)
        sizes = [layout.pair_size + config.encoder.embedding_size, *config.value_hidden, 1]
        self.value_network = StackedMLP(1, sizes, generator=generator)

    def value(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Q_D `[..., 1]` for parts of equal leading shape."""
        return through(self.value_network, observation, action, z)

    def losses(
        self, teachers: Teachers, batch: Transitions, pair: Tensor, z: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses by name on K tasks' rows `[K, B, ...]`, with `pair` their (s, a), under embeddings `[K, B, Z]`.

        Only the value's (Eq. 3) carries gradient into z.
        """
        with torch.no_grad():
            target = teachers.value(pair)
        value = value_distillation_loss(self.value(batch.observation, batch.action, z), target)
        return {"loss_q": value, **self.action_losses(teachers, batch.observation, z.detach(), generator)}

    @abstractmethod
    def action_losses(
        self, teachers: Teachers, observation: Tensor, z: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Losses by name of what it acts with, for observations `[K, B, d_s]` under fixed embeddings `[K, B, Z]`."""


def through(network: StackedMLP, *parts: Tensor) -> Tensor:
    """Outputs `[..., out]` of a stack of one for parts of its input, `[..., d]` each, joined in order."""
    joined = torch.cat(parts, dim=-1)
    return network(joined.flatten(0, -2).unsqueeze(0)).view(*joined.shape[:-1], -1)
