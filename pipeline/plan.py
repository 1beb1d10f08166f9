"""What has to be made: the jobs of a run, a sweep or a warm start, from its configuration.

collect -> teach, models -> relabel -> distill -> evaluate, probe, trace, warmstart
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from actors.artefacts import layout_of
from actors.stage import STAGES, Job, Ref
from actors.stages.collect import Collect
from actors.stages.distill import Distill
from actors.stages.evaluate import Evaluate, References
from actors.stages.familiarity import Familiarity
from actors.stages.likelihood import Likelihood
from actors.stages.metagenrl import MetaGenRL
from actors.stages.models import Models
from actors.stages.probe import Probe
from actors.stages.relabel import Relabel
from actors.stages.rllib import RLlib
from actors.stages.teach import Teach
from actors.stages.trace import TASKS, Trace
from actors.stages.warmstart import Start, WarmStart
from mbml import envs
from mbml.deploy.familiarity import MOST_TASKS
from mbml.envs.logged import NO_SIMULATOR, LoggedFamily
from mbml.methods import METHODS, Variant
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.partners import evenly
from mbml.settings import changed
from mbml.stacks import side_by_side
from mbml.teachers import TEACHERS
from mbml.teaching import TeachingConfig
from pipeline.config import ConfigError, RunConfig, check_warmstart


@dataclass(frozen=True)
class Trained:
    """Artefacts of one multi-task learner."""

    variant: Variant
    seed: int
    trained: Ref
    evaluations: dict[int, Ref]
    """Of its snapshots, by step."""
    probes: Ref
    relabel: Ref | None
    """The tables that it learned from, if any."""
    trace: Ref | None = None
    """What it does on unseen tasks, where there is something to act in."""

    def artefacts(self) -> list[Ref]:
        """Everything that is made for this learner alone."""
        found = [self.trained, *self.evaluations.values(), self.probes, self.trace]
        return [ref for ref in found if ref]


@dataclass(frozen=True)
class Arm:
    """SAC on every unseen task from some start, with one seed."""

    name: str
    """`sac`, `sac_two_batches`, or `warm_` and the method of the multi-task policy."""
    seed: int
    initial_steps: int
    """Environment steps per task of the multi-task policy before it."""
    jobs: list[Ref]
    """One per stack of tasks."""


@dataclass
class Plan:
    """All jobs, and where the report finds what."""

    config: RunConfig
    train: tuple[int, ...]
    played: tuple[int, ...]
    """Those of the training tasks that are played and looked into."""
    test: tuple[int, ...]
    variants: list[Variant]
    jobs: dict[Ref, Job] = field(default_factory=dict)
    """In the order in which they should start."""
    artefacts: dict[str, list[Ref]] = field(default_factory=dict)
    """What all variants share or stand beside: collect, teach, rllib, metagenrl; references of every kind of `teachers`
    in their order, and "likelihood of" those kinds where there are ensembles."""
    teachers: list[str] = field(default_factory=list)
    """Kinds of teachers: the run's, then those that a method has of its own."""
    pooled: dict[Ref, str] = field(default_factory=dict)
    """Returns of each pooled teacher, and the first variant that has it; of the run's own, which is first, none."""
    runs: list[Trained] = field(default_factory=list)
    """One multi-task learner each."""
    arms: list[Arm] = field(default_factory=list)
    """Of a warm start."""

    def needed(self, wanted: Iterable[Ref]) -> list[Job]:
        """The jobs that make `wanted`, and all that they are made from, in order."""
        found = set(wanted)
        for ref, job in reversed(self.jobs.items()):
            if ref in found:
                found.update(job.inputs)
        return [job for ref, job in self.jobs.items() if ref in found]

    def shared(self) -> list[Job]:
        """The jobs that are not a multi-task learner's own: what a sweep makes once, before its trials."""
        own = {ref for run in self.runs for ref in run.artefacts()}
        return [job for ref, job in self.jobs.items() if ref not in own]


def plan(config: RunConfig, variants: Sequence[Variant] | None = None) -> Plan:
    """The jobs of a checked configuration; without `variants` it compares `config.methods`.

    Jobs that two variants have in common are planned once.
    """
    return Planner(config, variants).run()


def plan_warmstart(config: RunConfig) -> Plan:
    """SAC on every unseen task, from scratch and from each of `config.methods`, for every seed of the multi-task
    learner; raises ConfigError for what cannot be run."""
    check_warmstart(config)
    planner, warm = Planner(config), config.warmstart
    result = planner.run()
    states = {}
    if warm.imitation.foreign_states:
        states = {"train": result.train, "collect": tuple(result.artefacts["collect"])}
    for seed in config.distill_seeds:
        planner.arm("sac", seed)
        planner.arm("sac_two_batches", seed, warm.policy_rate)
        for run in (run for run in result.runs if run.seed == seed):
            snapshot = warm.snapshot or max(run.evaluations)
            how = (warm.imitation, warm.replayed, warm.held_updates)
            start = Start(run.trained, snapshot, warm.initial_steps, *how, **states)
            planner.arm(f"warm_{run.variant.label}", seed, warm.policy_rate, start)
    wanted = [*(ref for arm in result.arms for ref in arm.jobs), *result.artefacts["collect"]]
    result.jobs = {job.ref: job for job in result.needed(wanted)}
    return result


Stacks = dict[int, Ref]
"""Training task -> the artefact that holds it."""


class Planner:
    """Adds jobs to a plan, those of a stage after those that it reads; here of what has a simulator."""

    logged = False
    """Whether all there is are logs."""

    def __init__(self, config: RunConfig, variants: Sequence[Variant] | None = None) -> None:
        family = envs.get(config.env)
        if isinstance(family, LoggedFamily) != self.logged:
            raise ConfigError(f"{config.env} is {NO_SIMULATOR}; give its folder to python -m pipeline fit --data.")
        train, test = (
            tuple(range(number or len(family.tasks(split))))
            for split, number in (("train", config.train_tasks), ("test", config.test_tasks))
        )
        chosen = list(variants or [Variant(name, name) for name in config.methods])
        played = tuple(train[place] for place in evenly(len(train), config.evaluate.most_tasks))
        self.plan = Plan(config, train, played, test, chosen)
        self.config, self.hands_over = config.resolved(), variants is None
        self._names: Counter[str] = Counter()
        self._stacks: dict[tuple[type, RunConfig, tuple[int, ...]], Stacks] = {}

    def run(self) -> Plan:
        """Everything of a run or a sweep."""
        result, config = self.plan, self.config
        collected, teachers = self.data(config)
        result.artefacts = {"collect": list(refs_of(collected)), "teach": list(refs_of(teachers)), "rllib": []}
        result.artefacts["references"] = []
        self.pooled(config, collected)  # early: it takes long, and one processor
        self.references(config, collected, teachers)
        for algorithm, task in itertools.product(config.rllib.algorithms, result.train):
            own = {"algorithm": algorithm, "task": task, "config": config.rllib, "collect": (collected[task],)}
            result.artefacts["rllib"].append(self.add(RLlib, config, f"rllib {algorithm} task {task}", **own))
        for variant in result.variants:
            own = changed(result.config, variant.all_changes()).resolved()
            if METHODS[variant.method].learner == "metagenrl":
                result.artefacts["metagenrl"] = [self.metagenrl(own, seed) for seed in config.distill_seeds]
            else:
                self.learners(own, variant)
        self.familiarity(collected)
        return result

    def familiarity(self, collected: Stacks) -> None:
        """What the policy that is handed over judges by; a sweep hands none over, and one task is like no other."""
        train = self.plan.train
        tasks = tuple(train[place] for place in evenly(len(train), MOST_TASKS))
        if self.hands_over and len(tasks) > 1:
            own = {"tasks": tasks, "collect": refs_of(collected, tasks)}
            self.plan.artefacts["familiarity"] = [self.add(Familiarity, self.config, "familiarity", **own)]

    def data(self, config: RunConfig) -> tuple[Stacks, Stacks]:
        """Collection and teachers."""
        collected = self.stacks(Collect, config, config.collect.tasks_per_actor, config=config.collect)
        return collected, self.teachers(config, collected)

    def teachers(self, config: RunConfig, collected: Stacks, of: tuple[int, ...] | None = None) -> Stacks:
        """Teachers of the run's kind, of the training tasks or of those given, which nothing is relabelled for."""
        learner = getattr(config, config.teacher)
        own = {"teacher": config.teacher, "config": config.teach, "learner": learner}
        if not learner.foreign_share or of:
            return self.stacks(Teach, config, teachers_side_by_side(config), collected, of, **own)
        own |= {"relabelled": self.plan.train, "relabel": self.tables(config, collected)}
        return self.stacks(Teach, config, teachers_side_by_side(config), collect=refs_of(collected), **own)

    def references(self, config: RunConfig, collected: Stacks, teachers: Stacks) -> Ref:
        """What needs no multi-task learner, played on all tasks: of the first variant that has such teachers."""
        played = self.plan.played
        own = {"config": config.evaluate, "teach": refs_of(teachers, played)}
        references = self.add(References, config, f"references of {config.teacher}", **own)
        if config.teacher not in self.plan.teachers:
            self.plan.teachers.append(config.teacher)
            self.plan.artefacts["references"].append(references)
            if config.relabel.source == "ensemble":
                configs, trained = self.models(config, collected)
                own |= {"trained": refs_of(trained, played), "collect": refs_of(collected, played), "models": configs}
                job = self.add(Likelihood, config, f"likelihood of {config.teacher}", references=references, **own)
                self.plan.artefacts[f"likelihood of {config.teacher}"] = [job]
        return references

    def pooled(self, config: RunConfig, collected: Stacks, label: str = "") -> tuple[Ref, Ref] | None:
        """What the teacher of all training tasks together returns, and itself, where there is to be one."""
        pooled = config.pooled
        if pooled.teacher is None:
            return None
        sizes = {"hidden": pooled.hidden, "batch_size": pooled.batch_size, "foreign_share": 0.0}
        schedule = TeachingConfig(pooled.iterations, pooled.evaluation_every, pooled.evaluation_episodes)
        own = {"config": schedule, "learner": replace(getattr(config, pooled.teacher), **sizes)}
        own |= {"teacher": pooled.teacher, "pooled": self.plan.played, "collect": refs_of(collected, self.plan.train)}
        teacher = self.add(Teach, config, "teach all tasks together", **own)
        played: dict[str, Any] = {"config": config.evaluate, "teach": (teacher,), "pooled": True}
        returns = self.add(References, config, "references of the pooled teacher", **played)
        self.plan.pooled.setdefault(returns, label)
        return returns, teacher

    def others(self, config: RunConfig) -> tuple[Ref, tuple[Ref, ...]]:
        """What another kind of teachers returns, and the teachers of the training tasks."""
        collected, teachers = self.data(config)
        return self.references(config, collected, teachers), refs_of(teachers, self.plan.train)

    def models(self, config: RunConfig, collected: Stacks) -> tuple[dict[Target, EnsembleConfig], Stacks]:
        """Ensembles, and what they are made by; true rewards need none."""
        configs: dict[Target, EnsembleConfig] = {"reward": config.models.reward}
        if (config.varies or envs.get(config.env).varies) == "dynamics":
            configs["next_observation"] = config.models.next_observation
        if config.relabel.source == "ground_truth":
            return configs, {}
        size = config.models.tasks_per_actor
        if not size:
            made = (Ensemble(c, layout_of(config.env), 1, t, torch.Generator()) for t, c in configs.items())
            size = min(map(side_by_side, made))
        return configs, self.stacks(Models, config, size, collected, configs=configs)

    def tables(self, config: RunConfig, collected: Stacks) -> Ref:
        """The relabelling tables."""
        configs, trained = self.models(config, collected)
        own = {"config": config.relabel, "models": configs, "trained": refs_of(trained)}
        return self.add(Relabel, config, "relabel", collect=refs_of(collected), **own)

    def learners(self, config: RunConfig, variant: Variant) -> None:
        """One multi-task learner per seed, the evaluation of its snapshots, and its probes."""
        method = METHODS[variant.method]
        kind, learner = method.learner, getattr(config, method.learner)
        needs = method.needs(learner)
        config = replace(config, teacher=getattr(learner, "teacher", None) or config.teacher)
        collected, teachers = self.data(config)
        tables = self.tables(config, collected) if "tables" in needs else None
        own = {"learner": kind, "config": learner, "collect": refs_of(collected), "relabel": tables}
        own |= {"teach": refs_of(teachers) if "teachers" in needs else (), "threads": config.distill_cpus}
        own["references"] = self.references(config, collected, teachers) if "returns" in needs else None
        if "models" in needs:
            own["models"], trained = self.models(changed(config, {"relabel.source": "ensemble"}), collected)
            own["ensembles"] = refs_of(trained)
        others = [kind for kind in getattr(learner, "besides", ()) if kind != config.teacher]
        own["besides"] = tuple(self.others(replace(config, teacher=kind)) for kind in others)
        own["pooled"] = self.pooled(config, collected, variant.label) if hasattr(learner, "besides") else None
        for seed in config.distill_seeds[: None if method.drawn else 1]:
            label, own["seed"] = f"{variant.label} seed {seed}", f"{config.seed}/{seed}"
            trained = self.add(Distill, config, f"distill {label}", config.distill_cpus, **own)
            looked = {"collect": refs_of(collected, self.plan.played), "teach": refs_of(teachers, self.plan.played)}
            looked["teach"] = looked["teach"] if own["teach"] else ()
            evaluations, probes, trace = self.judged(config, label, own | looked, trained)
            self.plan.runs.append(Trained(variant, seed, trained, evaluations, probes, tables, trace))

    def judged(
        self, config: RunConfig, label: str, learned: dict[str, Any], trained: Ref
    ) -> tuple[dict[int, Ref], Ref, Ref | None]:
        """The evaluations of a learner's snapshots, its probes, and its behaviour; `learned` is what it was learned by
        and from."""
        played: dict[str, Any] = {"config": config.evaluate, "trained": trained}
        learner = learned["config"]
        evaluations = {
            step: self.add(Evaluate, config, f"evaluate {label} step {step}", step=step, **played)
            for step in learner.snapshots
        }
        played |= {"step": learner.steps, "last_trajectory": learned["learner"] == "batch_pearl"}
        imitated = learned["teach"] if getattr(learner, "guide", "own") == "own" else ()
        played |= {"collect": learned["collect"], "teach": imitated}
        probes = self.add(Probe, config, f"probe {label}", **played)
        shown = {"test": self.plan.test[:TASKS], "trained": trained, "step": learner.steps}
        return evaluations, probes, self.add(Trace, config, f"trace {label}", **shown)

    def metagenrl(self, config: RunConfig, seed: int) -> Ref:
        """MetaGenRL on the first training task's batch, evaluated there."""
        collected, task = self.data(config)[0], self.plan.train[0]
        own = {"task": task, "config": config.metagenrl, "collect": (collected[task],)}
        return self.add(MetaGenRL, config, f"metagenrl seed {seed}", seed=f"{config.seed}/{seed}", **own)

    def arm(self, name: str, seed: int, policy_rate: float | None = None, start: Start | None = None) -> None:
        """One learning curve per unseen task."""
        config, online = self.config, self.config.warmstart.online
        own = {"config": online, "seed": f"{config.seed}/{seed}", "policy_rate": policy_rate, "start": start}
        jobs = [
            self.add(WarmStart, config, f"warmstart {name} seed {seed} unseen {_in_words(tasks)}", tasks=tasks, **own)
            for tasks in _batched(self.plan.test, online.tasks_per_actor)
        ]
        self.plan.arms.append(Arm(name, seed, start.initial_steps if start else 0, jobs))

    def stacks(
        self,
        kind: type,
        run: RunConfig,
        size: int,
        collected: Stacks | None = None,
        of: tuple[int, ...] | None = None,
        **own: Any,
    ) -> Stacks:
        """A learner's job for every `size` tasks, the training tasks or those given, from what was `collected` of them;
        all but these follows from the configuration, and variants that ask again get the same, because keys take
        time."""
        of = self.plan.train if of is None else of
        if (kind, run, of) in self._stacks:
            return self._stacks[kind, run, of]
        found = self._stacks[kind, run, of] = {}
        for tasks in _batched(of, size):
            reads = {} if collected is None else {"collect": refs_of(collected, tasks)}
            label = f"{STAGES[kind].name} {_in_words(tasks)}"
            found |= dict.fromkeys(tasks, self.add(kind, run, label, tasks=tasks, **reads, **own))
        return found

    def add(self, kind: type, run: RunConfig, label: str, num_cpus: float = 1.0, **own: Any) -> Ref:
        """Add one job unless it is there; what it computes decides its key, its name does not.

        `own` are the fields of its specification, but for those that mean the same in every stage.
        """
        same = {
            "env": run.env,
            "horizon": run.horizon,
            "seed": run.seed,
            "tasks": self.plan.train,
            "train": self.plan.played,
            "test": self.plan.test,
            "device": "cuda" if run.learner_gpus else "cpu",  # a GPU rounds otherwise
            "cuda_graphs": run.cuda_graphs,
        }
        names = {item.name for item in fields(kind)}
        spec = kind(**{name: value for name, value in same.items() if name in names} | own)
        name = f"{label} ({envs.get(run.env).name if self.logged else run.env})"
        num_gpus = run.learner_gpus if "device" in names else 0.0
        job = Job(spec, name, num_cpus, num_gpus)
        if job.ref not in self.plan.jobs:
            self._names[name] += 1
            if self._names[name] > 1:  # the same stage under another configuration
                job = replace(job, name=f"{name} #{self._names[name]}")
            self.plan.jobs[job.ref] = job
        return job.ref


def teachers_side_by_side(config: RunConfig) -> int:
    """How many tasks an actor teaches."""
    if config.teach.tasks_per_actor:
        return config.teach.tasks_per_actor
    learner = TEACHERS[config.teacher].make(
        getattr(config, config.teacher), layout_of(config.env), 1, torch.Generator()
    )
    return side_by_side(learner)


def refs_of(stacks: Stacks, tasks: Iterable[int] | None = None) -> tuple[Ref, ...]:
    """The artefacts that hold `tasks`, or all, each once."""
    return tuple(dict.fromkeys(stacks.values() if tasks is None else (stacks[task] for task in tasks)))


def _batched(tasks: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _in_words(tasks: tuple[int, ...]) -> str:
    first, *others = tasks
    return f"tasks {first}-{others[-1]}" if others else f"task {first}"
