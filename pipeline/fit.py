"""From logs to a policy: what has to be made where there is no simulator, and what is read from it.

adopt -> teach, models -> relabel, fqe -> distill -> assess
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from actors.artefacts import read_json
from actors.stage import Ref
from actors.stages.adopt import Adopt
from actors.stages.assess import Assess
from actors.stages.fqe import Fqe
from actors.store import Store
from mbml import envs
from mbml.envs.logged import LoggedFamily
from mbml.methods import METHODS
from mbml.settings import changed
from pipeline.config import ConfigError, Place, RunConfig
from pipeline.handover import POLICY, check_replaceable, hand_over
from pipeline.outcome import Outcome
from pipeline.plan import Plan, Planner, Stacks, refs_of
from pipeline.report.fit import PROTOCOL, fit_page
from pipeline.results import UNTOLD, Results, about_run, learning_curves, losses_of, relabelling_of, table_of, tidy
from pipeline.run import carry_out, prepare


def check_fit(config: RunConfig, place: Place, out: Path) -> None:
    """Raise ValueError, one sentence, for whatever is wrong before the logs are read, which may take long."""
    if config.train_tasks or config.test_tasks or config.horizon:
        raise ConfigError("fit takes all tasks and the longest episode of the logs; leave out train_tasks, test_tasks "
                          "and horizon.")  # fmt: skip
    if config.pooled.teacher is not None:
        raise ConfigError("pooled.teacher is for what can be played, and fit has logs; leave it out.")
    config.check()
    check_replaceable(out / POLICY)
    prepare(place)


def plan_fit(config: RunConfig) -> Plan:
    """The jobs of a checked configuration of a logged dataset."""
    return _FitPlanner(config).run()


class _FitPlanner(Planner):
    """Adopts the logs instead of collecting, and evaluates by them instead of playing."""

    logged = True

    def run(self) -> Plan:
        """Everything of `config.methods`."""
        result, config = self.plan, self.config
        collected, teachers = self.data(config)
        result.artefacts = {"collect": list(refs_of(collected)), "teach": list(refs_of(teachers))}
        for variant in result.variants:
            self.learners(changed(result.config, METHODS[variant.method].changes).resolved(), variant)
        self.familiarity(collected)
        return result

    @property
    def held(self) -> tuple[int, ...]:
        """Places of the held-out tasks in the dataset."""
        family = envs.get(self.config.env)
        assert isinstance(family, LoggedFamily)
        return tuple(family.place("test", task) for task in self.plan.test)

    def data(self, config: RunConfig) -> tuple[Stacks, Stacks]:
        """The logs and the teachers of the training tasks."""
        adopted = self.add(Adopt, config, "adopt", held_episodes=config.assess.held_episodes)
        collected = dict.fromkeys(self.plan.train, adopted)
        return collected, self.teachers(config, collected)

    def references(self, config: RunConfig, collected: Stacks, teachers: Stacks) -> Ref:
        """Fitted Q evaluation of the teachers on the training tasks, or some of them."""
        tasks = self.plan.played
        own = {"tasks": tasks, "config": config.fqe, "collect": refs_of(collected)}
        own["teach"] = refs_of(teachers, tasks)
        return self.add(Fqe, config, f"fqe of {config.teacher}", **own)

    def judged(
        self, config: RunConfig, label: str, learned: dict[str, Any], trained: Ref
    ) -> tuple[dict[int, Ref], Ref, Ref | None]:
        """No evaluations, no behaviour, and what the logs say of the last snapshot."""
        collected, teachers = self.data(config)
        (adopted,) = refs_of(collected)
        own = self.teachers(config, dict.fromkeys(self.held, adopted), self.held)
        configs, ensembles = self.models(config, collected)
        judged = self.add(
            Assess, config, f"assess {label}", config=config.assess, fqe=config.fqe, held=self.held, trained=trained,
            step=learned["config"].steps, collect=refs_of(collected), teach=refs_of(teachers, self.plan.played),
            own=refs_of(own), references=self.references(config, collected, teachers), models=configs,
            ensembles=refs_of(ensembles, self.plan.played) if ensembles else (),
        )  # fmt: skip
        return {}, judged, None


def gather_fit(plan: Plan, store: Store, outcome: Outcome | None = None) -> Results:
    """Read every artefact of a finished fit; raises StoreError when one is missing."""
    curves = [store.file(*ref, "curves.jsonl") for ref in plan.artefacts["teach"]]
    parts = [learning_curves(curves, method="teacher", split="train")]
    notes: dict[str, Any] = {}
    for run in plan.runs:
        where: dict[str, Any] = {"method": run.variant.label, "seed": run.seed}
        parts += losses_of(store.file(*run.trained, "losses.jsonl"), **where)
        found, step = read_json(store.file(*run.probes, "assessment.json")), plan.jobs[run.probes].spec.step
        parts += _assessed(plan, found, step, first="blind" not in notes, **where)
        notes |= {"environment": "logged", "blind": found["blind"]}
        if run.relabel:
            found = read_json(store.file(*run.relabel, "diagnostics.json"))
            parts += relabelling_of(plan, run.variant.label, found)
    return Results(table_of(parts), about_run(plan, outcome) | {"protocol": PROTOCOL, **notes})


def _assessed(
    plan: Plan, found: dict[str, Any], step: int, *, first: bool, method: str, seed: int
) -> list[pd.DataFrame]:
    """What was found of one policy; what it stands beside, which all policies share, of the first one alone."""
    parts = [
        tidy("identified_from", "index", list(found["identified"].values()), method=method, seed=seed, split="train",
             index=[int(count) for count in found["identified"]])
    ] if found["identified"] else []  # fmt: skip
    parts += [tidy(f"swap_{k}", "", v, method=method, seed=seed) for k, v in (found["reward_swap"] or {}).items()]

    def whose(name: str) -> dict[str, Any] | None:
        own = {"adapted": method, "untold": f"{method}{UNTOLD}"}
        return {"method": own[name], "seed": seed, "step": step} if name in own else {"method": name} if first else None

    for split, table in found["agreement"].items():
        for name, values in table.items():
            if (who := whose(name)) is not None:
                at = {"split": split, "task": plan.played if split == "train" else plan.test}
                parts.append(tidy("difference", "task", values, **at, **who))
    for name, tasks in found["value"].items():
        if (who := whose(name)) is not None:
            for task, blocks in zip(plan.test, tasks, strict=True):
                at = {"split": "test", "task": task, "index": range(1, len(blocks) + 1)}
                parts.append(tidy("value", "index", blocks, **at, **who))
    if first:
        logged = {"method": "behaviour", "split": "test", "task": plan.test}
        parts.append(tidy("logged_reward", "task", np.array(found["logged_reward"]), **logged))
    return parts


def fit(config: RunConfig, place: Place, out: Path, log: Any) -> int:
    """Learn from logs, judge, report, and write the policy, of what `check_fit` let pass; returns the exit code."""
    jobs = plan_fit(config)

    def gathered(store: Store, outcome: Outcome) -> Results:
        return hand_over(jobs, store, gather_fit(jobs, store, outcome), out)

    title = f"{len(jobs.train)} logged tasks, {len(jobs.test)} held out, preset {config.preset}, seed {config.seed}"
    return carry_out(title, config, jobs.jobs.values(), place, out, log, gathered, fit_page)
