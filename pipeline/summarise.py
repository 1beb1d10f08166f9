"""From the artefacts of a finished run to its summary: the one nested dictionary that the report is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actors.artefacts import read_json, read_lines, tasks_of
from actors.store import Store
from mbml import envs
from mbml.evaluate import nearest_tasks
from pipeline.report.statistics import summarise as statistics
from pipeline.scheduler import Outcome
from pipeline.stages import Plan, Reference, Run


def summarise(plan: Plan, store: Store, outcome: Outcome | None = None) -> dict[str, Any]:
    """Read every artefact of `plan` from `store`; `outcome` adds what the run cost.

    Raises StoreError when an artefact is missing.
    """
    config = plan.config
    distribution = envs.get(config.env)

    def folders(references: Iterable[Reference]) -> list[Path]:
        return [store.fetch(*reference) for reference in references]

    references = _references(plan, read_json(folders(plan.artefacts["references"])[0] / "references.json"))
    evaluation = [_evaluation(run, folders(run.evaluations.values())) for run in plan.runs]
    bcq = folders(plan.artefacts["bcq"])
    references["train"]["bcq"] = [s["return"] for s in _selected(bcq)]
    sac = curves_of(folders(plan.artefacts["collect"]), "step")
    references["train"]["sac"] = [curve["return"][-1] for curve in sac]
    references["train"] |= _rllib(plan, folders(plan.artefacts["rllib"]))
    probes = [read_json(folders([run.probes])[0] / "probes.json") for run in plan.runs]
    relabelling = {
        run.variant.label: read_json(folders([run.relabel])[0] / "diagnostics.json") for run in plan.runs if run.relabel
    }
    metagenrl = folders(plan.artefacts.get("metagenrl", []))
    return {
        "environment": config.env,
        "paper_name": distribution.title,
        "preset": config.preset,
        "seed": config.seed,
        "horizon": config.horizon or distribution.horizon,
        "parameter": distribution.parameter,
        "protocol": config.evaluate.protocol(),
        "config": asdict(config),
        "tasks": {split: task_table(config.env, split, getattr(plan, split)) for split in ("train", "test")},
        "collect": {"curves": sac},
        "bcq": {"curves": curves_of(bcq, "iteration"), "selected": _selected(bcq)},
        "variants": [asdict(variant) for variant in plan.variants],
        "relabel": next(iter(relabelling.values()), None),
        "relabelling": [{"method": label, **found} for label, found in relabelling.items()],
        "metagenrl": [
            {"seed": seed, **curves_of([folder], "step")[0]}
            for seed, folder in zip(config.distill_seeds, metagenrl, strict=False)
        ],
        "distill": [_losses(run, folders([run.trained])[0]) for run in plan.runs],
        "evaluation": evaluation,
        "references": references,
        "headline": _headline(evaluation),
        "posteriors": [
            _posteriors(plan, run, folders(run.evaluations.values())[-1], probe)
            for run, probe in zip(plan.runs, probes, strict=True)
        ],
        "reward_swap": _reward_swap(plan.runs, probes),
        "probes": [
            {
                "method": run.variant.label,
                "seed": run.seed,
                **{name: probe[name] for name in ("identification", "foreign_contexts", "last_trajectory")},
            }
            for run, probe in zip(plan.runs, probes, strict=True)
        ],
        "cost": [asdict(stage) for stage in outcome.cost] if outcome else [],
        "wall_seconds": outcome.wall_seconds if outcome else None,
    }


def task_table(environment: str, split: str, indices: list[int]) -> list[dict[str, Any]]:
    """Index, label and parameters of tasks, for a summary."""
    tasks = tasks_of(environment, split, indices)
    features = envs.get(environment).features(tasks)
    return [
        {"index": task.index, "label": task.label, "features": row.tolist()}
        for task, row in zip(tasks, features, strict=True)
    ]


def curves_of(folders: list[Path], axis: str) -> list[dict[str, Any]]:
    """Learning curves in artefacts, one per task in the order of the tasks: its points on `axis` and its returns."""
    curves: dict[int, dict[str, Any]] = {}
    for row in (row for folder in folders for row in read_lines(folder / "curves.jsonl")):
        curve = curves.setdefault(row["task"], {"task": row["task"], axis: [], "return": []})
        curve[axis].append(row[axis])
        curve["return"].append(row["return"])
    return [curves[task] for task in sorted(curves)]


def _selected(folders: list[Path]) -> list[dict[str, Any]]:
    rows = [row for folder in folders for row in read_json(folder / "selected.json")]
    return sorted(rows, key=lambda row: row["task"])


def _rllib(plan: Plan, folders: list[Path]) -> dict[str, list[float]]:
    """Returns on the training tasks of each of RLlib's algorithms; the jobs come algorithm by algorithm."""
    returns = [row["return"] for folder in folders for row in read_json(folder / "returns.json")]
    table = np.array(returns).reshape(-1, len(plan.train))
    return {f"rllib_{name}": row.tolist() for name, row in zip(plan.config.rllib.algorithms, table, strict=True)}


def _losses(run: Run, folder: Path) -> dict[str, Any]:
    rows = read_lines(folder / "losses.jsonl")
    names = list(rows[0]) if rows else []
    columns = {name: [row[name] for row in rows] for name in names}
    return {"method": run.variant.label, "seed": run.seed, "loss_triplet": None, **columns}


def _evaluation(run: Run, folders: list[Path]) -> dict[str, Any]:
    scores = [read_json(folder / "scores.json") for folder in folders]
    result: dict[str, Any] = {"method": run.variant.label, "seed": run.seed, "step": [s["step"] for s in scores]}
    for split in ("test", "train"):
        if split in scores[-1]:
            result[split] = [s[split]["score"] for s in scores]
            result[f"{split}_episodes"] = scores[-1][split]["episodes"]
    return result


def _references(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    """Simple references, the best single task-blind teacher (chosen on the unseen tasks), the nearest teacher."""
    tables = {split: np.array(found[split]["teachers"]) for split in ("test", "train")}
    blind = int(tables["test"].mean(1).argmax())
    result: dict[str, Any] = {"best_blind_teacher_task": plan.train[blind]}
    environment = plan.config.env
    train = tasks_of(environment, "train", plan.train)
    for split, table in tables.items():
        tasks = tasks_of(environment, split, getattr(plan, split))
        nearest = nearest_tasks(envs.get(environment), tasks, train)
        result[split] = {
            "random": found[split]["random"],
            "zero_action": found[split]["zero_action"],
            "best_blind_teacher": table[blind].tolist(),
            "nearest_teacher": table[nearest, np.arange(len(tasks))].tolist(),
        }
    return result


def _headline(evaluation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for run in evaluation:
        for split in ("test", "train"):
            if split not in run:
                continue
            table = np.array(run[split])
            for epoch, index in (("last", len(table) - 1), ("best", int(table.mean(1).argmax()))):
                rows.append(
                    {
                        "method": run["method"],
                        "seed": run["seed"],
                        "split": split,
                        "epoch": epoch,
                        "step": run["step"][index],
                        **statistics(table[index]),
                    }
                )
    return rows


def _posteriors(plan: Plan, run: Run, evaluation: Path, probe: dict[str, Any]) -> dict[str, Any]:
    """Posteriors of own contexts of the training tasks, and those reached by own rollouts in the unseen tasks."""
    unseen = read_json(evaluation / "scores.json")["test"]
    contexts = [
        ("train", task, mean)
        for task, means in zip(probe["train"], probe["posterior_mean"], strict=True)
        for mean in means
    ]
    contexts += [("test", t, mean) for t, mean in zip(unseen["task"], unseen["posterior_mean"], strict=True)]
    split, task, mean = (list(column) for column in zip(*contexts, strict=True))
    return {"method": run.variant.label, "seed": run.seed, "split": split, "task": task, "mean": mean}


def _reward_swap(runs: list[Run], probes: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    rows = [
        {"method": run.variant.label, "seed": run.seed, **probe["reward_swap"]}
        for run, probe in zip(runs, probes, strict=True)
        if probe["reward_swap"] is not None
    ]
    return rows or None
