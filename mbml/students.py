"""The multi-task policies that teachers are distilled into: networks that act under a task embedding z.

The contract first, then the students; a new one is a class and its line in STUDENTS.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from mbml.encoders import EncoderConfig, NetworkEncoder, make_encoder, through
from mbml.losses import (
    acting_distillation_loss,
    generator_distillation_loss,
    perturbation_distillation_loss,
    value_distillation_loss,
)
from mbml.nets import StackedMLP, Standardiser
from mbml.policy import ContextPolicy
from mbml.registry import Entry, Registry
from mbml.rows import RowLayout, Rows, Transitions, spread_rows
from mbml.settings import Count, Whole, Widths
from mbml.teachers import Teachers, of_shapes
from mbml.teachers.bcq import LATENT_CLAMP, CandidateNetworks, clamped_latents

_FITTED, _MOST_FITTED = 4_096, 131_072
"""Rows of each task, and of all together, that standardisation is fitted to."""
_SAME = 1e-6
"""Squared distance of an embedding from itself at most, however it was rounded."""


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
    standardised: bool = False
    """Standardise observations by the statistics of all tasks' rows."""
    renewed_every: Whole = 0
    """Steps after which an agent that acts by it draws z anew; 0: at the beginning of each episode alone."""
    arbitrated: bool = False
    """The agent plays its first episode untold, the second under its belief, then as has earned more on that task."""

    def __post_init__(self) -> None:
        STUDENTS[self.kind]


class Student(ContextPolicy):
    """A policy distilled from K teachers: an encoder, Q_D(s, a, z), and whatever it acts with."""

    config_type = StudentConfig
    config: StudentConfig
    encoder: NetworkEncoder

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        self.encoder = make_encoder(layout, config.encoder, generator)
        self.seen = nn.Identity()
        if config.standardised:
            self.seen = Standardiser(layout.observation_size, generator.device)
        self.renewed_every, self.arbitrated = config.renewed_every, config.arbitrated
        self.value_network = self.network(layout.pair_size, config.value_hidden, 1, generator)

    def network(self, inputs: int, hidden: Widths, outputs: int, generator: torch.Generator) -> StackedMLP:
        """A new network of so many inputs and z."""
        return StackedMLP(1, [inputs + self.encoder.embedding_size, *hidden, outputs], generator=generator)

    def fit(self, rows: Rows) -> None:
        """Learn from rows `[K, N, R]` how to standardise, where the configuration asks for it."""
        if not (self.config.standardised or self.config.encoder.standardised):
            return
        sample = spread_rows(rows, min(_FITTED, max(1, _MOST_FITTED // len(rows)))).flatten(0, 1)
        self.encoder.fit(self.layout.context(sample))
        if isinstance(self.seen, Standardiser):
            self.seen.fit(self.layout.split(sample).observation)

    def value(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Q_D `[..., 1]` for parts of equal leading shape."""
        return through(self.value_network, self.seen(observation), action, z)

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


class GenerativeStudent(Student):
    """The paper's student: it generates candidate actions, perturbs them and takes the one that it values most.

    Q_D(s, a, z), the generator G_D(s, nu, z) and the perturbation xi_D(s, a, z) (paper, section 4).
    """

    kind = "generative"

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        actions = layout.action_size
        self.latent_size = 2 * actions
        self.noise_shape = config.acting_candidates, self.latent_size
        inputs = layout.observation_size + self.latent_size
        self.decoder = self.network(inputs, config.decoder_hidden, actions, generator)
        self.perturbation = self.network(layout.pair_size, config.perturbation_hidden, actions, generator)

    def generate(self, observation: Tensor, latent: Tensor, z: Tensor) -> Tensor:
        """G_D, tanh outputs `[..., d_a]`."""
        return torch.tanh(through(self.decoder, self.seen(observation), latent, z))

    def perturb(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Raw tanh output of xi_D `[..., d_a]`, before the factor 0.05."""
        return torch.tanh(through(self.perturbation, self.seen(observation), action, z))

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

    def decide(self, observation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Actions `[n, d_a]` by BCQ's acting rule (Fig. 3), of candidates from clamped `noise`."""
        networks = CandidateNetworks(self.decoder, self.perturbation, self.value_network)
        latent = noise.clamp(-LATENT_CLAMP, LATENT_CLAMP).flatten(0, 1).unsqueeze(0)
        seen, candidates = self.seen(observation).unsqueeze(0), self.config.acting_candidates
        return networks.choose(seen, candidates, latent, z.unsqueeze(0)).squeeze(0)


class ActingStudent(Student):
    """A student that imitates what its teachers do, not how they choose it: one network acts, in one pass.

    Q_D(s, a, z), which alone teaches the encoder, and the actor A_D(s, z); any teacher that acts will do.
    """

    kind = "acting"

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        self.actor = self.network(layout.observation_size, config.decoder_hidden, layout.action_size, generator)

    def action_losses(
        self, teachers: Teachers, observation: Tensor, z: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Its action against the one that each teacher takes by its own acting rule."""
        target = teachers.act(observation, generator).to(observation.device)
        return {"loss_action": acting_distillation_loss(self._action(observation, z), target)}

    def decide(self, observation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Actions `[n, d_a]`; there is no noise."""
        return self._action(observation, z)

    def _action(self, observation: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(through(self.actor, self.seen(observation), z))


@dataclass(frozen=True)
class LedConfig(StudentConfig):
    """An acting student, and the shapes of the teacher that leads it."""

    start: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the teacher, of a network its sizes."""


class LedStudent(ActingStudent):
    """An acting student of a `mixture`, but where nothing was seen a teacher itself acts, and is not imitated.

    To act in a place that no batch shows, as a policy that serves many bodies does, one must copy it to the letter.
    """

    kind = "led"
    config_type = LedConfig

    def __init__(self, config: LedConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__(config, layout, generator)
        self._follow(of_shapes(config.start, 1, generator))

    @classmethod
    def of(cls, config: StudentConfig, layout: RowLayout, generator: torch.Generator, start: Teachers) -> Self:
        """A new student, led by this one teacher."""
        student = cls(LedConfig(**vars(config), start=start.shapes()), layout, generator)
        student._follow(start)
        return student

    def _follow(self, start: Teachers) -> None:
        self.start, self.leading = start, nn.ModuleDict(start.networks())
        self.noise_shape = (start.candidates, 2 * self.layout.action_size) if start.candidates else ()

    def decide(self, observation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Actions `[n, d_a]`: the teacher's under the untold embedding, the student's under any other."""
        untold = (z - self.encoder.get_parameter("embeddings")[-1]).square().sum(-1, keepdim=True) < _SAME
        led = self.start.decide(observation.unsqueeze(0), noise.unsqueeze(0)).squeeze(0)
        return torch.where(untold, led, self._action(observation, z))


STUDENTS = Registry(
    "student",
    Entry("generative", "generates, perturbs and chooses among candidates, as in the paper", GenerativeStudent),
    Entry("acting", "one network imitates the action that the teacher takes", ActingStudent),
)


def make_student(config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> Student:
    """The student that `config` names, on the generator's device."""
    return STUDENTS[config.kind].make(config, layout, generator)
