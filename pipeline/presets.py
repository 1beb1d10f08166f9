"""Sizes of a run: smoke, laptop and paper, for every environment.

Here stand only those of the stages that every run has; a learner's are in its registry, an environment's in its family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbml import envs
from mbml.models import EnsembleConfig
from mbml.registry import PRESETS as NAMES
from mbml.sac import SACConfig
from mbml.settings import ConfigError, changed
from pipeline.config import LEARNERS, RunConfig


def preset(env: str, name: str) -> RunConfig:
    """The configuration of preset `name` for environment `env`: the authors' defaults, changed by the preset, then by
    every learner's registry entry, then by the environment.

    Raises UnknownName or ConfigError, naming the valid choices.
    """
    family = envs.get(env)
    if name not in NAMES:
        raise ConfigError(f"There is no preset {name!r}; choose one of {', '.join(NAMES)}.")
    changes = dict(_STAGES[name])
    for learner, entry in LEARNERS.items():
        changes |= {f"{learner}.{path}": value for path, value in entry.presets.get(name, {}).items()}
    changes |= family.presets.get(name, {})
    return changed(RunConfig(env=env, preset=name), changes)


_TINY = EnsembleConfig(members=2, hidden=(16,), steps=40, batch_size=32, learning_rate=1e-3)
_SMALL_SAC = SACConfig(
    policy_hidden=(128, 128),
    critic_hidden=(128, 128),
    critic_initialisation="torch",
    batch_size=128,
    learning_rate=1e-3,
    alpha_learning_rate=1e-3,
    initial_alpha=0.1,
)


def _under(prefix: str, **values: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


_STAGES: dict[str, Mapping[str, Any]] = {
    "smoke": {  # every stage in about a minute; the numbers mean nothing
        "horizon": 30,
        "train_tasks": 3,
        "test_tasks": 2,
        **_under("collect", steps=240, warmup_steps=120, epoch_steps=60, evaluation_episodes=1, tasks_per_actor=2),
        "collect.sac": SACConfig(policy_hidden=(16, 16), critic_hidden=(16, 16), batch_size=16),
        **_under("teach", iterations=40, evaluation_every=20, evaluation_episodes=1, tasks_per_actor=2),
        **_under("models", reward=_TINY, next_observation=_TINY, tasks_per_actor=2),
        **_under("relabel", reward_threshold=5.0, next_observation_threshold=5.0, pool=100),
        **_under("rllib", updates=4, batch_size=16, hidden=(16, 16), evaluation_episodes=1),
        **_under("evaluate", episodes=3, skipped_episodes=1, reference_episodes=1),
        "warmstart.initial_steps": 60,
        **_under("warmstart.imitation", steps=20, batch_size=16),
        **_under(
            "warmstart.online", steps=180, warmup_steps=60, epoch_steps=60, evaluation_episodes=1, tasks_per_actor=2
        ),
        "warmstart.online.sac": SACConfig(policy_hidden=(16, 16), critic_hidden=(16, 16), batch_size=16),
    },
    "laptop": {  # networks and learning rates that learn in minutes on two cores
        **_under(
            "collect",
            steps=30_000,
            warmup_steps=2_000,
            evaluation_every=2,
            evaluation_episodes=3,
            tasks_per_actor=5,
            sac=_SMALL_SAC,
        ),
        **_under("teach", iterations=7_000, evaluation_every=1_000, tasks_per_actor=5),
        # One hidden layer as in the paper needs far more steps: its labels are five times as wrong here.
        "models.reward": EnsembleConfig(members=5, hidden=(128, 128), steps=3_000, learning_rate=1e-3),
        "models.next_observation": EnsembleConfig(members=5, hidden=(128, 128), steps=4_000, learning_rate=1e-3),
        "models.tasks_per_actor": 5,
        **_under("rllib", updates=2_000, batch_size=128, hidden=(128, 128), learning_rate=1e-3),
        "evaluate.repeats": 2,
        **_under("warmstart", initial_steps=1_500, policy_rate=0.3),
        **_under("warmstart.imitation", steps=2_000, batch_size=128, learning_rate=1e-3),
        **_under(
            "warmstart.online",
            steps=16_000,
            warmup_steps=1_000,
            epoch_steps=500,
            evaluation_every=2,
            evaluation_episodes=3,
            tasks_per_actor=5,
            sac=changed(_SMALL_SAC, {"critic_hidden": (256,) * 3, "batch_size": 64}),
        ),
        "distill_cpus": 2,
    },
    "paper": {},
}
