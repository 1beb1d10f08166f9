"""From a finished run to the folder of one of its policies, which needs nothing of the store any more."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.artefacts import read_json, snapshot_of
from actors.store import Store
from mbml import envs
from mbml.data import Dataset
from mbml.deploy.description import (
    Calibration,
    Data,
    Description,
    Reward,
    Score,
    Space,
    Training,
    TrainingTask,
    identity,
)
from mbml.deploy.familiarity import Familiarity, TaskModels
from mbml.deploy.folder import check_replaceable, inference_of, versions, write_folder
from mbml.deploy.graphs import graphs_possible
from mbml.envs import Family
from mbml.methods import METHODS
from mbml.policy import ContextPolicy
from mbml.scaling import VectorScaling
from pipeline.plan import Plan, Trained
from pipeline.results import SPLITS, Results, best_policy

POLICY = "policy"
"""The folder beside the report."""


def hand_over(jobs: Plan, store: Store, results: Results, out: Path) -> Results:
    """Write the policy that does best on the training tasks to `out`/policy; the results then say which it is.

    A smoke run, whose numbers mean nothing, goes without the ONNX graphs, and so does a machine without their packages.
    """
    if (chosen := best_policy(results)) is None:
        check_replaceable(out / POLICY)
        shutil.rmtree(out / POLICY, ignore_errors=True)  # of an earlier run
        return results
    graphs = jobs.config.preset != "smoke" and graphs_possible()
    write_policy(jobs, store, results, chosen, out / POLICY, graphs=graphs)
    return replace(results, run=results.run | {"policy": chosen})


def write_policy(
    jobs: Plan, store: Store, results: Results, chosen: dict[str, Any], folder: Path, *, graphs: bool
) -> Description:
    """Write the policy of the method, seed and step that are `chosen` to `folder`.

    Raises PolicyError where that holds something else, or where `graphs` need a package that is not there.
    """
    trained = next(r for r in jobs.runs if (r.variant.label, r.seed) == (chosen["method"], chosen["seed"]))
    spec = jobs.jobs[trained.trained].spec
    dataset = Dataset.open(*(store.fetch(*ref) / "dataset" for ref in spec.collect))
    weights = snapshot_of(store.fetch(*trained.trained), chosen["step"])
    policy = ContextPolicy.load(weights)
    description = _described(jobs, trained, results, chosen, dataset, policy)
    familiarity = None
    if "familiarity" in jobs.artefacts:
        found = store.fetch(*jobs.artefacts["familiarity"][0])
        models = TaskModels.load(found / "familiarity.safetensors", policy.layout, len(spec.tasks))
        familiarity = Familiarity(models, Calibration(**read_json(found / "calibration.json")))
    return write_folder(folder, weights, description, familiarity, graphs=graphs)


def _described(
    jobs: Plan, trained: Trained, results: Results, chosen: dict[str, Any], dataset: Dataset, policy: ContextPolicy
) -> Description:
    config, run, variant = jobs.config, results.run, trained.variant
    family = envs.get(config.env)
    metas = [dataset.meta(index) for index in jobs.train]
    shards = [[meta["index"], [shard["sha256"] for shard in meta["shards"]]] for meta in metas]
    about = {"preset": config.preset, "seed": config.seed, "label": variant.label, "changes": dict(variant.changes)}
    return Description(
        schema_version=1,
        title=f"{run['title']}: {variant.label}",
        observation=_observed(family) if dataset.scaling is None else _logged(dataset.scaling.meta["observation"]),
        action=identity(family.action_size, 1.0)
        if dataset.scaling is None
        else _logged(dataset.scaling.meta["action"], 1.0),
        reward=Reward() if dataset.scaling is None else Reward(**dataset.scaling.meta["reward"]),
        inference=inference_of(policy, untold=METHODS[variant.method].untold),
        tasks=[TrainingTask(m["index"], m["label"], m["rows"], m["parameter"]) for m in metas],
        data=Data(
            source="collected" if dataset.scaling is None else "logged",
            environment=run["environment"],
            horizon=dataset.header["horizon"],
            sha256=hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
            rows=sum(meta["rows"] for meta in metas),
        ),
        training=Training(variant.method, METHODS[variant.method].about, trained.seed, chosen["step"], about),
        protocol=run["protocol"],
        scores=[score for split in SPLITS if (score := _score(results, chosen, split)) is not None]
        or _values(results, chosen),
        familiarity=None,
        onnx={},
        versions=versions(),
        files={},
    )


def _observed(family: Family) -> Space:
    """What the family's environments show, as the network takes it."""
    env = family.environment(family.tasks("train")[0])
    ends = env.observation_space.low, env.observation_space.high
    env.close()
    low, high = ([float(v) if np.isfinite(v) else None for v in end] for end in ends)
    return replace(identity(family.observation_size), low=low, high=high)


def _logged(part: VectorScaling, bound: float | None = None) -> Space:
    """What was logged, in its own scale; with the bounds that the network's numbers have."""
    offset, scale = np.array(part["offset"]), np.array(part["scale"])
    unknown: list[float | None] = [None] * len(offset)
    low, high = (unknown if bound is None else (offset + sign * bound * scale).tolist() for sign in (-1, 1))
    return Space(offset.tolist(), scale.tolist(), low, high, part["names"], part["units"])


def _values(results: Results, chosen: dict[str, Any]) -> list[Score]:
    """Of logged data: values on the held-out tasks, where that is what stands in the table."""
    rows = results.rows("value", split="test")
    means = rows.groupby(["method", "seed", "task"], dropna=False, sort=False)["value"].mean().reset_index()
    own = means[(means["method"] == chosen["method"]) & (means["seed"] == chosen["seed"])]
    if own.empty:
        return []
    others = means[means["seed"].isna()].groupby("method", sort=False)["value"].mean()
    references = {str(name): float(value) for name, value in others.items()}
    return [Score("test", results.labels("test"), own.sort_values("task")["value"].tolist(), references)]


def _score(results: Results, chosen: dict[str, Any], split: str) -> Score | None:
    """The scores of a split that stand in the run's table."""
    where = {"method": chosen["method"], "seed": chosen["seed"], "step": chosen["step"]}
    rows = results.rows("score", split=split, **where).sort_values("task")
    if rows.empty:
        return None
    labels = dict(zip(results.played(split), results.labels(split), strict=True))
    means = {name: float(values.mean()) for name, values in results.references(split).items()}
    known = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    return Score(split, [labels[task] for task in rows["task"]], rows["value"].tolist(), known)
