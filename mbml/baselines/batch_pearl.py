"""Batch PEARL: soft actor-critic on a task embedding, from the batches alone (specification, section 6.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbml.context import ContextEncoder, Gaussian, kl_to_prior, set_posterior
from mbml.losses import posterior_regulariser
from mbml.nets import StackedMLP, adam, anneal, soft_update, step
from mbml.rows import RowLayout, Rows, gather_rows, sample_indices
from mbml.sac import LOG_STD_MAX, LOG_STD_MIN, squashed_sample
from mbml.serialise import load_tree, save_tree


@dataclass(frozen=True)
class BatchPEARLConfig:
    """PEARL without collection; the defaults are the authors' for most domains (section 13.1 has the exceptions)."""

    encoder_hidden: tuple[int, ...] = (200, 200, 200)
    """Widths of the context encoder."""
    embedding_size: int = 5
    """Size Z of the task embedding."""
    hidden: tuple[int, ...] = (300, 300, 300)
    """Widths of the policy, of each critic and of the value network (C12)."""
    steps: int = 100_000
    """Gradient steps."""
    snapshot_every: int = 10_000
    """Steps between snapshots that are evaluated."""
    context_size: int = 256
    """Context transitions per sampled task."""
    batch_size: int = 256
    """Transitions per sampled task that the actor-critic learns from."""
    tasks_per_step: int = 16
    """Tasks of one step, drawn with replacement."""
    learning_rate: float = 3e-4
    """Adam learning rate of all networks."""
    final_learning_rate: float = 1.0
    """Share of the learning rate that is left at the last step, reached linearly; 1 keeps it constant, as the paper."""
    kl_weight: float = 0.1
    """Weight of the posterior's divergence from the prior, summed over sampled tasks and dimensions."""
    reward_scale: float = 5.0
    """Factor of the rewards in the target; the temperature is 1."""
    discount: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Polyak rate of the target value network."""
    policy_regulariser: float = 1e-3
    """Weight of the mean squares of the policy's mean before the tanh and of its log-std."""


class PEARLPolicy(nn.Module):
    """Context encoder and tanh-Gaussian policy pi(a | s, z), which acts by its mean."""

    def __init__(self, config: BatchPEARLConfig, layout: RowLayout, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        z = config.embedding_size
        self.encoder = ContextEncoder(layout.context_size, config.encoder_hidden, z, generator=generator)
        sizes = [layout.observation_size + z, *config.hidden, 2 * layout.action_size]
        self.actor = StackedMLP(1, sizes, generator=generator, output_scale=0.001)

    @torch.no_grad()
    def act(self, observation: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `tanh(mean)` `[n, d_a]` for observations `[n, d_s]` under embeddings `[n, Z]`; nothing is drawn."""
        head = self.actor(torch.cat([observation, z], -1).unsqueeze(0)).squeeze(0)
        return torch.tanh(head.chunk(2, dim=-1)[0])

    def save(self, path: Path, **notes: Any) -> None:
        """Write weights and shapes to one safetensors file; `notes` (JSON scalars) are kept beside them."""
        layout = {"observation_size": self.layout.observation_size, "action_size": self.layout.action_size}
        shapes = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()}
        tree = {"kind": "pearl", "layout": layout, "config": shapes, "notes": notes, "weights": self.state_dict()}
        save_tree(path, tree)

    @classmethod
    def load(cls, path: Path) -> PEARLPolicy:
        """The policy that `save` wrote."""
        return cls.of_tree(load_tree(path))

    @classmethod
    def of_tree(cls, state: dict[str, Any]) -> PEARLPolicy:
        """The policy of a file's tree that is read already."""
        shapes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state["config"].items()}
        policy = cls(BatchPEARLConfig(**shapes), RowLayout(**state["layout"]), torch.Generator())
        policy.load_state_dict(state["weights"])
        return policy


class BatchPEARL:
    """The learner: `update` draws tasks, contexts and batches from all tasks' rows `[K, N, row]` and makes one step.

    Contexts have a generator of their own, as in `MultiTaskLearner`. The order `s | a | s' | r` of a context
    transition is the project's; the authors' `s | a | r | s'` is the same encoder with its inputs renamed.
    """

    def __init__(
        self,
        config: BatchPEARLConfig,
        layout: RowLayout,
        rows: Rows,
        generator: torch.Generator,
        context_generator: torch.Generator,
    ) -> None:
        self.config, self.layout, self.rows = config, layout, rows
        self.generator, self.context_generator = generator, context_generator
        self.policy = PEARLPolicy(config, layout, generator)
        z = config.embedding_size
        self.critics = StackedMLP(2, [layout.pair_size + z, *config.hidden, 1], generator=generator)
        value_sizes = [layout.observation_size + z, *config.hidden, 1]
        self.value, self.target_value = (StackedMLP(1, value_sizes, generator=generator) for _ in range(2))
        self.target_value.load_state_dict(self.value.state_dict())
        self.target_value.requires_grad_(False)
        self.critic_optimiser = adam(
            [*self.policy.encoder.parameters(), *self.critics.parameters()], config.learning_rate
        )
        self.actor_optimiser = adam([*self.value.parameters(), *self.policy.actor.parameters()], config.learning_rate)
        self.steps_done = 0

    def update(self) -> dict[str, Tensor]:
        """One step of encoder and critics, then of value network and policy; returns the losses.

        `kl` is the mean over the tasks drawn of the posterior's divergence from the prior; `policy_loss` leaves out the
        regularisers.
        """
        config = self.config
        self._anneal()
        generator = self.generator
        tasks = torch.randint(len(self.rows), (config.tasks_per_step,), generator=generator, device=generator.device)
        belief = self._infer(tasks)
        z = belief.sample(self.generator).repeat_interleave(config.batch_size, dim=0).unsqueeze(0)
        # All sampled tasks share the networks: one long batch `[1, tasks * batch, row]`.
        rows = self._draw(tasks, config.batch_size, self.generator).flatten(0, 1).unsqueeze(0)
        batch = self.layout.split(rows)

        # Encoder and critics; only here does z carry gradient
        target = self._td_target(batch.next_observation, batch.reward, batch.terminated, z)
        values = self.critics(torch.cat([self.layout.pair(rows), z], -1))
        q_loss = (values - target).square().mean((1, 2)).sum()
        step(self.critic_optimiser, q_loss + posterior_regulariser(belief, config.kl_weight))

        # Value network and policy, through the critics just updated
        z_fixed = z.detach()
        state = torch.cat([batch.observation, z_fixed], -1)
        head = self.policy.actor(state)
        action, log_density = squashed_sample(head, self.generator)
        values = self.critics(torch.cat([batch.observation, action, z_fixed], -1), frozen=True).amin(0, keepdim=True)
        v_loss = (self.value(state) - (values - log_density).detach()).square().mean()
        policy_loss = (log_density - values).mean()
        # The two updates share no parameter: one backward serves both.
        step(self.actor_optimiser, v_loss + policy_loss + self._regulariser(head))

        soft_update(self.target_value, self.value, config.tau)
        self.steps_done += 1
        return {
            "q_loss": q_loss.detach(),
            "v_loss": v_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "kl": kl_to_prior(belief).detach().mean(),
            "entropy": -log_density.detach().mean(),
        }

    def _anneal(self) -> None:
        config, progress = self.config, self.steps_done / self.config.steps
        optimisers = (self.critic_optimiser, self.actor_optimiser)
        anneal(optimisers, config.learning_rate, config.final_learning_rate, progress)

    def _infer(self, tasks: Tensor) -> Gaussian:
        """Posterior `[T, Z]` of each task drawn, from a context of its own transitions."""
        context = self.layout.context(self._draw(tasks, self.config.context_size, self.context_generator))
        return set_posterior(self.policy.encoder(context))

    def _draw(self, tasks: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` rows of each task drawn, `[T, count, row]`; a task that was drawn twice gives two such batches."""
        return gather_rows(self.rows, sample_indices(len(tasks), count, self.rows.shape[1], generator), tasks)

    @torch.no_grad()
    def _td_target(self, observation: Tensor, reward: Tensor, terminated: Tensor, z: Tensor) -> Tensor:
        value = self.target_value(torch.cat([observation, z], -1))
        return self.config.reward_scale * reward + (1 - terminated) * self.config.discount * value

    def _regulariser(self, head: Tensor) -> Tensor:
        mean, log_std = head.chunk(2, dim=-1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        return self.config.policy_regulariser * (mean.square().mean() + log_std.square().mean())

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


_STATEFUL = ("policy", "critics", "value", "target_value", "critic_optimiser", "actor_optimiser")
