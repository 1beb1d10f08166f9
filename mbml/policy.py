"""The multi-task policy: students that take a task embedding, and the agent that infers it while acting."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mbml.context import ContextEncoder, Gaussian, posterior
from mbml.nets import StackedMLP
from mbml.rows import RowLayout
from mbml.serialise import load_tree, save_tree
from mbml.teachers.bcq import candidate_outputs, clamped_latents, select_action


@dataclass(frozen=True)
class StudentConfig:
    """Shapes of the multi-task networks; the defaults are the authors' (specification, section 4.1)."""

    encoder_hidden: tuple[int, ...] = (200, 200, 200)
    """Widths of the context encoder q_phi."""
    embedding_size: int = 20
    """Size Z of the task embedding."""
    value_hidden: tuple[int, ...] = (1024,) * 9
    """Widths of Q_D."""
    decoder_hidden: tuple[int, ...] = (1024,) * 7
    """Widths of G_D."""
    perturbation_hidden: tuple[int, ...] = (1024,) * 8
    """Widths of xi_D."""
    acting_candidates: int = 10
    """Candidate actions per observation when acting."""


class Student(nn.Module):
    """Encoder q_phi and the distilled Q_D(s, a, z), G_D(s, nu, z), xi_D(s, a, z)."""

    def __init__(self, config: StudentConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        z, actions, pair = config.embedding_size, layout.action_size, layout.pair_size
        self.latent_size = 2 * actions
        self.encoder = ContextEncoder(layout.context_size, config.encoder_hidden, z, generator=generator)
        latent_input = layout.observation_size + self.latent_size + z
        self.value_network = StackedMLP(1, [pair + z, *config.value_hidden, 1], generator=generator)
        self.decoder = StackedMLP(1, [latent_input, *config.decoder_hidden, actions], generator=generator)
        self.perturbation = StackedMLP(1, [pair + z, *config.perturbation_hidden, actions], generator=generator)

    def value(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Q_D `[..., 1]` for parts of equal leading shape."""
        return self._through(self.value_network, observation, action, z)

    def generate(self, observation: Tensor, latent: Tensor, z: Tensor) -> Tensor:
        """G_D, tanh outputs `[..., d_a]`."""
        return torch.tanh(self._through(self.decoder, observation, latent, z))

    def perturb(self, observation: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Raw tanh output of xi_D `[..., d_a]`, before the factor 0.05."""
        return torch.tanh(self._through(self.perturbation, observation, action, z))

    @staticmethod
    def _through(network: StackedMLP, *parts: Tensor) -> Tensor:
        joined = torch.cat(parts, dim=-1)
        return network(joined.flatten(0, -2).unsqueeze(0)).view(*joined.shape[:-1], -1)

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]` (Fig. 3)."""
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

    def save(self, path: Path, **notes: Any) -> None:
        """Write weights and shapes to one safetensors file; `notes` (JSON scalars) are kept beside them."""
        layout = {"observation_size": self.layout.observation_size, "action_size": self.layout.action_size}
        shapes = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()}
        save_tree(path, {"layout": layout, "config": shapes, "notes": notes, "weights": self.state_dict()})

    @classmethod
    def load(cls, path: Path) -> Student:
        """The student that `save` wrote."""
        return cls.of_tree(load_tree(path))

    @classmethod
    def of_tree(cls, state: dict[str, Any]) -> Student:
        """The student of a file's tree that is read already."""
        shapes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state["config"].items()}
        student = cls(StudentConfig(**shapes), RowLayout(**state["layout"]), torch.Generator())
        student.load_state_dict(state["weights"])
        return student


class ContextPolicy(Protocol):
    """What acts under a task embedding and brings the encoder that infers it: `Student`, `PEARLPolicy`."""

    encoder: ContextEncoder

    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]`."""
        ...

    def save(self, path: Path, **notes: Any) -> None:
        """Write it to one file, with `notes` (JSON scalars) beside it."""
        ...


class AdaptivePolicy:
    """Acts in n unknown tasks side by side: observe transitions, infer each task's posterior, act under a sample.

    Before anything is observed the posterior is the prior N(0, I). `begin_episode` draws the z that is used until the
    next call (specification, section 7).
    """

    def __init__(self, policy: ContextPolicy, generator: torch.Generator, tasks: int = 1) -> None:
        self.policy, self.generator, self.tasks = policy, generator, tasks
        size = policy.encoder.embedding_size
        self._precision = torch.zeros(tasks, size)
        self._precision_mean = torch.zeros(tasks, size)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.begin_episode()

    def begin_episode(self) -> None:
        """Draw a new task embedding for every task from what has been observed so far."""
        self.z = self.belief().sample(self.generator)

    def act(self, observation: Tensor) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]`."""
        return self.policy.act(observation, self.z, self.generator)

    def observe(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        active: Tensor | None = None,
    ) -> None:
        """Remember one transition of every task (reward `[n]`); `active` `[n]` marks the tasks that really moved."""
        context = torch.cat([observation, action, next_observation, reward.unsqueeze(-1)], -1)
        everyone = torch.ones(self.tasks, dtype=torch.bool)
        self._pending.append((context, everyone if active is None else active))

    @torch.no_grad()
    def belief(self) -> Gaussian:
        """Posterior over each task's embedding given all transitions observed, `[n, Z]`."""
        if self._pending:
            contexts = torch.stack([c for c, _ in self._pending])
            mask = torch.stack([m for _, m in self._pending]).unsqueeze(-1)
            factors = self.policy.encoder(contexts)
            self._precision += (factors.precision * mask).sum(0)
            self._precision_mean += (factors.precision_mean * mask).sum(0)
            self._pending.clear()
        return posterior(self._precision, self._precision_mean)
