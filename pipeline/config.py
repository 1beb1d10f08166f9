"""Configuration of a run: what is computed (this decides the artefacts' keys) and nothing about where."""

from __future__ import annotations

from dataclasses import dataclass, field

from mbml import envs
from mbml.collect import CollectConfig
from mbml.distill import METHODS, DistillConfig
from mbml.evaluate import EvaluateConfig
from mbml.models import EnsembleConfig
from mbml.relabel import RelabelConfig
from mbml.teaching import TeachingConfig


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says what would be right."""


@dataclass(frozen=True)
class ModelsConfig:
    """Reward ensembles of every task, and next-state ensembles where the dynamics vary."""

    reward: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The reward ensembles."""
    next_observation: EnsembleConfig = field(default_factory=lambda: EnsembleConfig(hidden=(256,) * 6, steps=20_000))
    """The next-state ensembles (walker_param only)."""
    tasks_per_actor: int = 1
    """Tasks learned side by side in one actor."""


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that decides the result of a run."""

    env: str
    """Environment: ant_dir, ant_goal, half_cheetah_vel, humanoid_dir, umaze_goal or walker_param."""
    preset: str = "laptop"
    """Sizes: smoke (minutes, numbers mean nothing), laptop (real learning on two cores) or paper (a cluster)."""
    seed: int = 0
    """Seed of everything: collection, learners, evaluation."""
    horizon: int = 0
    """Time limit of an episode in steps; 0 takes the environment's own."""
    train_tasks: int = 0
    """Use only the first so many training tasks; 0 takes all."""
    test_tasks: int = 0
    """Use only the first so many unseen tasks; 0 takes all."""
    methods: tuple[str, ...] = ("full",)
    """Multi-task learners to train: full, no_triplet, no_relabelling, neither."""
    distill_seeds: tuple[int, ...] = (0,)
    """One multi-task learner per seed and method, all from the same data and teachers."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """SAC collection."""
    bcq: TeachingConfig = field(default_factory=TeachingConfig)
    """BCQ teachers."""
    models: ModelsConfig = field(default_factory=ModelsConfig)
    """Reward and next-state ensembles."""
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    """Relabelling across tasks."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """The multi-task learner."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""
    distill_cpus: int = 1
    """Processors (and torch threads) of one multi-task learner."""

    def check(self) -> None:
        """Raise ConfigError, one sentence, for values that cannot be run."""
        distribution = envs.get(self.env)
        for split, wanted in (("train", self.train_tasks), ("test", self.test_tasks)):
            available = len(distribution.tasks(split))
            if not 0 <= wanted <= available:
                raise ConfigError(
                    f"{split}_tasks is {wanted}, but {self.env} has {available}; give 1 to {available}, or 0 for all."
                )
        if self.train_tasks == 1:
            raise ConfigError("train_tasks is 1, but a multi-task policy needs at least 2 training tasks.")
        if not 0 <= self.horizon <= distribution.horizon:
            raise ConfigError(
                f"horizon is {self.horizon}, but {self.env} ends after {distribution.horizon} steps; "
                f"give 1 to {distribution.horizon}, or 0 for its own."
            )
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods:
            raise ConfigError(
                f"methods are {', '.join(self.methods) or 'empty'}; give one or more of {', '.join(METHODS)}."
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        positive = {
            "collect.steps": self.collect.steps,
            "collect.epoch-steps": self.collect.epoch_steps,
            "collect.warmup-steps": self.collect.warmup_steps,
            "collect.evaluation-every": self.collect.evaluation_every,
            "collect.evaluation-episodes": self.collect.evaluation_episodes,
            "collect.tasks-per-actor": self.collect.tasks_per_actor,
            "collect.sac.batch-size": self.collect.sac.batch_size,
            "bcq.iterations": self.bcq.iterations,
            "bcq.evaluation-every": self.bcq.evaluation_every,
            "bcq.evaluation-episodes": self.bcq.evaluation_episodes,
            "bcq.tasks-per-actor": self.bcq.tasks_per_actor,
            "bcq.learner.batch-size": self.bcq.learner.batch_size,
            "bcq.learner.target-candidates": self.bcq.learner.target_candidates,
            "models.tasks-per-actor": self.models.tasks_per_actor,
            "models.reward.members": self.models.reward.members,
            "models.reward.steps": self.models.reward.steps,
            "distill.steps": self.distill.steps,
            "distill.snapshot-every": self.distill.snapshot_every,
            "distill.context-size": self.distill.context_size,
            "distill.batch-size": self.distill.batch_size,
            "evaluate.repeats": self.evaluate.repeats,
            "evaluate.reference-episodes": self.evaluate.reference_episodes,
            "distill-cpus": self.distill_cpus,
        }
        for name, value in positive.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if not 0 <= self.evaluate.skipped_episodes < self.evaluate.episodes:
            raise ConfigError(
                f"evaluate.skipped-episodes is {self.evaluate.skipped_episodes}; it must be from 0 to below "
                f"evaluate.episodes, {self.evaluate.episodes}."
            )
        if not self.distill_seeds:
            raise ConfigError("distill-seeds is empty; give at least one seed, for example 0.")
