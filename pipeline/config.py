"""Configuration of a run: what is computed (this decides the artefacts' keys) and nothing about where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from actors.rllib_trainer import ALGORITHMS, RLlibConfig
from mbml import envs
from mbml.baselines.batch_pearl import BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQConfig
from mbml.baselines.metagenrl import MetaGenRLConfig
from mbml.collect import CollectConfig
from mbml.distill import DistillConfig
from mbml.evaluate import EvaluateConfig
from mbml.models import EnsembleConfig
from mbml.relabel import SOURCES, RelabelConfig
from mbml.teachers.bcq import BCQConfig
from mbml.teaching import TeachingConfig
from mbml.warmstart import IMITATION_TARGETS, WarmStartConfig
from pipeline.methods import METHODS


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
class BCQStage(TeachingConfig):
    """The BCQ teachers: schedule and learner."""

    learner: BCQConfig = field(default_factory=BCQConfig)
    """The learner."""


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
    """Multi-task learners to train: full; its ablations no_relabelling, no_triplet, neither, ground_truth and
    no_ensemble; the baselines contextual_bcq, batch_pearl and (ant_dir only) metagenrl."""
    distill_seeds: tuple[int, ...] = (0,)
    """One multi-task learner per seed and method, all from the same data and teachers."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """SAC collection."""
    bcq: BCQStage = field(default_factory=BCQStage)
    """BCQ teachers."""
    models: ModelsConfig = field(default_factory=ModelsConfig)
    """Reward and next-state ensembles."""
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    """Relabelling across tasks."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """The multi-task learner."""
    contextual_bcq: ContextualBCQConfig = field(default_factory=ContextualBCQConfig)
    """The baseline Contextual BCQ."""
    batch_pearl: BatchPEARLConfig = field(default_factory=BatchPEARLConfig)
    """The baseline PEARL on the batches."""
    metagenrl: MetaGenRLConfig = field(default_factory=MetaGenRLConfig)
    """The baseline MetaGenRL."""
    rllib: RLlibConfig = field(default_factory=RLlibConfig)
    """RLlib's offline algorithms as single-task references on the same batches."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""
    warmstart: WarmStartConfig = field(default_factory=WarmStartConfig)
    """SAC on the unseen tasks from the multi-task policy (command warmstart)."""
    distill_cpus: int = 1
    """Processors (and torch threads) of one multi-task learner."""
    learner_gpus: float = 0.0
    """GPUs, or a share of one, for each actor that trains SAC, BCQ, the ensembles or the multi-task learner; 0 trains
    on the CPU."""
    cuda_graphs: bool = False
    """On a GPU, run each update of SAC, BCQ and the ensembles as one captured CUDA graph."""

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
        if unknown:
            raise ConfigError(f"methods are {', '.join(self.methods)}; give one or more of {', '.join(METHODS)}.")
        if "metagenrl" in self.methods and self.env != "ant_dir":
            raise ConfigError(
                f"methods has metagenrl, which runs on ant_dir alone, as in the paper; not on {self.env}."
            )
        if "ground_truth" in (*self.methods, self.relabel.source) and distribution.reward is None:
            raise ConfigError(f"ground_truth needs a reward function; {self.env} has {distribution.reward_note}.")
        if self.cuda_graphs and not self.learner_gpus:
            raise ConfigError("cuda_graphs is on, but learner_gpus is 0; give learner_gpus above 0 and at most 1.")
        for name in ("methods", "distill_seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not values:
                raise ConfigError(f"{name} is {values}; give one or more, each once.")
        for path, value in _leaves("", self):
            rule = _RULES.get(path.rpartition(".")[2])
            if rule is not None and not all(rule.holds(v) for v in (value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"{path} is {value}; it must be {rule.words}.")
        evaluate = self.evaluate
        if not 0 <= evaluate.skipped_episodes < evaluate.episodes:
            raise ConfigError(
                f"evaluate.skipped_episodes is {evaluate.skipped_episodes}; it must be from 0 to below "
                f"evaluate.episodes, {evaluate.episodes}."
            )


class _Rule(NamedTuple):
    """What the values of a field must be, as a test and in words."""

    holds: Callable[[Any], bool]
    words: str


_COUNT = _Rule(lambda v: v >= 1, "at least 1")
_POSITIVE = _Rule(lambda v: v > 0, "above 0")
_NOT_NEGATIVE = _Rule(lambda v: v >= 0, "0 or more")
_SHARE = _Rule(lambda v: 0 <= v <= 1, "from 0 to 1")
_PART = _Rule(lambda v: 0 < v <= 1, "above 0 and at most 1")
_TARGET = _Rule(lambda v: v in IMITATION_TARGETS, f"one of {', '.join(IMITATION_TARGETS)}")
_SOURCE = _Rule(lambda v: v in SOURCES, f"one of {', '.join(SOURCES)}")
_ALGORITHM = _Rule(lambda v: v in ALGORITHMS, f"one or more of {', '.join(ALGORITHMS)}")

_RULES: dict[str, _Rule] = {
    name: rule
    for rule, names in {
        _COUNT: (
            "steps warmup_steps epoch_steps evaluation_every evaluation_episodes tasks_per_actor batch_size iterations",
            "target_candidates acting_candidates members snapshot_every context_size hard_contexts repeats",
            "reference_episodes distill_cpus embedding_size hidden policy_hidden critic_hidden vae_hidden",
            "encoder_hidden value_hidden decoder_hidden perturbation_hidden vae_encoder_hidden objective_hidden lstm",
            "tasks_per_step updates segments objective_segments segment_length policy_every objective_every",
            "steps_per_evaluation rounds_per_evaluation initial_steps",
        ),
        _POSITIVE: ("learning_rate alpha_learning_rate initial_alpha reward_scale clip inner_step",),
        _NOT_NEGATIVE: (
            "updates_per_step pool reward_threshold next_observation_threshold partners kl_weight margin",
            "triplet_weight vae_kl_weight policy_regulariser target_noise target_noise_clip anneal cql_weight iql_beta",
            "snapshot",
        ),
        _SHARE: ("discount tau minimum_weight final_learning_rate iql_expectile learner_gpus",),
        _PART: ("policy_rate",),
        _TARGET: ("target",),
        _SOURCE: ("source",),
        _ALGORITHM: ("algorithms",),
    }.items()
    for line in names
    for name in line.split()
}
"""By field name, wherever in the configuration it stands; of a tuple, every entry counts."""


def _leaves(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Every field that is no dataclass, with its dotted path."""
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            yield from _leaves(f"{prefix}{item.name}.", value)
        else:
            yield f"{prefix}{item.name}", value
