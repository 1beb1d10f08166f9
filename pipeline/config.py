"""Configuration of a run: what is computed (this decides the artefacts' keys), and apart from it where."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from actors.stages.rllib import RLlibConfig
from mbml import envs
from mbml.assess import AssessConfig
from mbml.collect import CollectConfig
from mbml.encoders import ENCODERS
from mbml.envs.logged import SCHEME
from mbml.evaluate import EvaluateConfig
from mbml.fqe import FQEConfig
from mbml.methods import METHODS
from mbml.models import EnsembleConfig
from mbml.registry import PRESETS, Entry
from mbml.relabel import RelabelConfig
from mbml.settings import ConfigError, Count, Positive, Share, Whole, changed, check_fields
from mbml.students import STUDENTS
from mbml.teachers import TEACHERS
from mbml.teaching import PooledConfig, TeachingConfig
from mbml.warmstart import WarmStartConfig

__all__ = ["ConfigError", "ModelsConfig", "Place", "RunConfig", "folder_here"]

LEARNERS: dict[str, Entry] = {**TEACHERS}
"""Entry of every learner with a field of its own in the configuration, by the name of that field."""
for _method in METHODS.values():
    LEARNERS.setdefault(_method.learner, _method)

if TYPE_CHECKING:
    Preset = Method = Teacher = Encoder = Student = str
else:
    Preset, Method, Teacher, Encoder, Student = (
        Literal[tuple(names)] for names in (PRESETS, METHODS, TEACHERS, ENCODERS, STUDENTS)
    )


def folder_here(given: str, *, option: str = "--out", right: str = "") -> Path:
    """The folder that an option names, be it there or not; raises ConfigError where none can be, and for an address,
    which would become a folder of that name."""
    if "://" in given:
        raise ConfigError(f"{option} is {given}, but that should be a folder of this machine{right and f'; {right}'}.")
    place, why = Path(given), "is no folder"
    there = next(part for part in (place, *place.absolute().parents) if os.path.lexists(part))
    possible = bool(given.strip()) and there.is_dir() and os.access(there, os.W_OK)
    try:
        os.lstat(place)
    except FileNotFoundError:
        why = "cannot be made"
    except (OSError, ValueError) as error:  # a name that is too long, a link to itself, a file in the way, a null byte
        possible, why = False, f"cannot be made ({getattr(error, 'strerror', error)})"
    if not possible:
        raise ConfigError(f"{option} is {given!r}, which {why}; give a folder, or the name of one to be made.")
    return place


@dataclass(frozen=True)
class Place:
    """Where a run keeps its things; it does not change what is computed."""

    store: str = "runs/store"
    """Folder or fsspec URL (s3://, gs://, file://) of the artefacts; runs share it and reuse each other's."""
    out: str = ""
    """Folder of the report; by default runs/<env>-<preset>-seed<seed>, for a sweep with its name behind it."""
    num_cpus: Count | None = None
    """Processors of the embedded Ray; by default all. A cluster (RAY_ADDRESS) has its own."""
    dashboard: bool = False
    """Also start the dashboard of the embedded Ray."""
    most_pending: Count = 8
    """Actors of a size that are asked of a cluster before it has placed one of them; a cluster that grows by demand
    grows for those."""
    wait_for_nodes: Positive = 1800.0
    """Seconds to wait for a cluster that has no room, such as one whose machines have yet to start."""
    needs: tuple[str, ...] = ()
    """What stages need of a machine besides processors: such as distill:memory=8 (GiB set aside), teach:label.zone=a (a
    label of Ray's nodes), collect:resource.disk=1 (of a resource of the cluster's own)."""
    checkpoint_seconds: Positive = 60.0
    """How much of its work a job may lose with its process or machine."""
    repair: bool = False
    """Check every finished artefact of this run against its checksums first, and make anew those that are damaged and
    all that were made from them."""
    report_in_store: bool = False
    """Also keep report, tables and policy in the store, as submitted jobs do, whose own folder is lost."""
    track: Literal["mlflow", "wandb"] | None = None
    """Also send configuration, curves and report to a tracker, by its own package."""


@dataclass(frozen=True)
class ModelsConfig:
    """Reward ensembles of every task, and next-state ensembles where the dynamics vary."""

    reward: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The reward ensembles."""
    next_observation: EnsembleConfig = field(default_factory=lambda: EnsembleConfig(hidden=(256,) * 6, steps=20_000))
    """The next-state ensembles, for families whose dynamics vary."""
    tasks_per_actor: Whole = 1
    """Tasks learned side by side in one actor; 0: as many as the size of their networks makes best."""


@dataclass(frozen=True)
class _Fixed:
    """What every run has."""

    env: str
    """Family of environments: one of mbml.envs, or module:family of your own."""
    preset: Preset = "laptop"
    """Sizes: smoke (minutes, numbers mean nothing), laptop (real learning on two cores) or paper (a cluster)."""
    seed: Whole = 0
    """Seed of everything: collection, learners, evaluation."""
    horizon: Whole = 0
    """Time limit of an episode in steps; 0 takes the environment's own."""
    train_tasks: Whole = 0
    """Use only the first so many training tasks; 0 takes all."""
    test_tasks: Whole = 0
    """Use only the first so many unseen tasks; 0 takes all."""
    methods: tuple[Method, ...] = ("evidence", "full")
    """Multi-task learners to train: the full model, its ablations and rivals."""
    distill_seeds: tuple[Whole, ...] = (0,)
    """One multi-task learner per seed and method, all from the same data and teachers."""
    teacher: Teacher = "bcq"
    """Learner of the single-task teachers, configured in the field of its name."""
    encoder: Encoder | None = None
    """Context encoder of every multi-task learner but `evidence`; None leaves each its own."""
    student: Student | None = None
    """Networks of the distilled policy; None leaves it its own."""
    varies: Literal["reward", "dynamics"] | None = None
    """What is relabelled across tasks: rewards, or with "dynamics" next states as well; None leaves it to the
    environment (of logged data: rewards)."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """SAC collection."""
    teach: TeachingConfig = field(default_factory=TeachingConfig)
    """Training of the teachers."""
    pooled: PooledConfig = field(default_factory=PooledConfig)
    """One more teacher, of all training tasks together."""
    models: ModelsConfig = field(default_factory=ModelsConfig)
    """Reward and next-state ensembles."""
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    """Relabelling across tasks."""
    rllib: RLlibConfig = field(default_factory=RLlibConfig)
    """RLlib's offline algorithms as single-task references on the same batches."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""
    fqe: FQEConfig = field(default_factory=FQEConfig)
    """Fitted Q evaluation, of logged data (command fit)."""
    assess: AssessConfig = field(default_factory=AssessConfig)
    """How a policy is judged by logs (command fit)."""
    warmstart: WarmStartConfig = field(default_factory=WarmStartConfig)
    """SAC on the unseen tasks from the multi-task policy (command warmstart)."""
    distill_cpus: Count = 1
    """Processors (and torch threads) of one multi-task learner."""
    learner_gpus: Share = 0.0
    """GPUs, or a share of one, for each actor that trains SAC, teachers, the ensembles or the multi-task learner; 0
    trains on the CPU."""
    cuda_graphs: bool = False
    """On a GPU, run each update of SAC, the teachers and the ensembles as one captured CUDA graph."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def check(self) -> None:
        """Raise ConfigError, one sentence, for values that cannot be run."""
        check_fields(self)
        family = envs.get(self.env)
        title = self.env if self.env != SCHEME else family.title
        if family.fingerprint:
            _ = family.action_size  # makes one environment: what cannot be used is refused before anything starts
        for split, wanted in (("train", self.train_tasks), ("test", self.test_tasks)):
            available = len(family.tasks(split))
            if wanted > available:
                raise ConfigError(
                    f"{split}_tasks is {wanted}, but {self.env} has {available}; give 1 to {available}, or 0 for all."
                )
        if self.train_tasks == 1:
            raise ConfigError("train_tasks is 1, but a multi-task policy needs at least 2 training tasks.")
        if self.horizon > family.horizon:
            raise ConfigError(
                f"horizon is {self.horizon}, but {self.env} ends after {family.horizon} steps; "
                f"give 1 to {family.horizon}, or 0 for its own."
            )
        for name in ("methods", "distill_seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not values:
                raise ConfigError(f"{name} is {values}; give one or more, each once.")
        for name in ("encoder", "student"):
            if (kind := getattr(self, name)) and not self._take(name, kind):
                own = f"{name} is {kind}, but {', '.join(self.methods)} has its own"
                raise ConfigError(f"{own}; leave it out, or add a method that takes one, such as full.")
        if self.distill.tasks_per_step == 1:
            raise ConfigError("distill.tasks_per_step is 1, but triplets take two tasks; give 2 or more, or 0 for all.")
        if "metagenrl" in self.methods and self.env != "ant_dir":
            raise ConfigError(f"methods has metagenrl, which runs on ant_dir alone, as in the paper; not on {title}.")
        if "ground_truth" in (*self.methods, self.relabel.source) and family.reward is None:
            raise ConfigError(f"ground_truth needs a reward function; {title} has {family.reward_note}.")
        if self.cuda_graphs and not self.learner_gpus:
            raise ConfigError("cuda_graphs is on, but learner_gpus is 0; give learner_gpus above 0 and at most 1.")
        if self.evaluate.skipped_episodes >= self.evaluate.episodes:
            raise ConfigError(
                f"evaluate.skipped_episodes is {self.evaluate.skipped_episodes}; it must be from 0 to below "
                f"evaluate.episodes, {self.evaluate.episodes}."
            )

    def _take(self, name: str, kind: str) -> bool:
        """Whether a learner of the methods has that kind of part when it is asked for."""
        resolved = self.resolved()
        learners = [getattr(resolved, METHODS[method].learner) for method in self.methods]
        return any(attrgetter(path)(own) == kind for own in learners for path, _ in _kinds(own, {name: kind}, ""))

    def resolved(self) -> RunConfig:
        """The same with the horizon in steps, and `encoder` and `student` in every learner's own configuration."""
        kinds = {name: kind for name in ("encoder", "student") if (kind := getattr(self, name)) is not None}
        horizon = self.horizon or envs.get(self.env).horizon
        return changed(self, {"horizon": horizon, **dict(_kinds(self, kinds, ""))})  # pyright: ignore[reportReturnType]


def check_warmstart(config: RunConfig) -> None:
    """Raise ConfigError, one sentence, for a warm start that cannot be run."""
    config.check()
    warm, online = config.warmstart, config.warmstart.online
    learned = {name: (method, getattr(config, method.learner)) for name, method in METHODS.items()}
    possible = [n for n, (m, own) in learned.items() if "teachers" in m.needs(own) and hasattr(own, "student")]
    if unfit := [name for name in config.methods if name not in possible]:
        raise ConfigError(
            f"{unfit[0]} has no distilled value function to start from; give methods among {', '.join(possible)}."
        )
    if online.warmup_steps >= online.steps:
        raise ConfigError(
            f"warmstart.online.warmup_steps is {online.warmup_steps}; it must be below warmstart.online.steps, "
            f"{online.steps}."
        )
    for name in dict.fromkeys(METHODS[method].learner for method in config.methods):
        learner = getattr(config, name)
        if online.sac.critic_hidden != (shape := learner.student.value_hidden):
            raise ConfigError(
                f"warmstart.online.sac.critic_hidden is {online.sac.critic_hidden}; the critics start from the "
                f"multi-task policy's value function, so it must be {name}.student.value_hidden, {shape}."
            )
        if warm.snapshot and warm.snapshot not in learner.snapshots:
            raise ConfigError(
                f"warmstart.snapshot is {warm.snapshot}; snapshots of {name} are taken every {learner.snapshot_every} "
                f"steps up to {learner.steps} (0 means the last)."
            )


def _kinds(node: Any, kinds: dict[str, str], prefix: str) -> list[tuple[str, str]]:
    """Paths and kinds of all parts of a configuration that are named like a kind and have one."""
    found = []
    for item in fields(node):
        part = getattr(node, item.name)
        if is_dataclass(part):
            if item.name in kinds and hasattr(part, "kind"):
                found.append((f"{prefix}{item.name}.kind", kinds[item.name]))
            found += _kinds(part, kinds, f"{prefix}{item.name}.")
    return found


if TYPE_CHECKING:
    RunConfig = _Fixed
else:
    RunConfig = make_dataclass(
        "RunConfig",
        [
            (name, Annotated[entry.config, tyro.conf.arg(help=entry.about)], field(default_factory=entry.config))
            for name, entry in LEARNERS.items()
        ],
        bases=(_Fixed,),
        namespace={"__doc__": "Everything that decides the result of a run.", "__module__": __name__},
        frozen=True,
    )
