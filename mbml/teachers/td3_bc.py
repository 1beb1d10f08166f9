"""TD3+BC (Fujimoto and Gu 2021) as a teacher: TD3 whose policy also imitates the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mbml.nets import adam, soft_update, step
from mbml.rows import RowLayout
from mbml.settings import Count, NotNegative
from mbml.teachers.contract import DeterministicTeachers, TeacherConfig, TeacherEntry, TeacherLearner, twin_error


@dataclass(frozen=True)
class TD3BCConfig(TeacherConfig):
    """TD3+BC; the defaults are its authors', who standardise observations besides."""

    alpha: NotNegative = 2.5
    """Weight of Q(s, pi(s)), relative to its own mean size over the batch, beside imitation; 0 clones the batch."""
    policy_delay: Count = 2
    """Updates between two steps of the policy and of the targets."""
    target_noise: NotNegative = 0.2
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: NotNegative = 0.5
    """Bound of that noise."""


def smoothed(action: Tensor, noise: float, clip: float, generator: torch.Generator) -> Tensor:
    """Actions of a target policy with bounded noise, so that the target is smooth in them (Fujimoto et al. 2018)."""
    drawn = torch.randn(action.shape, generator=generator, device=action.device) * noise
    return (action + drawn.clamp(-clip, clip)).clamp(-1.0, 1.0)


class TD3BC(TeacherLearner):
    """T learners of TD3+BC side by side."""

    config: TD3BCConfig
    constant = False  # the policy is not in every update

    def __init__(self, config: TD3BCConfig, layout: RowLayout, tasks: int, generator: torch.Generator) -> None:
        super().__init__(config, layout, tasks, generator)
        self.policy = self.network(layout.observation_size, *config.hidden, layout.action_size)
        self.critics = self.network(layout.pair_size, *config.hidden, 1, copies=2)
        self.target_policy, self.target_critics = self.frozen(self.policy), self.frozen(self.critics)
        self.policy_optimiser = adam(self.policy.parameters(), config.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), config.learning_rate)

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update of the critics, and where it is due of policy and targets, on rows `[T, batch, row]`."""
        config, batch = self.config, self.layout.split(rows)
        target = self._td_target(batch.next_observation, batch.reward, batch.terminated)
        critic_loss = twin_error(self.critics(self.layout.pair(rows)), target)
        step(self.critic_optimiser, critic_loss.sum())
        losses = {"critic_loss": critic_loss}
        if (self.steps_done + 1) % config.policy_delay == 0:
            losses["policy_loss"] = self._policy_loss(batch.observation, batch.action)
            step(self.policy_optimiser, losses["policy_loss"].sum())
            soft_update(self.target_critics, self.critics, config.tau)
            soft_update(self.target_policy, self.policy, config.tau)
        return self.counted(**losses)

    @torch.no_grad()
    def _td_target(self, observation: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """`r + gamma min_k Q'_k(s', a')`, a' the target policy's action with bounded noise."""
        config = self.config
        noise = config.target_noise, config.target_noise_clip
        action = smoothed(torch.tanh(self.target_policy(observation)), *noise, self.generator)
        lesser = self.target_critics(torch.cat([observation, action], -1)).unflatten(0, (2, self.tasks)).amin(0)
        return reward + (1 - terminated) * config.discount * lesser

    def _policy_loss(self, observation: Tensor, action: Tensor) -> Tensor:
        """`-alpha Q / mean |Q| + (pi(s) - a)^2` of the first critic, means per task `[T]`."""
        chosen = torch.tanh(self.policy(observation))
        value = self.critics(torch.cat([observation, chosen], -1), frozen=True, first=self.tasks)
        weight = self.config.alpha / value.detach().abs().mean((1, 2))
        return (chosen - action).square().mean((1, 2)) - weight * value.mean((1, 2))

    def teachers(self) -> DeterministicTeachers:
        """Frozen copies of first critic and policy."""
        return DeterministicTeachers(self.frozen(self.critics, self.tasks), self.frozen(self.policy), kind="td3_bc")


ENTRY = TeacherEntry(
    name="td3_bc",
    about="TD3 whose policy also imitates the batch",
    make=TD3BC,
    config=TD3BCConfig,
    title="TD3+BC",
    colour="#b5651d",
)
