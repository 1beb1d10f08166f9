"""From the artefacts of a finished run to its results: one tidy table and one dictionary, and nothing else.

Everything that reads a `Plan`, a store or a file of an artefact for the report stands here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from actors.artefacts import read_json, read_lines, tasks_of
from actors.store import Store
from mbml import envs
from mbml.evaluate import nearest_tasks
from pipeline.outcome import Outcome

if TYPE_CHECKING:
    from pipeline.plan import Plan, Trained

SPLITS = {"test": "unseen tasks", "train": "training tasks"}
UNTOLD = ", untold"
"""Behind the label of a method: what its policy does with nothing seen."""
COLUMNS = {
    "method": "str",
    "seed": "Int64",
    "split": "str",
    "task": "Int64",
    "step": "Int64",
    "index": "Int64",
    "metric": "str",
    "value": "float64",
}
METRICS = {
    "score": "returns of a multi-task policy under the protocol",
    "episode_return": "returns of single episodes at the last evaluation (index: episode, from 1)",
    "reference": "returns of the references on a task",
    "teacher_return": "returns of every teacher on every task (index: the teacher's task)",
    "return": "learning curves of learners on one task (steps: environment steps, updates or rounds)",
    "selected": "the checkpoints that became teachers, with the return that chose them",
    "training/": "losses and other numbers of a learner over its training",
    "posterior_": "task posteriors (posterior_3: dimension 3 of the mean; index: context)",
    "swap_": "the reward-swap test",
    "identified_from": "the share of training tasks identified from held-out episodes (index: transitions)",
    "difference": "mean squared difference of actions, from -1 to 1, from those of a task's own teacher",
    "value": "discounted mean reward of a step by fitted Q evaluation (index: block of logged episodes)",
    "logged_reward": "mean reward of a step as it was logged",
    "identified": "the share of training tasks identified from own rollouts (index: episodes in the context)",
    "foreign_": "returns with contexts from other tasks",
    "told": "returns on training tasks with a context from the task's own batch",
    "swapped_": "the same with single networks of the task's own teacher",
    "last_trajectory": "returns under PEARL's own protocol",
    "relabel_": "relabelling tables (task: labelled for, index: transitions of) and their error over training",
    "policy_return": "returns of the multi-task policy that a warm start begins from",
    "imitation_loss": "losses of its imitation",
    "behaviour_": "what the policy that is handed out did (step: of the episode, index: episode)",
}
"""Every metric of the table, or how its name begins, and what it is. "seed" is the multi-task learner's; data, teachers
and references, which all seeds share, have none."""


class ResultsError(ValueError):
    """Results that contradict themselves or cannot be read."""


@dataclass(frozen=True)
class Results:
    """The tidy table (`COLUMNS`), and what is no number of a method: environment, protocol, configuration, cost."""

    table: pd.DataFrame
    run: dict[str, Any]

    def save(self, out: Path) -> None:
        """Write `results.parquet` and `run.json`."""
        self.table.to_parquet(out / "results.parquet", index=False)
        (out / "run.json").write_text(json.dumps(self.run, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Results:
        """What `save` wrote; raises ResultsError where it is missing or damaged."""
        try:
            return cls(pd.read_parquet(folder / "results.parquet"), json.loads((folder / "run.json").read_text()))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{folder} holds no readable results.parquet and run.json ({error}).") from None

    def rows(self, metric: str, **where: Any) -> pd.DataFrame:
        """The rows of a metric; `where` gives values of other columns."""
        table = self.table[self.table["metric"] == metric]
        for column, value in where.items():
            table = table[table[column] == value]
        return table

    def methods(self, metric: str, **where: Any) -> list[str]:
        """Methods with rows of a metric, in the order of the variants, then of the table."""
        found = list(self.rows(metric, **where)["method"].unique())
        order = [variant["label"] for variant in self.run.get("variants", [])]
        return [name for name in order if name in found] + [name for name in found if name not in order]

    def tasks(self, split: str) -> list[int]:
        """Task indices of a split."""
        return [task["index"] for task in self.run["tasks"].get(split, [])]

    def played(self, split: str) -> list[int]:
        """Those that were played and looked into: of many training tasks some."""
        return self.run.get("played", {}).get(split) or self.tasks(split)

    def labels(self, split: str) -> list[str]:
        """Short names of the tasks that were played."""
        known = {task["index"]: task["label"] for task in self.run["tasks"].get(split, [])}
        return [known[index] for index in self.played(split)] if known else []

    def scores(
        self, method: str, split: str | None, metric: str = "score", axis: str = "step"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps `[steps]` that all seeds of a method share, and its scores there `[seeds, steps, tasks]`.

        Another metric may have another axis, or no tasks: then there is one. Raises ResultsError without such a step.
        """
        rows = self.rows(metric, method=method, **({"split": split} if split else {})).fillna({"task": 0})
        (_, steps, _), values = cube(rows, "seed", axis, "task")
        shared = np.isfinite(values).all(axis=(0, 2))
        if not shared.any():
            raise ResultsError(f"The seeds of {method} share no {axis} at which {metric} is known on all tasks.")
        return steps[shared], values[:, shared]

    def references(self, split: str) -> dict[str, np.ndarray]:
        """Returns `[tasks]` of every reference on the tasks of a split that were played."""
        rows, tasks = self.rows("reference", split=split), self.played(split)
        return {name: cube(rows[rows["method"] == name], "task", task=tasks)[1] for name in rows["method"].unique()}

    @property
    def title(self) -> str:
        """The environment's name for people."""
        return self.run["title"]


def cube(rows: pd.DataFrame, *axes: str, **levels: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Values as an array with one axis per column of `axes`, NaN where there is no row, and the levels of each axis.

    Raises ResultsError where two rows stand for one value.
    """
    if rows.duplicated(list(axes)).any():
        raise ResultsError(f"Two results stand for the same {', '.join(axes)}: {rows.iloc[0].to_dict()}.")
    places = pd.MultiIndex.from_frame(rows[list(axes)].astype(int))
    ranges = [np.asarray(levels.get(axis, places.unique(axis).sort_values())) for axis in axes]
    values = pd.Series(rows["value"].to_numpy(), places).reindex(pd.MultiIndex.from_product(ranges, names=axes))
    return ranges, values.to_numpy().reshape([len(level) for level in ranges])


def tidy(metric: str, axes: str, values: Any, **columns: Any) -> pd.DataFrame:
    """Rows of one metric from nested lists of numbers; `axes` names the columns that are their axes, outermost first.

    A column of an axis is a list, the others are constant. Raises ResultsError where lengths do not agree.
    """
    array, levels = np.asarray(values, dtype=np.float64), {name: columns.pop(name) for name in axes.split()}
    if array.shape != tuple(map(len, levels.values())):
        raise ResultsError(f"{metric}: values of shape {array.shape} do not fit {axes or 'a single number'}.")
    frame = pd.DataFrame(list(itertools.product(*levels.values())), columns=list(levels))
    return frame.assign(metric=metric, value=array.ravel(), **columns)


def table_of(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The tidy table of its parts; rows without a value are left out."""
    table = pd.concat(list(parts), ignore_index=True).reindex(columns=list(COLUMNS))
    return table[table["value"].notna()].astype(COLUMNS).reset_index(drop=True)


def best_policy(results: Results) -> dict[str, Any] | None:
    """Method, seed and last step of the policy with the highest mean score on the training tasks, and that score; of
    logged data of the one that differs least from their teachers there, and how much."""
    found = []
    if len(rows := results.rows("difference", split="train").dropna(subset=["seed"])):
        means = rows[~rows["method"].str.endswith(UNTOLD)].groupby(["method", "seed", "step"])["value"].mean()
        least = means.reset_index().sort_values("value", kind="stable").iloc[0]
        best = {"method": least["method"], "seed": int(least["seed"]), "step": int(least["step"])}
        return best | {"score": float(least["value"])}
    for name in results.methods("score", split="train"):
        steps, scores = results.scores(name, "train")
        seeds = sorted(results.rows("score", method=name)["seed"].unique())
        last = scores[:, -1].mean(axis=1)
        found += [
            {"method": name, "seed": int(s), "step": int(steps[-1]), "score": float(v)}
            for s, v in zip(seeds, last, strict=True)
        ]
    return max(found, key=lambda policy: policy["score"], default=None)


def gather(plan: Plan, store: Store, outcome: Outcome | None = None) -> Results:
    """Read every artefact of a finished run; `outcome` adds what it cost.

    Raises StoreError when an artefact is missing.
    """
    config, train = plan.config, {"split": "train"}

    def files(artefact: str, name: str) -> list[Path]:
        return [store.file(*ref, name) for ref in plan.artefacts.get(artefact, [])]

    sac = learning_curves(files("collect", "curves.jsonl"), method="sac", **train)
    ends = sac[sac["metric"] == "return"].sort_values("step").groupby("task", as_index=False).tail(1)
    parts = [sac, learning_curves(files("teach", "curves.jsonl"), method="teacher", **train)]
    parts.append(ends.assign(metric="reference"))
    for place, kind in enumerate(plan.teachers):
        found = [*_references(plan, files("references", "references.json")[place])]
        found += [part for file in files(f"likelihood of {kind}", "likelihood.json") for part in _likelihood(file)]
        if place:
            found = [p.assign(method=p["method"] + f" ({kind})") for p in found if p["method"][0] in _OF_KIND]
        parts += found
    for ref, label in plan.pooled.items():
        name = "pooled_teacher" + f" ({label})" * bool(label and len(plan.pooled) > 1)
        for split, found in read_json(store.file(*ref, "references.json")).items():
            parts.append(tidy("reference", "task", found["teachers"][0], method=name, split=split, task=found["task"]))
    for choice in (row for file in files("teach", "selected.json") for row in read_json(file)):
        where = {"method": "teacher", "task": choice["task"], "step": choice.get("step", choice.get("iteration"))}
        parts.append(tidy("selected", "", choice["return"], **where, **train))
    rllib = [row["return"] for file in files("rllib", "returns.json") for row in read_json(file)]
    for name, row in zip(config.rllib.algorithms, np.reshape(rllib, (-1, len(plan.train))), strict=True):
        parts.append(tidy("reference", "task", row, method=f"rllib_{name}", task=plan.train, **train))
    for seed, file in zip(config.distill_seeds, files("metagenrl", "curves.jsonl"), strict=False):
        parts.append(learning_curves([file], method="metagenrl", seed=seed, **train))
    notes: dict[str, Any] = {}
    for run in plan.runs:
        evaluations = {step: read_json(store.file(*ref, "scores.json")) for step, ref in run.evaluations.items()}
        probes = read_json(store.file(*run.probes, "probes.json"))
        parts += _learner(run, store.file(*run.trained, "losses.jsonl"), evaluations, probes)
        if run.relabel and run.variant.label not in notes:
            found = read_json(store.file(*run.relabel, "diagnostics.json"))
            notes[run.variant.label] = {name: found[name] for name in ("threshold", "error_note")}
            parts += relabelling_of(plan, run.variant.label, found)
    about = about_run(plan, outcome) | {"protocol": config.evaluate.protocol(), "relabelling": notes}
    chosen = best_policy(Results(table_of(parts), about))
    for run in plan.runs:
        handed_out = chosen and (run.variant.label, run.seed) == (chosen["method"], chosen["seed"])
        if handed_out and run.trace and store.complete(*run.trace):  # runs of earlier versions have none
            parts += _behaviour(run, store.file(*run.trace, "behaviour.jsonl"))
    return Results(table_of(parts), about)


def gather_warmstart(plan: Plan, store: Store, outcome: Outcome | None = None) -> Results:
    """The curves of every arm of the warm-start experiment, and those of SAC on the training tasks.

    Raises StoreError when an artefact is missing.
    """
    collected = [store.file(*ref, "curves.jsonl") for ref in plan.artefacts["collect"]]
    parts = [learning_curves(collected, method="sac", split="train")]
    for arm in plan.arms:
        where: dict[str, Any] = {"method": arm.name, "seed": arm.seed, "split": "test"}
        folders = [store.fetch(*reference) for reference in arm.jobs]
        curves = learning_curves([folder / "curves.jsonl" for folder in folders], **where)
        parts.append(curves.assign(step=curves["step"] + arm.initial_steps))
        for metric in ("policy_return", "imitation_loss") if arm.initial_steps else ():
            values = [value for folder in folders for value in read_json(folder / "start.json")[metric]]
            parts.append(tidy(metric, "task", values, task=plan.test, **where))
    warmup = plan.config.warmstart.online.warmup_steps
    arms = {arm.name: {"initial_steps": arm.initial_steps, "warmup_steps": warmup} for arm in plan.arms}
    return Results(table_of(parts), about_run(plan, outcome) | {"arms": arms})


def about_run(plan: Plan, outcome: Outcome | None) -> dict[str, Any]:
    """What is no number of a method: environment, tasks, configuration, cost."""
    config, family = plan.config, envs.get(plan.config.env)
    tasks = {}
    for split, indices in (("train", plan.train), ("test", plan.test)):
        found = tasks_of(config.env, split, list(indices))
        described = zip(found, family.features(found), strict=True)
        tasks[split] = [{"index": t.index, "label": t.label, "features": row.tolist()} for t, row in described]
    return {
        "environment": config.env,
        "title": family.title or family.name,
        "preset": config.preset,
        "seed": config.seed,
        "horizon": config.horizon or family.horizon,
        "parameter": family.parameter,
        "view": asdict(family.view),
        "tasks": tasks,
        **({"played": {"train": list(plan.played)}} if plan.played != plan.train else {}),
        "variants": [asdict(variant) for variant in plan.variants],
        "config": asdict(config),
        "cost": [asdict(stage) for stage in outcome.cost] if outcome else [],
        "timeline": [asdict(span) for span in outcome.timeline] if outcome else [],
        "wall_seconds": outcome.wall_seconds if outcome and outcome.done else None,
    }


def learning_curves(files: list[Path], **where: Any) -> pd.DataFrame:
    """Learning curves: returns, and what else their lines hold as "training/<name>"."""
    lines = pd.DataFrame([line for file in files for line in read_lines(file)])
    rows = lines.rename(columns={"iteration": "step"}).melt(["task", "step"], var_name="metric")
    return rows.assign(metric=rows["metric"].where(rows["metric"] == "return", "training/" + rows["metric"]), **where)


def _references(plan: Plan, file: Path) -> list[pd.DataFrame]:
    """References on both splits: those measured, and those that are choices among the teachers.

    `teachers` holds returns `[teacher, task]` in fresh episodes. The task-blind teacher is chosen on the training
    tasks; the one chosen on the unseen tasks themselves is an upper bound.
    """
    found, environment = read_json(file), plan.config.env
    tables = {split: np.array(found[split].pop("teachers")) for split in SPLITS}
    blind, bound = (int(tables[split].mean(axis=1).argmax()) for split in ("train", "test"))
    tasks = {s: tasks_of(environment, s, which) for s, which in (("test", plan.test), ("train", plan.played))}
    nearest = nearest_tasks(envs.get(environment), tasks["test"], tasks["train"])  # of those that were compared
    test = tables["test"]
    bounds = {"nearest_teacher": test[nearest, np.arange(len(nearest))], "blind_teacher_bound": test[bound]}
    chosen = {"test": bounds, "train": {"own_teacher": np.diagonal(tables["train"])}}
    parts = []
    for split, table in tables.items():
        where: dict[str, Any] = {"split": split, "task": found[split].pop("task")}
        levels = found[split] | {"blind_teacher": table[blind]} | chosen[split]
        parts += [tidy("reference", "task", row, method=name, **where) for name, row in levels.items()]
        parts.append(tidy("teacher_return", "index task", table, method="teacher", index=plan.played, **where))
    return parts


_OF_KIND = ("blind_teacher", "likelihood_teacher", "nearest_teacher", "best_teacher", "own_teacher")
"""References that are shown for the teachers that a method has of its own as well."""


def _likelihood(file: Path) -> Iterator[pd.DataFrame]:
    """Scores of the likelihood teacher, which learns about a task while it acts, like a multi-task policy."""
    for split, found in read_json(file).items():
        tasks = found.pop("task")
        yield from (tidy("reference", "task", row, task=tasks, method=name, split=split) for name, row in found.items())


def losses_of(file: Path, **where: Any) -> list[pd.DataFrame]:
    """Losses of one multi-task learner, if it left any."""
    if not (losses := read_lines(file)):
        return []
    rows = pd.DataFrame(losses).melt(["step"], var_name="metric").assign(**where)
    return [rows.assign(metric="training/" + rows["metric"])]


def _learner(run: Trained, losses: Path, evaluations: dict[int, Any], probe: dict[str, Any]) -> list[pd.DataFrame]:
    """Losses, evaluations and probes of one multi-task learner."""
    where: dict[str, Any] = {"method": run.variant.label, "seed": run.seed}
    parts, last = losses_of(losses, **where), evaluations[max(evaluations)]
    for split in [split for split in SPLITS if split in last]:
        at = where | {"split": split, "task": last[split]["task"]}
        scores = [found[split]["score"] for found in evaluations.values()]
        episodes = np.array(last[split]["episodes"])
        number = range(1, episodes.shape[1] + 1)
        parts.append(tidy("score", "step task", scores, step=list(evaluations), **at))
        parts.append(tidy("episode_return", "task index", episodes, index=number, **at))
    seen = {"train": probe["posterior_mean"], "test": np.array(last["test"]["posterior_mean"])[:, None]}
    for split, means in seen.items():
        tasks = probe["train"] if split == "train" else last["test"]["task"]
        for dimension, values in enumerate(np.moveaxis(np.array(means), -1, 0)):  # [tasks, contexts]
            at = where | {"split": split, "task": tasks, "index": range(values.shape[1])}
            parts.append(tidy(f"posterior_{dimension}", "task index", values, **at))
    parts += [tidy(f"swap_{name}", "", value, **where) for name, value in (probe["reward_swap"] or {}).items()]
    share = probe["identification"]
    parts.append(tidy("identified", "index", share, split="train", index=range(1, len(share) + 1), **where))
    on_train = {f"swapped_{name}": values for name, values in (probe["swapped"] or {}).items()} | {
        "told": probe["told"]
    }
    at = where | {"split": "train", "task": probe["train"]}
    parts += [tidy(metric, "task", values, **at) for metric, values in on_train.items()]
    on_test = {f"foreign_{name}": values for name, values in (probe["foreign_contexts"] or {}).items()}
    on_test |= {"last_trajectory": probe["last_trajectory"]} if probe["last_trajectory"] else {}
    at = where | {"split": "test", "task": last["test"]["task"]}
    parts += [tidy(metric, "task", values, **at) for metric, values in on_test.items()]
    return parts


def _behaviour(run: Trained, file: Path) -> Iterator[pd.DataFrame]:
    """What a policy did on some unseen tasks."""
    for line in read_lines(file):
        where = {"method": run.variant.label, "seed": run.seed, "split": "test", "task": line["task"]}
        where |= {"index": line["episode"], "step": line["step"]}
        yield from (tidy(f"behaviour_{axis}", "step", row, **where) for axis, row in enumerate(line["shown"]))


def relabelling_of(plan: Plan, label: str, found: dict[str, Any]) -> list[pd.DataFrame]:
    """The tables that a variant learned from, and their error while the models learned."""
    where: dict[str, Any] = {"method": label, "split": "train", "task": plan.train}
    parts = []
    names = [name for name in ("share", "error_eligible", "error_all") if found.get(name) is not None]
    for name in names:
        if "partners" not in found:
            parts.append(tidy(f"relabel_{name}", "task index", found[name], index=plan.train, **where))
            continue
        pairs = zip(found["partners"], found[name], strict=True)  # a line for every partner, a number a task
        parts += [
            tidy(f"relabel_{name}", "index", line, index=plan.train, **where | {"task": [plan.train[i] for i in whose]})
            for whose, line in pairs
        ]
    for row in found["training"] or []:
        at = where | {"task": row.get("task", plan.train), "step": row["step"]}
        parts.append(tidy("relabel_training_error", "task", row["error"], **at))
        parts.append(tidy("relabel_training_kept", "", row["kept"], step=row["step"], method=label))
    return parts
