"""SAC on a new task that starts from the multi-task policy and its value function."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbml.collect import CollectConfig
from mbml.learner import check_losses
from mbml.nets import StackedMLP, Standardiser, adam, part_of, soft_update, step
from mbml.policy import ContextAgent
from mbml.rollout import EnvStack, Step, run_episode
from mbml.rows import RowLayout, Rows, sample_rows
from mbml.sac import LOG_STD_MAX, LOG_STD_MIN, SAC, SACConfig, Squashed
from mbml.settings import Count, Part, Positive, Whole
from mbml.students import Student

ImitationTarget = Literal["action", "atanh"]
_ATANH_LIMIT = 0.999
"""Actions are clipped to this size before atanh, which is infinite at 1."""


@dataclass(frozen=True)
class ImitationConfig:
    """How the new policy learns to act like the multi-task policy; the defaults are the authors' but for `target`."""

    steps: Count = 10_000
    """Adam steps."""
    batch_size: Count = 256
    """Transitions per task in one step."""
    learning_rate: Positive = 3e-4
    """Adam learning rate."""
    target: ImitationTarget = "atanh"
    """What the mean before the tanh is fitted to: the executed "action" (the authors' code), or its "atanh", so that
    the policy, which acts through a tanh, acts as it was shown."""
    foreign_states: Whole = 0
    """States of the training tasks' batches that are imitated beside those visited, all under the multi-task policy's
    last z; 0 imitates, as the authors do, what it did while it was finding out."""


@dataclass(frozen=True)
class WarmStartConfig:
    """SAC from the multi-task policy; the defaults are the authors'."""

    snapshot: Whole = 0
    """Step of the multi-task policy's snapshot to start from; 0 takes the last."""
    initial_steps: Count = 10_000
    """Environment steps per task of the multi-task policy, before SAC."""
    policy_rate: Part = 0.1
    """Share of Adam's step that the policy makes. The authors average the policy with its predecessor after every
    step, which is the same."""
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    """How the new policy learns to act like the multi-task policy."""
    replayed: bool = False
    """SAC learns from the multi-task policy's transitions as well."""
    held_updates: Whole = 0
    """Updates of the critics alone, before the policy and the temperature learn as well."""
    online: CollectConfig = field(
        default_factory=lambda: CollectConfig(steps=360_000, sac=SACConfig(critic_hidden=(1024,) * 9))
    )
    """SAC on the new task: steps (the warm-up included), networks, evaluation. The critics have the shape of Q_D."""


class Exploration(NamedTuple):
    """What the multi-task policy did in T new tasks."""

    rows: Tensor
    """Its first transitions `[T, steps, row]`."""
    z: Tensor
    """The task embedding that it acted under in its last episode `[T, Z]`."""
    returns: np.ndarray
    """Undiscounted return of that episode `[T]`."""


def explore(student: Student, layout: RowLayout, envs: EnvStack, steps: int, generator: torch.Generator) -> Exploration:
    """Act in T seeded environments for `steps` steps each, inferring z anew after every episode.

    The last episode is played to its end for its return, but what lies beyond `steps` is neither kept nor learned
    from: as if it had been cut there.
    """
    agent = ContextAgent(student, generator, tasks=len(envs))
    rows = torch.zeros(len(envs), steps, layout.row_size)
    spent, returns, z = np.zeros(len(envs), dtype=int), np.zeros(len(envs)), agent.z

    def observe(observation: Tensor, action: Tensor, result: Step, active: Tensor) -> None:
        kept = active & torch.from_numpy(spent < steps)
        agent.observe(observation, action, result.next_observation, result.reward, kept)
        which = kept.numpy()
        rows[kept, spent[which]] = result.rows(observation, action)[kept]
        spent[which] += 1

    while (playing := spent < steps).any():
        if spent.any():
            agent.begin_episode()
        episode = run_episode(envs, agent.act, observe, playing)
        returns = np.where(playing, episode, returns)
        z = torch.where(torch.from_numpy(playing).unsqueeze(1), agent.z, z)
    return Exploration(rows, z, returns)


def imitation_loss(head: Tensor, action: Tensor, target: ImitationTarget) -> Tensor:
    """Negative log-likelihood of actions `[T, B, d_a]` under policy outputs `[T, B, 2 d_a]`, per task `[T]`.

    Up to constants that of a diagonal Gaussian on the mean before the tanh:
    mean_b [ sum_dims (a - m)^2 / s^2 + sum_dims log s^2 ].
    """
    mean, log_std = head.chunk(2, dim=-1)
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    if target == "atanh":
        action = torch.atanh(action.clamp(-_ATANH_LIMIT, _ATANH_LIMIT))
    return ((action - mean).square() * (-2 * log_std).exp() + 2 * log_std).sum(-1).mean(-1)


def imitate(
    policy: StackedMLP, layout: RowLayout, rows: Rows, config: ImitationConfig, generator: torch.Generator
) -> Tensor:
    """Fit T policies to the actions in rows `[T, N, row]`, in place; the last losses `[T]`. All is on one device.

    Raises NotFinite.
    """
    optimiser = adam(policy.parameters(), config.learning_rate)
    losses = torch.zeros(len(rows), device=generator.device)
    for _ in range(config.steps):
        batch = layout.split(sample_rows(rows, config.batch_size, generator))
        losses = imitation_loss(policy(batch.observation), batch.action, config.target)
        step(optimiser, losses.sum())
    check_losses({"imitation_loss": losses}, config.steps)
    return losses.detach()


@torch.no_grad()
def critics_at(student: Student, z: Tensor) -> StackedMLP:
    """Twin critics for T tasks `[2T, ...]`, both of them Q_D(s, a, z) at the task's fixed z `[T, Z]`.

    A constant input is a bias: z goes into the first layer's, so these networks have the inputs of any SAC critic.
    """
    pair, copies = student.layout.pair_size, 2 * len(z)
    (first, *weights), (bias, *biases) = student.value_network.layers
    if isinstance(student.seen, Standardiser):
        first, bias = student.seen.absorbed(first, bias)
    shifted = bias + z.unsqueeze(1) @ first[0, pair:]
    weights, biases = ([p.repeat(copies, 1, 1) for p in part] for part in ([first[:, :pair], *weights], biases))
    return StackedMLP.of(weights, [shifted.repeat(2, 1, 1), *biases])


@torch.no_grad()
def believed(student: Student, layout: RowLayout, rows: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """Rows `[T, N, row]` with the actions that the multi-task policy would take there under embeddings `[T, Z]`."""
    batch, each = layout.split(rows), z.unsqueeze(1).expand(-1, rows.shape[1], -1)
    actions = student.act(batch.observation.flatten(0, 1), each.flatten(0, 1), generator).view_as(batch.action)
    return torch.cat([batch.observation, actions, rows[..., layout.pair_size :]], -1)


class TwoBatchSAC(SAC):
    """SAC whose critics learn from a mini-batch each, under a slow policy: the authors' SAC for warm starts.

    `update` takes rows `[T, 2 batch, row]`: mini-batch A, then B. From random networks it is their `sac_baseline`;
    `start_from` makes it the warm start.
    """

    batches_per_update = 2

    def __init__(
        self,
        config: SACConfig,
        layout: RowLayout,
        tasks: int,
        generator: torch.Generator,
        policy_rate: float,
        held_updates: int = 0,
    ) -> None:
        self.policy_rate, self.held_updates = policy_rate, held_updates
        self.constant = held_updates == 0  # policy and temperature wait for so many updates
        super().__init__(config, layout, tasks, generator)

    def _make_optimisers(self) -> None:
        rate, tasks = self.config.learning_rate, self.tasks
        self.policy_optimiser = adam(self.policy.parameters(), self.policy_rate * rate)
        # The halves are the same memory as the stack, so that one product still serves both.
        self._halves = [part_of(self.critics, start, tasks) for start in (0, tasks)]
        self._target_halves = [part_of(self.target_critics, start, tasks) for start in (0, tasks)]
        self.first_optimiser, self.second_optimiser = (adam(half.parameters(), rate) for half in self._halves)

    def start_from(self, critics: StackedMLP) -> None:
        """Take over critics `[2T, ...]` and make them the targets."""
        for network in (self.critics, self.target_critics):
            network.load_state_dict(critics.state_dict())

    @torch.no_grad()
    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """On A the first critic and its target; on B the temperature, the second critic, the policy, its target."""
        first, second = rows.chunk(2, dim=1)
        loss_a = self._step_critic(0, self.first_optimiser, first, self.log_alpha.detach().exp())

        batch = self.layout.split(second)
        head, trace = self.policy.trace(batch.observation)
        drawn = Squashed.draw(head, self.generator)
        before, held = self.log_alpha.detach().exp(), self.steps_done < self.held_updates
        if not held:
            self._step_alpha(drawn.log_density)
        alpha = self.log_alpha.detach().exp()
        loss_b = self._step_critic(1, self.second_optimiser, second, before)
        policy_loss = self._step_policy(batch.observation, drawn, trace, alpha, held=held)
        return self._losses((loss_a + loss_b) / 2, policy_loss, alpha, drawn)

    def _step_critic(self, which: int, optimiser: torch.optim.Optimizer, rows: Tensor, alpha: Tensor) -> Tensor:
        """One step of one critic towards the lesser of both targets, and of its own target; loss `[T]`."""
        batch, critic = self.layout.split(rows), self._halves[which]
        target = self._td_target(batch, Squashed.draw(self.policy(batch.next_observation), self.generator), alpha)
        loss = self._step_critics(critic, optimiser, self.layout.pair(rows), target)
        soft_update(self._target_halves[which], critic, self.config.tau)
        return loss
