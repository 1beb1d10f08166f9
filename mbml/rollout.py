"""Many environments stepped in lock-step, so that one forward pass serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import flatdim
from torch import Tensor

from mbml.envs import SimulationDiverged


class Step(NamedTuple):
    """One step of n environments; those that were not active keep their observation and have reward 0."""

    next_observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    diverged: Tensor
    """Where the physics blew up: that was no transition, and the episode is over with the one before."""

    def rows(self, observation: Tensor, action: Tensor) -> Tensor:
        """The transitions from `observation` `[n, d_s]` under `action` `[n, d_a]` as packed rows `[n, row]`."""
        scalars = torch.stack([self.reward, self.terminated.float()], 1)
        return torch.cat([observation, action, self.next_observation, scalars], 1)

    def joined(self, later: Step) -> Step:
        """This step, and a `later` one of those environments that diverged in it."""
        ends = self.terminated | later.terminated, self.truncated | later.truncated
        return Step(later.next_observation, self.reward + later.reward, *ends, later.diverged)


class EnvStack:
    """n environments of one family. `observation` `[n, d_s]` is always the current one."""

    def __init__(self, envs: Sequence[gymnasium.Env]) -> None:
        self.envs = list(envs)
        self._observation = np.zeros((len(envs), flatdim(envs[0].observation_space)), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.envs)

    @property
    def observation(self) -> Tensor:
        """A copy of the current observations `[n, d_s]`."""
        return torch.from_numpy(self._observation.copy())

    def seed(self, seeds: Sequence[int]) -> None:
        """Seed and reset every environment."""
        for i, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            self._observation[i], _ = env.reset(seed=seed)

    def reset(self, which: Sequence[int] | None = None) -> None:
        """Begin a new episode in all environments, or in those named."""
        for i in range(len(self)) if which is None else which:
            self._observation[i], _ = self.envs[i].reset()

    def step(self, action: Tensor, active: np.ndarray | None = None) -> Step:
        """Step every (active) environment with its row of `action` `[n, d_a]`."""
        number, actions = len(self), action.numpy()
        reward = np.zeros(number, dtype=np.float32)
        terminated, truncated, diverged = np.zeros((3, number), dtype=bool)
        for i in range(number) if active is None else np.flatnonzero(active):
            try:
                self._observation[i], reward[i], terminated[i], truncated[i], _ = self.envs[i].step(actions[i])
            except SimulationDiverged:
                diverged[i] = True
        return Step(self.observation, *map(torch.from_numpy, (reward, terminated, truncated, diverged)))

    def random_states(self) -> list[dict]:
        """State of every environment's random generator (JSON-able)."""
        return [dict(env.unwrapped.np_random.bit_generator.state) for env in self.envs]

    def set_random_states(self, states: Sequence[dict]) -> None:
        """Restore what `random_states` gave."""
        for env, state in zip(self.envs, states, strict=True):
            env.unwrapped.np_random.bit_generator.state = state


def run_episode(
    envs: EnvStack,
    act: Callable[[Tensor], Tensor],
    observe: Callable[[Tensor, Tensor, Step, Tensor], None] | None = None,
    playing: np.ndarray | None = None,
) -> np.ndarray:
    """One episode in every environment, in lock-step; undiscounted returns `[n]`.

    `act` maps observations `[n, d_s]` to actions `[n, d_a]`; `observe(observation, action, step, active)` sees every
    step, which is a transition of the `active`. Environments that have ended wait, with their last observation, until
    all have. With `playing` `[n]` only the environments that it marks take part; the others are left as they are and
    return 0.
    """
    active = np.ones(len(envs), dtype=bool) if playing is None else playing.copy()
    envs.reset(np.flatnonzero(active).tolist())
    returns = np.zeros(len(envs))
    observation = envs.observation
    while active.any():
        action = act(observation)
        step = envs.step(action, active)
        returns += step.reward.numpy()
        active &= ~step.diverged.numpy()
        if observe is not None:
            observe(observation, action, step, torch.from_numpy(active.copy()))
        active &= ~(step.terminated | step.truncated).numpy()
        observation = step.next_observation
    return returns


def mean_returns(envs: EnvStack, tasks: int, act: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Mean return `[T]` of an episode in every environment of T tasks, which are in order and have as many each.

    `act` maps observations `[T, copies, d_s]` to actions `[T, copies, d_a]`.
    """
    returns = run_episode(envs, lambda observation: act(observation.unflatten(0, (tasks, -1))).flatten(0, 1))
    return returns.reshape(tasks, -1).mean(1)
