"""Families of tasks: the one door through which environments come in, ours and anybody's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import gymnasium
import numpy as np
from gymnasium import wrappers
from gymnasium.spaces import Box, flatdim

from mbml.envs.guard import FamilyError, Guarded, blaming
from mbml.envs.mujoco_env import MujocoTaskEnv
from mbml.envs.view import REWARDS, View
from mbml.registry import PRESETS, Entry

SPLITS = ("train", "test", "ood")
_FLOATS = (np.float16, np.float32, np.float64)

Parameter = Any  # np.ndarray [p] or a mapping of names to arrays, all float64 and read-only
Reward = Callable[[np.ndarray, np.ndarray, np.ndarray, Parameter], np.ndarray]


def flat(parameter: Parameter) -> np.ndarray:
    """A parameter as one float64 array `[p]`; named arrays follow each other in their order."""
    if isinstance(parameter, Mapping):
        return np.concatenate([array.ravel() for array in parameter.values()])
    return parameter.ravel()


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a family. `parameter` is what sets it apart; its meaning and unit are in `Family.parameter`."""

    split: str
    index: int
    parameter: Parameter
    label: str

    @property
    def vector(self) -> np.ndarray:
        """The parameter as one float64 array `[p]`."""
        return flat(self.parameter)


@dataclass(frozen=True)
class Family(Entry):
    """Tasks that differ in the reward or in the dynamics; see `family` for its fields. `make(parameter)` is as given,
    `environment(task)` as learners take it.
    """

    horizon: int = 200
    varies: str = "reward"
    parameter: str = ""
    splits: Mapping[str, tuple[Task, ...]] = field(default_factory=dict)
    reward: Reward | None = None
    reward_note: str = ""
    feature: Callable[[Parameter], np.ndarray] = flat
    view: View = REWARDS
    fingerprint: str = ""
    """A hash of the file that defines it, part of every content key; "" for those of this package."""

    def tasks(self, split: str) -> tuple[Task, ...]:
        """The tasks of `split`: "train", "test" or "ood" (out of distribution; may be empty)."""
        if split not in SPLITS:
            raise FamilyError(f"There is no split {split!r} of {self.name}; choose one of {', '.join(SPLITS)}.")
        return self.splits[split]

    def features(self, tasks: Sequence[Task]) -> np.ndarray:
        """Numeric task parameters `[n, p]` (float64), near for tasks alike: for look-up and colouring."""
        return np.stack([self.feature(task.parameter) for task in tasks])

    def environment(self, task: Task, horizon: int | None = None) -> Any:
        """A gymnasium.Env fixed to `task`, truncated after `horizon` steps (default: the family's).

        Observations are float32 `[ds]`, actions lie in [-1, 1] `[da]`. Raises FamilyError for an environment that
        cannot be brought to this form; later, one from outside raises it where it fails or gives what is not finite.
        """
        horizon = self.horizon if horizon is None else horizon
        if horizon < 1:
            raise FamilyError(f"The horizon is {horizon}; it must be at least 1 step.")
        with blaming(f"make of {self.name}"):
            env = self.make(task.parameter)
        if isinstance(env, MujocoTaskEnv):  # has that form, and a time limit of its own that costs nothing
            env.horizon = horizon
            return env
        return wrappers.TimeLimit(self._adapted(env, f"{task.split} task {task.index} of {self.name}"), horizon)

    @property
    def observation_size(self) -> int:
        """Numbers in an observation, ds."""
        return self._sizes[0]

    @property
    def action_size(self) -> int:
        """Numbers in an action, da."""
        return self._sizes[1]

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        env = self.environment(self.tasks("train")[0])
        env.close()
        return flatdim(env.observation_space), flatdim(env.action_space)

    def _adapted(self, env: Any, task: str) -> gymnasium.Env:
        """`env` with flat float32 observations and actions in [-1, 1]; `task` is what it says of its faults."""
        if not isinstance(env, gymnasium.Env):
            raise FamilyError(f"make of {self.name} returned {type(env).__name__}; it must return a gymnasium.Env.")
        seen, acted = env.observation_space, env.action_space
        if not isinstance(seen, Box) or seen.dtype == np.uint8 or len(seen.shape) > 2:
            raise FamilyError(f"{self.name} is observed as {seen}; observations must be a Box of numbers, no image.")
        if not isinstance(acted, Box) or acted.dtype not in _FLOATS or len(acted.shape) != 1 or not acted.is_bounded():
            raise FamilyError(f"{self.name} has the actions {acted}; they must be a bounded Box of floats in a row.")
        if not (acted.low < acted.high).all():
            raise FamilyError(f"{self.name} has the actions {acted}; every low end must be below its high end.")
        env = Guarded(wrappers.DtypeObservation(wrappers.FlattenObservation(env), np.float32), task)
        if (acted.low != -1).any() or (acted.high != 1).any():
            env = wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        return env


def _short(parameter: Parameter) -> str:
    return ", ".join(f"{number:.3g}" for number in flat(parameter)[:3])


def _frozen(values: Any) -> Parameter:
    """Float64 copies that nobody can write to: tasks are shared by everything in the process."""
    if isinstance(values, Mapping):
        return {name: _frozen(array) for name, array in values.items()}
    array = np.array(values, dtype=np.float64, ndmin=1)
    array.setflags(write=False)
    return array


def family(
    name: str,
    make: Callable[[Any], gymnasium.Env],
    train: Iterable[Any],
    test: Iterable[Any],
    ood: Iterable[Any] = (),
    *,
    horizon: int = 200,
    varies: str = "reward",
    parameter: str = "",
    label: Callable[[Any], str] | str = _short,
    feature: Callable[[Any], np.ndarray] = flat,
    reward: Reward | None = None,
    reward_note: str = "none",
    view: View = REWARDS,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "",
    about: str = "",
) -> Family:
    """A family of tasks.

    Args:
        name: lower case with underscores.
        make: gives a gymnasium environment with Box spaces for a task's parameter (float64 array, or named arrays).
            Its randomness should come from `np_random`, so that a resumed collection gives the same bits.
        train, test, ood: the parameters of the tasks: to learn from, unseen, and out of distribution.
        horizon: time limit of an episode in steps, which is `truncated` and never `terminated`.
        varies: what the tasks differ in, "reward" or "dynamics"; for the latter next states are relabelled as well.
        parameter: what the parameter is, and its unit.
        label: a parameter in a few characters, or a word that the number of the task follows.
        feature: numbers of a parameter that are near for tasks alike.
        reward: recomputes rewards `[n]` (float64) from observations `[n, ds]`, actions `[n, da]` in [-1, 1], next
            observations `[n, ds]` and a parameter; None where they do not determine it.
        reward_note: how accurate `reward` is, or why there is none.
        view: what pictures of behaviour show; by default the reward of every step.
        presets: preset -> what it changes of a run's configuration, by dotted path.
        title: name in tables and figures.
        about: what it is, in half a sentence.

    Raises:
        FamilyError: something is missing or does not fit the rest.
    """
    if varies not in ("reward", "dynamics"):
        raise FamilyError(f"varies of {name} is {varies!r}; it must be reward or dynamics.")
    if unknown := set(presets or ()) - set(PRESETS):
        raise FamilyError(f"{name} has presets for {', '.join(unknown)}; there are {', '.join(PRESETS)}.")
    splits = {}
    for split, parameters in zip(SPLITS, (train, test, ood), strict=True):
        values = [_frozen(value) for value in parameters]
        labels = [f"{label} {i}" if isinstance(label, str) else label(value) for i, value in enumerate(values)]
        splits[split] = tuple(Task(split, i, *both) for i, both in enumerate(zip(values, labels, strict=True)))
    if not splits["train"] or not splits["test"]:
        raise FamilyError(f"{name} has {len(splits['train'])} training and {len(splits['test'])} test tasks.")
    size = splits["train"][0].vector.size
    for task in chain(*splits.values()):
        if task.vector.size != size or not np.isfinite(task.vector).all():
            which = f"The {task.split} task {task.index} of {name} has the parameter {task.parameter}"
            raise FamilyError(f"{which}; every task needs {size} finite numbers.")
    if fault := view.fault(lambda: feature(splits["train"][0].parameter)):
        raise FamilyError(f"{name} {fault}.")
    return Family(
        name, about, make, None, presets or {}, title or name,
        horizon=horizon, varies=varies, parameter=parameter, splits=splits,
        reward=reward, reward_note=reward_note, feature=feature, view=view,
    )  # fmt: skip
