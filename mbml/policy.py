"""What acts under a task embedding, its file, and the agent that infers the embedding while acting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from mbml.encoders import Belief, Encoder
from mbml.rows import RowLayout
from mbml.serialise import SerialiseError, load_tree, save_tree


class PolicyError(ValueError):
    """A file that holds no policy, or input that a policy cannot take; the message says what would be right."""


def in_short(error: Exception) -> str:
    """What an error says, on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(" .:")


class _Nowhere(torch.Generator):
    """What a network is made with whose weights come from a file: nothing is drawn and no memory is taken."""

    device = torch.device("meta")  # pyright: ignore[reportAssignmentType]


class ContextPolicy(nn.Module):
    """A policy pi(a | s, z) and the encoder that infers z; made by `Kind(config, layout, generator)`."""

    kind: ClassVar[str]
    """Its name in files."""
    config_type: ClassVar[type]
    """The frozen dataclass that it is made from."""
    kinds: ClassVar[dict[str, type[ContextPolicy]]] = {}
    """Every kind that has been imported."""
    encoder: Encoder
    noise_shape: tuple[int, ...] = ()
    """Shape of the standard normal noise that one action takes; (): none."""
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

    def decide(self, observation: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]`, by `noise` `[n, *noise_shape]`.

        Every policy that is saved has this; one that is not may override `act` instead.
        """
        raise NotImplementedError(f"{type(self).__name__} draws what it needs by itself.")

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[n, d_a]` likewise, by noise from the generator; where it takes none, nothing is drawn."""
        return self.decide(observation, z, self.noise(len(observation), generator))

    def noise(self, number: int, generator: torch.Generator) -> Tensor:
        """Noise for so many actions; empty where it takes none."""
        if not self.noise_shape:
            return torch.empty(number, 0, device=generator.device)
        return torch.randn(number, *self.noise_shape, generator=generator, device=generator.device)

    def save(self, path: Path, **notes: Any) -> None:
        """Write kind, shapes and weights to one safetensors file; `notes` (JSON scalars) are kept beside them."""
        described = {"kind": self.kind, "layout": asdict(self.layout), "config": asdict(self.config)}
        save_tree(path, {**described, "notes": notes, "weights": self.state_dict()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy that `save` wrote, whichever kind of `cls` it is; raises PolicyError if it is none."""
        from mbml import methods  # noqa: F401  (here, because they are built on this module: they bring every kind)

        try:
            tree = load_tree(path)
        except (SerialiseError, RecursionError) as error:
            raise PolicyError(f"{path} holds no policy: {in_short(error)}.") from None
        kind = tree.get("kind") if isinstance(tree, dict) else None
        found = ContextPolicy.kinds.get(kind) if isinstance(kind, str) else None
        if found is None or not issubclass(found, cls):
            kinds = ", ".join(name for name, kind in ContextPolicy.kinds.items() if issubclass(kind, cls))
            raise PolicyError(f"{path} does not hold a policy of one of these kinds: {kinds}.")
        try:
            policy = found._built(tree)
        except Exception as error:  # whatever a stranger's file brings about: nothing of it was run
            raise PolicyError(f"{path} is damaged and makes no {kind} policy: {in_short(error)}.") from None
        if any(w.dtype != torch.float32 or not bool(w.isfinite().all()) for w in policy.state_dict().values()):
            raise PolicyError(f"{path} is damaged: it has weights that are no finite float32 numbers.")
        return policy

    @classmethod
    def _built(cls, tree: dict[str, Any]) -> Self:
        config = TypeAdapter(cls.config_type).validate_python(tree["config"])
        policy = cls(config, TypeAdapter(RowLayout).validate_python(tree["layout"]), _Nowhere())
        policy.load_state_dict(tree["weights"], assign=True)
        # Acts once, because a kind of teachers does not check what it is made of.
        policy.decide(*(torch.zeros(1, *size) for size in ((policy.layout.observation_size,),
                        (policy.encoder.embedding_size,), policy.noise_shape or (0,))))  # fmt: skip
        return policy


class ContextAgent:
    """Acts in n unknown tasks side by side: observe transitions, believe something of each task, act under a sample.

    `begin_episode` draws the z that is used until its next call, or for so many steps as the policy says; with nothing
    observed, from the encoder's prior. Tasks that `which` names, by position `[k]`, may act and observe by themselves.
    """

    def __init__(
        self,
        policy: ContextPolicy,
        generator: torch.Generator,
        tasks: int = 1,
        *,
        encoder: Encoder | None = None,
        renewed_every: int | None = None,
        deterministic: bool = False,
    ) -> None:
        """`encoder` and `renewed_every` replace the policy's own. `deterministic`: z is the mean of the belief, and all
        actions take the same noise."""
        self.policy, self.generator, self.tasks = policy, generator, tasks
        self.encoder = policy.encoder if encoder is None else encoder
        self.renewed_every = policy.renewed_every if renewed_every is None else renewed_every
        self._noise = policy.noise(1, torch.Generator().manual_seed(0)) if deterministic else None
        nothing = torch.zeros(tasks, 0, policy.layout.context_size)
        self._statistics = self.encoder.statistics(nothing).sum(1).detach()
        self._nothing = self._statistics.clone()
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._earned = torch.zeros(tasks, 2, 2)  # untold and told: sum of returns, and number of episodes
        self._episode = torch.zeros(tasks, 2)  # return and steps of the episode that goes on
        self._steps = torch.zeros(tasks, dtype=torch.long)  # of z
        self.told = torch.ones(tasks, dtype=torch.bool)
        self.z = self.encoder.belief(self._nothing).mean.detach().clone()
        self.begin_episode()

    def begin_episode(self, which: Tensor | None = None) -> None:
        """Begin a new episode in every task, or in those that `which` `[n]` marks, under an embedding drawn from what
        has been observed so far."""
        chosen = torch.ones(self.tasks, dtype=torch.bool) if which is None else which
        self._judge(chosen)
        self._renew(chosen)

    def _judge(self, chosen: Tensor) -> None:
        """Book the episode that has ended, and say for every task `chosen` whether the next one is told."""
        played = (self._episode[:, 1:] > 0) & chosen.unsqueeze(1)
        if played.any():
            result = torch.cat([self._episode[:, :1], torch.ones(self.tasks, 1)], 1) * played
            self._earned[torch.arange(self.tasks), self.told.long()] += result
        self._episode[chosen] = 0
        if self.policy.arbitrated:
            (untold, told), number = (self._earned[..., 0] / self._earned[..., 1]).T, self._earned[..., 1]
            wanted = (number[:, 0] > 0) & ((number[:, 1] == 0) | (told >= untold))
            self.told = torch.where(chosen, wanted, self.told)

    @torch.no_grad()
    def _renew(self, chosen: Tensor) -> None:
        statistics = torch.where(self.told.unsqueeze(1), self.statistics(), self._nothing)
        belief = self.encoder.belief(statistics)
        z = belief.sample(self.generator) if self._noise is None else belief.mean
        self.z, self._steps = torch.where(chosen.unsqueeze(1), z, self.z), self._steps.masked_fill(chosen, 0)

    def act(self, observation: Tensor, which: Tensor | None = None) -> Tensor:
        """Actions `[n, d_a]` for observations `[n, d_s]` of all tasks, or of those at `which`; raises PolicyError for
        other shapes or values."""
        self._check_shape("observation", observation, which, self.policy.layout.observation_size)
        self._check_finite("observation", observation)
        acting = slice(None) if which is None else which
        if self.renewed_every:
            due = torch.zeros(self.tasks, dtype=torch.bool)
            due[acting] = self._steps[acting] >= self.renewed_every
            if due.any():
                self._renew(due)
        with torch.no_grad():
            if self._noise is None:
                acted = self.policy.act(observation, self.z[acting], self.generator)
            else:
                noise = self._noise.expand(len(observation), *self._noise.shape[1:])
                acted = self.policy.decide(observation, self.z[acting], noise)
        self._check_finite("what follows from the observation", acted)
        self._steps[acting] += 1
        return acted

    def observe(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        active: Tensor | None = None,
        *,
        which: Tensor | None = None,
        paid: Tensor | None = None,
    ) -> None:
        """Remember one transition of every task (reward `[n]`); `active` `[n]` marks the tasks that really moved.

        Or one of each task at `which` `[k]`, whose arrays have k rows. `paid` `[n or k]` is what returns are counted
        in, where that is not the reward. Raises PolicyError for other shapes or values.
        """
        layout = self.policy.layout
        self._check_shape("observation", observation, which, layout.observation_size)
        self._check_shape("action", action, which, layout.action_size)
        self._check_shape("next_observation", next_observation, which, layout.observation_size)
        self._check_shape("reward", reward, which)
        context = torch.cat([observation, action, next_observation, reward.unsqueeze(-1)], -1)
        self._check_finite("transition", context)
        played = torch.stack([reward if paid is None else paid, torch.ones_like(reward)], 1)
        if which is not None:
            with torch.no_grad():
                added = self.encoder.statistics(context)
            self._check_finite("what was inferred from the transition", added)
            self.statistics()[which] += added
            self._episode[which] += played
            return
        moved = torch.ones(self.tasks, dtype=torch.bool) if active is None else active
        self._pending.append((context, moved))
        self._episode += played * moved.unsqueeze(1)

    def _check_shape(self, name: str, value: Any, which: Tensor | None, *sizes: int) -> None:
        wanted = (self.tasks if which is None else len(which), *sizes)
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
    def statistics(self) -> Tensor:
        """Statistics of all transitions observed, `[n, S]`; the agent's own, not a copy."""
        if self._pending:
            contexts, active = (torch.stack(parts) for parts in zip(*self._pending, strict=True))
            self._statistics += (self.encoder.statistics(contexts) * active.unsqueeze(-1)).sum(0)
            self._pending.clear()
        return self._statistics

    @torch.no_grad()
    def belief(self) -> Belief:
        """Belief over each task's embedding given all transitions observed, `[n, Z]`."""
        return self.encoder.belief(self.statistics())

    def state_dict(self) -> dict[str, Tensor]:
        """What is known of the tasks: the statistics of all transitions observed `[n, S]`, z `[n, Z]` and its age
        `[n]`, and what was earned in which way."""
        known = {"statistics": self.statistics(), "z": self.z, "steps": self._steps}
        books = {"told": self.told, "earned": self._earned, "episode": self._episode}
        return {name: value.clone() for name, value in (known | books).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what `state_dict` gave, in this or another process; raises PolicyError for anything else."""
        for name, own in self.state_dict().items():
            if state[name].shape != own.shape:
                raise PolicyError(f"{name} have shape {tuple(state[name].shape)}; they should be {tuple(own.shape)}.")
        counts = state["steps"], state["earned"][..., 1], state["episode"][:, 1]
        if any(bool(((count < 0) | (count % 1 != 0)).any()) for count in counts):
            raise PolicyError("The state is damaged: its steps and numbers of episodes should be 0, 1, 2, ...")
        with torch.no_grad():
            mean, variance = self.encoder.belief(state["statistics"])
        if not bool((mean.isfinite() & variance.isfinite() & (variance >= 0)).all()):
            raise PolicyError("The state is damaged: no belief follows from its statistics.")
        self._statistics, self.z, self._steps = (state[name].clone() for name in ("statistics", "z", "steps"))
        self.told, self._earned, self._episode = (state[name].clone() for name in ("told", "earned", "episode"))
        self._pending.clear()
