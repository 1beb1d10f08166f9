"""What acts under a task embedding, its file, and the agent that infers the embedding while acting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from mbml.encoders import Belief, Encoder
from mbml.rows import RowLayout
from mbml.serialise import load_tree, save_tree


class PolicyError(ValueError):
    """A file that holds no policy, or input that a policy cannot take; the message says what would be right."""


class ContextPolicy(nn.Module, ABC):
    """A policy pi(a | s, z) and the encoder that infers z; made by `Kind(config, layout, generator)`."""

    kind: ClassVar[str]
    """Its name in files."""
    config_type: ClassVar[type]
    """The frozen dataclass that it is made from."""
    kinds: ClassVar[dict[str, type[ContextPolicy]]] = {}
    """Every kind that has been imported."""
    encoder: Encoder
    renewed_every: int = 0
    """Steps after which an agent draws z anew; 0: at the beginning of each episode alone."""
    arbitrated: bool = False
    """An agent plays its first episode untold, the second under its belief, then as has earned more on that task."""

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            ContextPolicy.kinds[cls.kind] = cls

    def __init__(self, config: Any, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.layout = config, layout

    @abstractmethod
    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]`."""

    def save(self, path: Path, **notes: Any) -> None:
        """Write kind, shapes and weights to one safetensors file; `notes` (JSON scalars) are kept beside them."""
        described = {"kind": self.kind, "layout": asdict(self.layout), "config": asdict(self.config)}
        save_tree(path, {**described, "notes": notes, "weights": self.state_dict()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy that `save` wrote, whichever kind of `cls` it is; raises PolicyError if it is none."""
        from mbml import methods  # noqa: F401  (here, because they are built on this module: they bring every kind)

        tree = load_tree(path)
        found = ContextPolicy.kinds.get(tree.get("kind", "")) if isinstance(tree, dict) else None
        if found is None or not issubclass(found, cls):
            kinds = ", ".join(name for name, kind in ContextPolicy.kinds.items() if issubclass(kind, cls))
            raise PolicyError(f"{path} does not hold a policy of one of these kinds: {kinds}.")
        config = TypeAdapter(found.config_type).validate_python(tree["config"])
        policy = found(config, RowLayout(**tree["layout"]), torch.Generator())
        policy.load_state_dict(tree["weights"])
        return policy


class AdaptivePolicy:
    """Acts in n unknown tasks side by side: observe transitions, believe something of each task, act under a sample.

    `begin_episode` draws the z that is used until its next call, or for so many steps as the policy says; with nothing
    observed, from the encoder's prior.
    """

    def __init__(self, policy: ContextPolicy, generator: torch.Generator, tasks: int = 1) -> None:
        self.policy, self.generator, self.tasks = policy, generator, tasks
        nothing = torch.zeros(tasks, 0, policy.layout.context_size)
        self._statistics = policy.encoder.statistics(nothing).sum(1).detach()
        self._nothing = self._statistics.clone()
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._earned = torch.zeros(tasks, 2, 2)  # untold and told: sum of returns, and number of episodes
        self._episode = torch.zeros(tasks, 2)  # return and steps of the episode that goes on
        self.begin_episode()

    def begin_episode(self) -> None:
        """Begin a new episode in every task, under an embedding drawn from what has been observed so far."""
        self._judge()
        self._renew()

    def _judge(self) -> None:
        """Book the episode that has ended, and say for every task whether the next one is told."""
        played = self._episode[:, 1:] > 0
        if played.any():
            result = torch.cat([self._episode[:, :1], torch.ones(self.tasks, 1)], 1) * played
            self._earned[torch.arange(self.tasks), self.told.long()] += result
        self._episode.zero_()
        (untold, told), number = (self._earned[..., 0] / self._earned[..., 1]).T, self._earned[..., 1]
        wanted = (number[:, 0] > 0) & ((number[:, 1] == 0) | (told >= untold))
        self.told = wanted if self.policy.arbitrated else torch.ones(self.tasks, dtype=torch.bool)

    @torch.no_grad()
    def _renew(self) -> None:
        self.belief()  # takes in what is pending
        statistics = torch.where(self.told.unsqueeze(1), self._statistics, self._nothing)
        self.z, self._steps = self.policy.encoder.belief(statistics).sample(self.generator), 0

    def act(self, observation: Tensor) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]`; raises PolicyError for other shapes or values."""
        self._check_shape("observation", observation, self.policy.layout.observation_size)
        self._check_finite("observation", observation)
        if self._steps == self.policy.renewed_every > 0:
            self._renew()
        self._steps += 1
        return self.policy.act(observation, self.z, self.generator)

    def observe(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        active: Tensor | None = None,
    ) -> None:
        """Remember one transition of every task (reward `[n]`); `active` `[n]` marks the tasks that really moved.

        Raises PolicyError for other shapes or values.
        """
        layout = self.policy.layout
        self._check_shape("observation", observation, layout.observation_size)
        self._check_shape("action", action, layout.action_size)
        self._check_shape("next_observation", next_observation, layout.observation_size)
        self._check_shape("reward", reward)
        context = torch.cat([observation, action, next_observation, reward.unsqueeze(-1)], -1)
        self._check_finite("transition", context)
        everyone = torch.ones(self.tasks, dtype=torch.bool)
        moved = everyone if active is None else active
        self._pending.append((context, moved))
        self._episode += torch.stack([reward, torch.ones_like(reward)], 1) * moved.unsqueeze(1)

    def _check_shape(self, name: str, value: Any, *sizes: int) -> None:
        wanted = (self.tasks, *sizes)
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            found = str(value.dtype) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise PolicyError(f"{name} is {found}; it should be a float32 tensor of shape {wanted}.")
        if value.shape != wanted:
            raise PolicyError(f"{name} has shape {tuple(value.shape)}; it should be {wanted}, a row for each task.")

    @staticmethod
    def _check_finite(name: str, value: Tensor) -> None:
        if not bool(value.isfinite().all()):
            raise PolicyError(f"{name} {tuple(value.shape)} holds a value that is not finite; all should be.")

    @torch.no_grad()
    def belief(self) -> Belief:
        """Belief over each task's embedding given all transitions observed, `[n, Z]`."""
        if self._pending:
            contexts, active = (torch.stack(parts) for parts in zip(*self._pending, strict=True))
            self._statistics += (self.policy.encoder.statistics(contexts) * active.unsqueeze(-1)).sum(0)
            self._pending.clear()
        return self.policy.encoder.belief(self._statistics)

    def state_dict(self) -> dict[str, Tensor]:
        """What is known of the tasks: the statistics of all transitions observed `[n, S]`, z `[n, Z]` and its age, and
        what was earned in which way."""
        self.belief()
        steps = torch.tensor(self._steps)
        books = {"told": self.told, "earned": self._earned.clone(), "episode": self._episode.clone()}
        return {"statistics": self._statistics.clone(), "z": self.z.clone(), "steps": steps, **books}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what `state_dict` gave, in this or another process; raises PolicyError for other shapes."""
        for name, own in (("statistics", self._statistics), ("z", self.z)):
            if state[name].shape != own.shape:
                raise PolicyError(f"{name} have shape {tuple(state[name].shape)}; they should be {tuple(own.shape)}.")
        self._statistics, self.z = state["statistics"].clone(), state["z"].clone()
        self._steps, self.told = int(state["steps"]), state["told"].clone()
        self._earned, self._episode = state["earned"].clone(), state["episode"].clone()
        self._pending.clear()
